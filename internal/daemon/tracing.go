package daemon

import (
	"context"
	"os"

	"berth/internal/grpcapi"
	"berth/internal/trace"
	"berth/internal/trace/otlp"
	"berth/internal/version"
)

// openTracing begins to send spans where the environment says so.
func (d *Daemon) openTracing(context.Context) error {
	settings, err := otlp.FromEnv(os.Getenv, version.Version)
	asked := settings != nil || err != nil
	d.asked(grpcapi.Plugin{Type: "io.containerd.tracing.processor.v1", ID: "otlp"}, asked, func() error {
		if err != nil {
			return err
		}
		e, err := otlp.New(settings, d.log)
		if err != nil {
			return err
		}
		d.onClose(e.Close)
		d.tracer = e.Tracer()
		d.life = trace.With(d.life, d.tracer)
		return nil
	})
	d.asked(grpcapi.Plugin{Type: "io.containerd.internal.v1", ID: "tracing", Requires: []string{"io.containerd.tracing.processor.v1"}}, asked, func() error { return err })
	return nil
}
