package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"berth/internal/config"
	"berth/internal/grpcapi"
	"berth/internal/meta"
	"berth/internal/registry"
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
	t := d.cfg.Plugins.Transfer
	return d.essential(grpcapi.Plugin{
		Type: "io.containerd.transfer.v1", ID: "local",
		Requires: []string{"io.containerd.lease.v1", "io.containerd.metadata.v1", "io.containerd.differ.v1", "io.containerd.snapshotter.v1"},
	}, func() error {
		name, differ, err := d.transferSnapshotter(t.Unpack)
		if err != nil {
			return err
		}
		d.unpackDiffer = differ
		d.transfer = transfer.New(transfer.Options{
			Scope:        d.scope,
			Differ:       unpacker{d.walking(d.content), d},
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

// registryOptions are what all remotes of the daemon share, as the newest
// configuration has them.
func (d *Daemon) registryOptions() func() registry.Options {
	network := registry.NewNetwork()
	return func() registry.Options {
		t := d.live.Load().Plugins.Transfer
		opts := registry.Options{HostDir: t.ConfigPath, Network: network, Connections: t.MaxConcurrentDownloads}
		if n := t.ConcurrentLayerFetchBuffer; n > 512 { // Compat: up to that it is off
			opts.Chunk = int64(n)
		}
		return opts
	}
}

// transferSnapshotter is the snapshotter of the first unpack configuration
// that works here, and its differ: empty for the usual one.
func (d *Daemon) transferSnapshotter(unpacks []config.Unpack) (name, differ string, err error) {
	for _, u := range unpacks {
		err := d.hasDiffer(u.Differ)
		if _, ok := d.snapshotters[u.Snapshotter]; !ok {
			err = fmt.Errorf("snapshotter %q: %w; there are %v", u.Snapshotter, errdefs.ErrNotFound, slices.Sorted(maps.Keys(d.snapshotters)))
		}
		if err == nil {
			return u.Snapshotter, u.Differ, nil
		}
		if !u.Optional {
			return "", "", fmt.Errorf("unpack_config: %w", err)
		}
	}
	if _, ok := d.snapshotters[defaultSnapshotter]; ok {
		return defaultSnapshotter, "", nil
	}
	return "native", "", nil
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
		Applier:     d.unpackApplier(namespace, lease),
	}
}
