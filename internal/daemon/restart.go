package daemon

import (
	"time"

	"berth/internal/grpcapi"
	"berth/internal/restart"
)

// openRestart makes the monitor of restart policies; it works when the tasks
// of an earlier daemon are recovered.
func (d *Daemon) openRestart() {
	d.optional(grpcapi.Plugin{
		Type: "io.containerd.monitor.container.v1", ID: "restart",
		Requires:     []string{"io.containerd.event.v1", "io.containerd.service.v1"},
		Capabilities: restart.Policies(),
	}, func() error {
		interval := time.Duration(d.cfg.Plugins.Restart.Interval)
		m := restart.New(restart.Options{DB: d.db, Tasks: d.tasks, Events: d.events, Interval: interval, Log: d.log})
		d.background.Go(func() {
			select {
			case <-d.adopted:
				m.Run(d.life)
			case <-d.life.Done():
			}
		})
		return nil
	})
}
