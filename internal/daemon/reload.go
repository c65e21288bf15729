package daemon

import (
	"fmt"
	"slices"
	"strings"

	"berth/internal/config"
	"berth/internal/task"

	"golang.org/x/sys/unix"
)

// reloadable are the keys that take effect without a restart; a final dot means
// all of a table.
func reloadable() []string {
	return []string{
		"debug.level",
		"imports",
		"timeouts.",
		"stream_processors.",
		"plugins.'io.containerd.gc.v1.scheduler'.",
		"plugins.'io.containerd.transfer.v1.local'.config_path",
		"plugins.'io.containerd.transfer.v1.local'.concurrent_layer_fetch_buffer",
	}
}

// Reload lets a configuration take effect as far as it can while the daemon
// runs. It returns the keys that have changed and took effect, and those that
// wait for a restart.
func (d *Daemon) Reload(cfg *config.Config) (now, later []string) {
	for _, key := range config.Changes(d.live.Load(), cfg) {
		if slices.ContainsFunc(reloadable(), func(known string) bool {
			return key == known || strings.HasSuffix(known, ".") && strings.HasPrefix(key, known)
		}) {
			now = append(now, key)
		} else {
			later = append(later, key)
		}
	}
	d.live.Store(cfg)
	d.db.SetGC(*gcOptions(cfg))
	return now, later
}

// taskTimeouts are those of the newest configuration.
func (d *Daemon) taskTimeouts() task.Timeouts {
	c := d.live.Load()
	return task.Timeouts{
		State:    c.Timeout(config.TimeoutTaskState),
		Load:     c.Timeout(config.TimeoutShimLoad),
		Cleanup:  c.Timeout(config.TimeoutShimCleanup),
		Shutdown: c.Timeout(config.TimeoutShimShutdown),
	}
}

// Reloading tells systemd that a configuration is being read; the result that
// the daemon is ready again.
func Reloading() (ready func()) {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	_ = notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
	return func() { _ = notify("READY=1") }
}
