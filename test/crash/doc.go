// Package crash proves that Berth survives SIGKILL at any step. Its tests build
// the programs with the build tag failpoints, have a daemon or a shim killed at
// each of them in turn while a fixed workload runs, start another daemon, and
// check what must hold: what was acknowledged is there, what ran still runs, the
// workload can be done again, and at its end nothing is left behind.
//
// Every test has a daemon, directories and a namespace of its own; they need root.
package crash
