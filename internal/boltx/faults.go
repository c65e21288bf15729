package boltx

import (
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
)

// CatchFaults turns a panic, and the fault of a page that the disk cannot
// read, into an error: a bad sector fails the call that needs it, not the
// daemon. The database is memory-mapped, so there is no read error to return.
//
//	defer boltx.CatchFaults(&err)()
func CatchFaults(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("read database: %v: %w", p, errdefs.ErrDataLoss)
		}
	}
}
