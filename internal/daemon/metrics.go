package daemon

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"time"

	"berth/internal/config"
	"berth/internal/grpcapi"
	"berth/internal/metrics"
	"berth/internal/version"

	"github.com/containerd/errdefs"
)

// openMetrics reports what counts, which only does when there is a server to tell
// of it; containers tells whether their cgroups are to be read then.
func (d *Daemon) openMetrics() (containers bool) {
	d.working(grpcapi.Plugin{Type: "io.containerd.metrics.v1", ID: "grpc-prometheus"})
	d.optional(grpcapi.Plugin{Type: "io.containerd.monitor.task.v1", ID: "cgroups", Platforms: hostPlatform(), Requires: []string{"io.containerd.event.v1"}}, func() error {
		containers = !d.cfg.Plugins.Cgroups.NoPrometheus
		return nil
	})
	return containers
}

// metricsServer serves /v1/metrics.
func (d *Daemon) metricsServer(l net.Listener, containers bool) *httpServer {
	d.calls = metrics.NewCalls(d.cfg.Plugins.Metrics.GRPCHistogram)
	collectors := []metrics.Collect{
		metrics.Build(version.Version, version.Revision()),
		d.collections.Collect,
		d.calls.Collect,
		metrics.GoRuntime,
		metrics.Process,
	}
	if containers {
		collectors = append(collectors, (&metrics.Containers{
			List:    d.runningContainers,
			Stats:   d.tasks.Stats,
			Timeout: d.statsTimeout,
			Log:     d.log,
		}).Collect)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/metrics", metrics.NewHandler(collectors...))
	return newHTTPServer("metrics", l, mux)
}

// statsTimeout is that of the newest configuration; without one it is the default,
// for a scrape that waits for nobody has no containers.
func (d *Daemon) statsTimeout() time.Duration {
	return cmp.Or(d.live.Load().Timeout(config.TimeoutShimStats), config.Default().Timeout(config.TimeoutShimStats))
}

// runningContainers names the tasks and their runtimes, without asking a shim.
func (d *Daemon) runningContainers(ctx context.Context) ([]metrics.Container, error) {
	var list []metrics.Container
	for _, t := range d.tasks.Live() {
		c, err := d.db.Scope(t.Namespace, "").Containers().Get(ctx, t.ID)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		list = append(list, metrics.Container{Namespace: t.Namespace, ID: t.ID, Runtime: c.Runtime.Name})
	}
	return list, nil
}
