package daemon

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"

	"berth/internal/config"
	"berth/internal/grpcapi"
	"berth/internal/mount"
	"berth/internal/remote"
	"berth/internal/snapshot"
	"berth/internal/snapshot/blockfile"
	"berth/internal/snapshot/btrfs"
	"berth/internal/snapshot/erofs"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"

	"github.com/containerd/errdefs"
)

const snapshotterPlugin = "io.containerd.snapshotter.v1"

// openSnapshotters opens those that work on this host.
func (d *Daemon) openSnapshotters(ctx context.Context) error {
	d.snapshotters = make(map[string]snapshot.Backend)
	p := d.cfg.Plugins
	d.openSnapshotter("blockfile", p.Blockfile.RootPath, func(root string) (snapshot.Backend, error) {
		return orNil(blockfile.New(ctx, root, blockfile.Options{
			ScratchFile:     p.Blockfile.ScratchFile,
			RecreateScratch: p.Blockfile.RecreateScratch,
			FSType:          p.Blockfile.FSType,
			MountOptions:    p.Blockfile.MountOptions,
		}))
	})
	root := ""
	if p.Btrfs != nil {
		root = p.Btrfs.RootPath
	}
	d.openSnapshotter("btrfs", root, func(root string) (snapshot.Backend, error) { return orNil(btrfs.New(root, nil)) })
	d.openSnapshotter("erofs", p.Erofs.RootPath, func(root string) (snapshot.Backend, error) { return openErofs(root, p.Erofs) })
	d.openSnapshotter("native", p.Native.RootPath, func(root string) (snapshot.Backend, error) { return orNil(native.New(root, nil)) })
	d.openSnapshotter("overlayfs", p.Overlay.RootPath, func(root string) (snapshot.Backend, error) {
		return orNil(overlay.New(root, overlay.Options{
			UpperdirLabel: p.Overlay.UpperdirLabel,
			SyncRemove:    p.Overlay.SyncRemove,
			SlowChown:     p.Overlay.SlowChown,
			MountOptions:  p.Overlay.MountOptions,
		}))
	})
	for _, name := range []string{"devmapper", "zfs"} {
		d.available(grpcapi.Plugin{Type: snapshotterPlugin, ID: name, Platforms: hostPlatform()}, func() error {
			return fmt.Errorf("the %s snapshotter is not a part of this daemon yet: %w", name, errdefs.ErrNotImplemented)
		})
	}
	for name, p := range d.proxiesOf("snapshot", snapshotterPlugin) {
		d.proxyPlugin(name, snapshotterPlugin, func(conn *remote.Proxy) error {
			if _, ok := d.snapshotters[name]; ok {
				return fmt.Errorf("a snapshotter of that name is built in: %w", errdefs.ErrAlreadyExists)
			}
			d.snapshotters[name] = remote.NewSnapshots(conn, remote.Snapshotter{Name: name, Capabilities: p.Capabilities, Root: p.Exports["root"]})
			return nil
		})
	}
	return nil
}

// orNil makes no interface of a nil pointer.
func orNil[S snapshot.Backend](s S, err error) (snapshot.Backend, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openErofs(root string, c config.Erofs) (snapshot.Backend, error) {
	size, err := mount.ParseSize(cmp.Or(c.DefaultSize, "0"))
	if err != nil {
		return nil, fmt.Errorf("default_size: %w", err)
	}
	return orNil(erofs.New(root, erofs.Options{
		OverlayOptions: c.OvlOptions,
		Verity:         c.EnableFsverity,
		Immutable:      c.SetImmutable,
		DefaultSize:    size,
		DMVerity:       c.DmverityMode,
		Caches:         c.LayerContentCaches,
	}))
}

// openSnapshotter reports one that the host cannot have as skipped.
func (d *Daemon) openSnapshotter(name, root string, open func(root string) (snapshot.Backend, error)) {
	plugin := grpcapi.Plugin{
		Type: snapshotterPlugin, ID: name, Platforms: hostPlatform(),
		Exports: map[string]string{"root": cmp.Or(root, filepath.Join(d.cfg.Root, snapshotterDir+name))},
	}
	if name == "erofs" {
		plugin.Platforms = append(plugin.Platforms, erofsPlatform())
	}
	d.available(plugin, func() error {
		s, err := open(plugin.Exports["root"])
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
