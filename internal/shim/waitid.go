package shim

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitid is waitid(2); it returns the PID of the child, 0 when none is in the
// wanted state.
func waitid(kind, id, options int) (int, error) {
	var info unix.Siginfo
	if err := unix.Waitid(kind, id, &info, options, nil); err != nil {
		return 0, err
	}
	// The rest of siginfo_t is a union, of which x/sys names nothing. On 64-bit
	// Linux si_pid is its first field, at byte 16.
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))), nil
}
