package grpcapi

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pidNamespace is the inode of the daemon's PID namespace: what a client
// compares with its own before it uses a PID of ours.
func pidNamespace() (uint64, error) {
	const path = "/proc/self/ns/pid"
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
