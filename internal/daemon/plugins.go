package daemon

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"berth/internal/grpcapi"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// essential starts a component that the daemon cannot be without.
func (d *Daemon) essential(p grpcapi.Plugin, start func() error) error {
	if d.cfg.Disabled(p.Type + "." + p.ID) {
		d.log.Warn("a part of the daemon cannot be disabled", "plugin", p.Type+"."+p.ID)
	}
	if err := start(); err != nil {
		return err
	}
	d.working(p)
	return nil
}

// optional starts a component whose failure is reported by introspection, and
// stops the daemon only when the configuration requires it (see required).
func (d *Daemon) optional(p grpcapi.Plugin, start func() error) {
	name := p.Type + "." + p.ID
	if d.cfg.Disabled(name) {
		d.log.Info("disabled by the configuration", "plugin", name)
		return
	}
	if err := start(); errors.Is(err, errSkipped) {
		d.log.Debug("skipped", "plugin", name, "reason", err)
		p.Err = err
	} else if err != nil {
		d.log.Warn("part of the daemon does not work", "plugin", name, "error", err)
		p.Err = err
	}
	d.plugins = append(d.plugins, p)
}

// available is optional for what a host may not have: errdefs.ErrNotImplemented
// says that it is skipped, and why.
func (d *Daemon) available(p grpcapi.Plugin, start func() error) {
	d.optional(p, func() error {
		err := start()
		if errdefs.IsNotImplemented(err) {
			err = fmt.Errorf("%w: %w", err, errSkipped)
		}
		return err
	})
}

// working reports components that are there.
func (d *Daemon) working(ps ...grpcapi.Plugin) { d.plugins = append(d.plugins, ps...) }

// required checks what the configuration demands.
func (d *Daemon) required() error {
	state := make(map[string]error)
	for _, p := range d.plugins {
		state[p.Type+"."+p.ID] = p.Err
	}
	for _, name := range d.cfg.RequiredPlugins {
		err, ok := state[name]
		if !ok {
			return fmt.Errorf("required plugin %s: this daemon has none of that name", name)
		}
		if err != nil {
			return fmt.Errorf("required plugin %s: %w", name, err)
		}
	}
	return nil
}

// taskPlatforms are those that the configuration says containers can be of.
func (d *Daemon) taskPlatforms() []ispec.Platform {
	ps, err := platforms.ParseAll(d.cfg.Plugins.Task.Platforms)
	if err != nil || len(ps) == 0 {
		return hostPlatform()
	}
	return ps
}

func hostPlatform() []ispec.Platform { return []ispec.Platform{platforms.DefaultSpec()} }

// erofsPlatform is of images whose layers are EROFS images.
func erofsPlatform() ispec.Platform {
	p := platforms.DefaultSpec()
	p.OSFeatures = []string{"erofs"}
	return p
}

func (d *Daemon) gcPlugin() grpcapi.Plugin {
	gc := d.cfg.Plugins.GC
	return grpcapi.Plugin{
		Type: "io.containerd.gc.v1", ID: "scheduler", Requires: []string{"io.containerd.metadata.v1"},
		Exports: map[string]string{
			"PauseThreshold":    strconv.FormatFloat(gc.PauseThreshold, 'g', -1, 64),
			"DeletionThreshold": strconv.Itoa(gc.DeletionThreshold),
			"MutationThreshold": strconv.Itoa(gc.MutationThreshold),
			"ScheduleDelay":     time.Duration(gc.ScheduleDelay).String(),
		},
	}
}

// services are the parts that are only calls to engines: containerd has two
// plugins for most, the gRPC service and the local one behind it.
func services() []grpcapi.Plugin {
	local := func(id string, requires ...string) grpcapi.Plugin {
		return grpcapi.Plugin{Type: "io.containerd.service.v1", ID: id, Requires: requires}
	}
	remote := func(id string, requires ...string) grpcapi.Plugin {
		return grpcapi.Plugin{Type: "io.containerd.grpc.v1", ID: id, Requires: requires}
	}
	const (
		metadata = "io.containerd.metadata.v1"
		event    = "io.containerd.event.v1"
		service  = "io.containerd.service.v1"
		gc       = "io.containerd.gc.v1"
	)
	return []grpcapi.Plugin{
		local("containers-service", event, metadata),
		local("content-service", metadata),
		local("diff-service", "io.containerd.differ.v1"),
		local("images-service", metadata, gc),
		local("introspection-service"),
		local("namespaces-service", event, metadata),
		local("snapshots-service", metadata),
		local("tasks-service", event, metadata, "io.containerd.runtime.v2"),
		remote("containers", service),
		remote("content", service),
		remote("diff", service),
		remote("events", event),
		remote("images", service),
		remote("introspection", service),
		{Type: "io.containerd.lease.v1", ID: "manager", Requires: []string{metadata, gc}},
		remote("leases", "io.containerd.lease.v1"),
		remote("mounts", "io.containerd.mount-manager.v1"),
		remote("namespaces", service),
		{Type: "io.containerd.sandbox.store.v1", ID: "local", Requires: []string{event, metadata}},
		remote("sandboxes", "io.containerd.sandbox.store.v1"),
		remote("sandbox-controllers", "io.containerd.sandbox.controller.v1", event),
		remote("snapshots", service),
		{Type: "io.containerd.streaming.v1", ID: "manager", Requires: []string{metadata}},
		remote("streaming", "io.containerd.streaming.v1"),
		remote("tasks", service),
		remote("transfer", "io.containerd.transfer.v1", "io.containerd.streaming.v1"),
		{Type: "io.containerd.warning.v1", ID: "deprecations"},
		remote("version"),
		remote("healthcheck"),
	}
}
