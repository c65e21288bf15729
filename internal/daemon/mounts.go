package daemon

import (
	"context"
	"path/filepath"
	"time"

	"berth/internal/grpcapi"
	"berth/internal/mount"
	"berth/internal/mount/activation"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const mountsDir = "io.containerd.mount-manager.v1.bolt"

// openMounts makes the table of mounts that the daemon performs for clients.
func (d *Daemon) openMounts(context.Context) error {
	handlers := make(map[string]mount.Handler)
	d.optional(grpcapi.Plugin{Type: "io.containerd.mount-handler.v1", ID: "erofs", Platforms: hostPlatform()}, func() error {
		handlers["erofs"] = mount.Erofs()
		return nil
	})
	d.mounts = activation.New(filepath.Join(d.cfg.State, mountsDir), mount.NewActivator(handlers, d.cfg.Root))
	d.onClose(d.mounts.Close)
	d.garbage = make(chan struct{}, 1)
	d.background.Go(d.collectMounts)
	d.working(grpcapi.Plugin{Type: "io.containerd.mount-manager.v1", ID: "bolt", Requires: []string{"io.containerd.metadata.v1", "io.containerd.mount-handler.v1"}})
	return nil
}

// collected notes that garbage was collected, and with it perhaps what mounts
// were kept for.
func (d *Daemon) collected(took time.Duration, err error) {
	d.collections.Done(took, err)
	select {
	case d.garbage <- struct{}{}:
	default:
	}
}

// collectMounts ends the activations that nothing refers to, after each garbage
// collection: what has a record then is in use. It has a goroutine of its own, so that
// a mount that cannot be undone holds up nobody. A client that activates first and
// makes what refers to it later uses a lease.
func (d *Daemon) collectMounts() {
	select {
	case <-d.adopted: // all stores are open
	case <-d.life.Done():
		return
	}
	for {
		select {
		case <-d.garbage:
		case <-d.life.Done():
			return
		}
		if err := d.mounts.Collect(d.life, d.isReferred); err != nil && d.life.Err() == nil {
			d.log.Warn("some mounts that nobody uses stay", "error", err)
		}
	}
}

// isReferred tells whether any of the references exists.
func (d *Daemon) isReferred(ctx context.Context, namespace string, r activation.References) (bool, error) {
	s := d.db.Scope(namespace, "")
	exists := func(err error) (bool, error) {
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	var checks []func() error
	if r.Lease != "" {
		checks = append(checks, func() error {
			_, err := s.Leases().ListResources(ctx, r.Lease)
			return err
		})
	}
	for _, id := range r.Containers {
		checks = append(checks, func() error { _, err := s.Containers().Get(ctx, id); return err })
	}
	for _, name := range r.Images {
		checks = append(checks, func() error { _, err := s.Images().Get(ctx, name); return err })
	}
	for _, dgst := range r.Content {
		checks = append(checks, func() error { _, err := s.Content().Info(ctx, digest.Digest(dgst)); return err })
	}
	for _, sn := range r.Snapshots {
		checks = append(checks, func() error {
			store, err := s.Snapshotter(sn.Snapshotter)
			if err == nil {
				_, err = store.Stat(ctx, sn.Key)
			}
			return err
		})
	}
	for _, check := range checks {
		if ok, err := exists(check()); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}
