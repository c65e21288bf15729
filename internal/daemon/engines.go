package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/internal/config"
	"berth/internal/diff"
	"berth/internal/grpcapi"
	"berth/internal/meta"
	"berth/internal/registry"
	"berth/internal/snapshot"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"
	"berth/internal/transfer"
	"berth/internal/transfer/verify"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// defaultSnapshotter is what clients get that name none.
const defaultSnapshotter = "overlayfs"

// shimTempDir gives shims the TMPDIR that the daemon was started with: its own
// is for its temporary mounts.
func (d *Daemon) shimTempDir() string { return "TMPDIR=" + d.tempDir }

// openSnapshotters opens those that work on this host.
func (d *Daemon) openSnapshotters(context.Context) error {
	d.snapshotters = make(map[string]snapshot.Backend)
	p := d.cfg.Plugins
	d.openSnapshotter("native", p.Native.RootPath, func(root string) (snapshot.Backend, error) {
		return native.New(root, nil)
	})
	d.openSnapshotter("overlayfs", p.Overlay.RootPath, func(root string) (snapshot.Backend, error) {
		return overlay.New(root, overlay.Options{
			UpperdirLabel: p.Overlay.UpperdirLabel,
			SyncRemove:    p.Overlay.SyncRemove,
			SlowChown:     p.Overlay.SlowChown,
			MountOptions:  p.Overlay.MountOptions,
		})
	})
	return nil
}

func (d *Daemon) openSnapshotter(name, root string, open func(root string) (snapshot.Backend, error)) {
	if root == "" {
		root = filepath.Join(d.cfg.Root, snapshotterDir+name)
	}
	plugin := grpcapi.Plugin{
		Type: "io.containerd.snapshotter.v1", ID: name, Platforms: hostPlatform(),
		Exports: map[string]string{"root": root},
	}
	d.optional(plugin, func() error {
		s, err := open(root)
		if err != nil {
			return err
		}
		d.snapshotters[name] = s
		d.onClose(s.Close)
		return nil
	})
	if s, ok := d.snapshotters[name]; ok {
		d.plugins[len(d.plugins)-1].Capabilities = s.Capabilities()
	}
}

func gcOptions(cfg *config.Config) *meta.GCOptions {
	gc := cfg.Plugins.GC
	return &meta.GCOptions{
		PauseThreshold:    gc.PauseThreshold,
		DeletionThreshold: gc.DeletionThreshold,
		MutationThreshold: gc.MutationThreshold,
		ScheduleDelay:     time.Duration(gc.ScheduleDelay),
		StartupDelay:      time.Duration(gc.StartupDelay),
	}
}

// reportDamage tells what the start of the database found, by name.
func (d *Daemon) reportDamage(r meta.Report) {
	for _, name := range r.Unreadable {
		d.log.Error("a record cannot be read", "record", name)
	}
	if r.Undone != 0 {
		d.log.Info("the last transaction of the metadata database was cut short by a power cut and is undone; nobody was told that it had succeeded", "transaction", r.Undone)
	}
	if r.Damage == nil {
		return
	}
	d.log.Error("the metadata database was damaged and has been rebuilt", "error", r.Damage, "damaged file", r.Kept, "from", r.Source,
		"restored", len(r.Restored), "adopted", len(r.Adopted), "lost", len(r.Lost), "bad pages", r.BadPages)
	for what, names := range map[string][]string{"restored from a backup, perhaps old": r.Restored, "adopted from its store": r.Adopted, "lost": r.Lost} {
		for _, name := range names {
			d.log.Warn("after the damage of the database: "+what, "record", name)
		}
	}
}

func (d *Daemon) openTransfer(context.Context) error {
	d.working(grpcapi.Plugin{
		Type: "io.containerd.differ.v1", ID: "walking", Platforms: hostPlatform(),
		Requires: []string{"io.containerd.metadata.v1"},
	})
	t := d.cfg.Plugins.Transfer
	return d.essential(grpcapi.Plugin{
		Type: "io.containerd.transfer.v1", ID: "local",
		Requires: []string{"io.containerd.lease.v1", "io.containerd.metadata.v1", "io.containerd.differ.v1", "io.containerd.snapshotter.v1"},
	}, func() error {
		name, err := d.transferSnapshotter(t.Unpack)
		if err != nil {
			return err
		}
		d.transfer = transfer.New(transfer.Options{
			Scope:        d.scope,
			Differ:       diff.NewWalking(d.content),
			Snapshotter:  name,
			MaxDownloads: t.MaxConcurrentDownloads,
			MaxUploads:   t.MaxConcurrentUploadedLayers,
			MaxUnpacks:   t.MaxConcurrentUnpacks,
			TempDir:      os.TempDir(),
			Verify:       d.verifier(),
		})
		return nil
	})
}

// verifier asks the image verifiers that are configured.
func (d *Daemon) verifier() func(context.Context, string, ispec.Descriptor) error {
	c := d.cfg.Plugins.Verifier
	dir := &verify.Directory{Path: c.BinDir, Max: c.MaxVerifiers, Timeout: time.Duration(c.PerVerifierTimeout), Log: d.log}
	var ask func(context.Context, string, ispec.Descriptor) error
	d.optional(grpcapi.Plugin{Type: "io.containerd.image-verifier.v1", ID: "bindir"}, func() error {
		ask = dir.Verify
		return nil
	})
	return ask
}

// registryOptions are what all remotes of the daemon share.
func (d *Daemon) registryOptions() registry.Options {
	t := d.cfg.Plugins.Transfer
	opts := registry.Options{HostDir: t.ConfigPath, Network: registry.NewNetwork(), Connections: t.MaxConcurrentDownloads}
	if n := t.ConcurrentLayerFetchBuffer; n > 512 { // Compat: up to that it is off
		opts.Chunk = int64(n)
	}
	return opts
}

// transferSnapshotter is the snapshotter of the first unpack configuration
// that works here.
func (d *Daemon) transferSnapshotter(unpacks []config.Unpack) (string, error) {
	for _, u := range unpacks {
		if _, ok := d.snapshotters[u.Snapshotter]; ok {
			return u.Snapshotter, nil
		}
		if !u.Optional {
			return "", fmt.Errorf("unpack_config: snapshotter %q: %w; there are %v", u.Snapshotter, errdefs.ErrNotFound, slices.Sorted(maps.Keys(d.snapshotters)))
		}
	}
	if _, ok := d.snapshotters[defaultSnapshotter]; ok {
		return defaultSnapshotter, nil
	}
	return "native", nil
}

// scope is the stores that a transfer sees.
func (d *Daemon) scope(namespace, lease string) transfer.Stores {
	s := d.db.Scope(namespace, lease)
	return transfer.Stores{
		Namespace:   namespace,
		Images:      s.Images(),
		Leases:      s.Leases(),
		Content:     s.Content(),
		Snapshotter: s.Snapshotter,
	}
}

// differ reads and writes the blobs of a scope.
func (d *Daemon) differ(s grpcapi.Scope) diff.Applier {
	return diff.NewWalking(d.db.Scope(s.Namespace, s.Lease).Content())
}
