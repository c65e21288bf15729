package shim

import (
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// isolateCore gives this shim, and the containers that it will start, a
// core-scheduling cookie of their own where the environment asks for it
// (SCHED_CORE, as containerd's shim has it): the kernel then never runs them on
// the same core at the same time as others. A kernel without that is told of.
func isolateCore(log *slog.Logger) {
	if os.Getenv("SCHED_CORE") == "" {
		return
	}
	if err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, unix.PR_SCHED_CORE_SCOPE_THREAD_GROUP, 0); err != nil {
		log.Warn("containers share cores with others: the kernel has no core scheduling", "error", err)
	}
}
