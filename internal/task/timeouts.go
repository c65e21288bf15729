package task

import "time"

// Timeouts are containerd's io.containerd.timeout.task.state and .shim.*.
type Timeouts struct {
	// State bounds a look at a task, Load the first answer of a shim, Cleanup
	// what clears away after one, Shutdown its going.
	State, Load, Cleanup, Shutdown time.Duration
}

// timeouts of now; what is not positive is the default.
func (m *Manager) timeouts() Timeouts {
	var t Timeouts
	if m.opts.Timeouts != nil {
		t = m.opts.Timeouts()
	}
	for _, v := range []struct {
		to       *time.Duration
		fallback time.Duration
	}{{&t.State, stateTimeout}, {&t.Load, loadTimeout}, {&t.Cleanup, cleanupTimeout}, {&t.Shutdown, shutdownTimeout}} {
		if *v.to <= 0 {
			*v.to = v.fallback
		}
	}
	return t
}
