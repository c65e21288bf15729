// Package compat runs Berth with its peers: containerd's own Go client against
// Berth's daemon, and the scripts of test/script with containerd's ctr, daemon
// and shim in every pairing with ours. The peers are built from the Go module
// proxy; this is a module of its own, so that nothing of them can reach the
// product.
package compat
