// Package bench measures the hot paths of a daemon through its socket: a blob
// written, an image unpacked, a snapshot prepared, a container recorded, and a
// container's whole life. `make bench` runs it; `benchstat` compares two runs.
//
// The daemon is the one of bin/ with everything of it in a temporary directory;
// BERTH_BIN names another directory of programs (a real containerd's, say) and
// BENCH_ADDRESS a daemon that runs already. The packages have benchmarks of
// their own beside the code, for the parts.
package bench
