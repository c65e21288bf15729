// Package btrfs is the snapshotter whose snapshots are subvolumes of a btrfs,
// which share what they have in common.
//
// Its files are containerd's:
//
//	metadata.db       see package store
//	active/<id>       the subvolume of an active snapshot
//	view/<id>         that of a view, read-only
//	snapshots/<id>    that of a committed one, read-only
//
// A subvolume is there before the record that needs it is committed: a commit
// snapshots active/<id> as snapshots/<id> first, and deletes active/<id> when
// the record says committed. What a crash leaves is a subvolume of another kind
// than the record's, or one without a record; Cleanup deletes both.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/store"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Snapshotter is a snapshot.Backend, snapshot.Cleaner and snapshot.Syncer.
type Snapshotter struct {
	store.Base
	device string // of the filesystem that root is on
}

// New opens the snapshotter whose files are below root. now is the clock,
// time.Now when nil. errdefs.ErrNotImplemented when root is not on a btrfs.
func New(root string, now func() time.Time) (*Snapshotter, error) {
	if now == nil {
		now = time.Now
	}
	device, err := prepareRoot(root)
	if err != nil {
		return nil, fmt.Errorf("btrfs snapshotter: %w", err)
	}
	s, err := store.Open(root, now)
	if err != nil {
		return nil, fmt.Errorf("btrfs snapshotter: %w", err)
	}
	return &Snapshotter{store.Base{Store: s}, device}, nil
}

// prepareRoot makes the directories. A root that is on no btrfs stays as it is.
func prepareRoot(root string) (device string, err error) {
	above := root
	for {
		if _, err := os.Stat(above); !errors.Is(err, os.ErrNotExist) || above == filepath.Dir(above) {
			break
		}
		above = filepath.Dir(above)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(above, &st); err != nil {
		return "", fmt.Errorf("%s: %w", above, err)
	}
	if st.Type != superMagic {
		return "", fmt.Errorf("%s is not on a btrfs: %w", root, errdefs.ErrNotImplemented)
	}
	for _, dir := range []string{"active", "view", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return "", err
	}
	return deviceOf(root)
}

// deviceOf is the source of the mount that path is in.
func deviceOf(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return "", err
	}
	var best *mountinfo.Info
	for _, info := range infos { // of those at one place the last is on top
		if best == nil || len(info.Mountpoint) >= len(best.Mountpoint) {
			best = info
		}
	}
	if best == nil || best.FSType != "btrfs" {
		return "", fmt.Errorf("no btrfs mount holds %s: %w", path, errdefs.ErrNotImplemented)
	}
	return best.Source, nil
}

func (b *Snapshotter) dir(kind object.SnapshotKind, id string) string {
	sub := "snapshots"
	switch kind {
	case object.SnapshotActive:
		sub = "active"
	case object.SnapshotView:
		sub = "view"
	}
	return filepath.Join(b.Root(), sub, id)
}

// Capabilities is snapshot.Backend.
func (b *Snapshotter) Capabilities() []string { return nil }

// Cleanup is snapshot.Cleaner.
func (b *Snapshotter) Cleanup(ctx context.Context) error {
	var places []store.Place
	for _, kind := range []object.SnapshotKind{object.SnapshotActive, object.SnapshotView, object.SnapshotCommitted} {
		places = append(places, store.Place{Dir: b.dir(kind, ""), Kinds: []object.SnapshotKind{kind}, Remove: deleteSubvolume})
	}
	return b.Store.Sweep(ctx, places...)
}

// Usage is snapshot.Snapshotter: what has changed since the parent.
func (b *Snapshotter) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	snap, err := b.Store.Get(key)
	if err != nil {
		return object.SnapshotUsage{}, err
	}
	switch snap.Info.Kind {
	case object.SnapshotView:
		return object.SnapshotUsage{}, nil
	case object.SnapshotCommitted:
		return snap.Usage, nil
	}
	usage, err := b.measure(ctx, snap)
	if err != nil {
		return object.SnapshotUsage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return usage, nil
}

func (b *Snapshotter) measure(ctx context.Context, snap store.Snapshot) (object.SnapshotUsage, error) {
	base := ""
	if len(snap.ParentIDs) > 0 {
		base = b.dir(object.SnapshotCommitted, snap.ParentIDs[0])
	}
	return store.MeasureSince(ctx, b.dir(object.SnapshotActive, snap.ID), base)
}

// Prepare is snapshot.Snapshotter.
func (b *Snapshotter) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return b.create(ctx, object.SnapshotActive, key, parent, labels)
}

// View is snapshot.Snapshotter.
func (b *Snapshotter) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return b.create(ctx, object.SnapshotView, key, parent, labels)
}

func (b *Snapshotter) create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string) (mounts []object.Mount, err error) {
	made := ""
	snap, err := b.Store.Create(ctx, kind, key, parent, labels, func(_ string, snap store.Snapshot) error {
		path := b.dir(kind, snap.ID)
		// One of that identifier is of a crash before its record.
		if err := deleteSubvolume(path); err != nil {
			return err
		}
		made = path
		if len(snap.ParentIDs) == 0 {
			return createSubvolume(path)
		}
		return snapshotSubvolume(path, b.dir(object.SnapshotCommitted, snap.ParentIDs[0]), kind == object.SnapshotView)
	})
	if err != nil {
		if made != "" {
			err = errors.Join(err, deleteSubvolume(made))
		}
		return nil, err
	}
	return b.mounts(snap)
}

// Mounts is snapshot.Snapshotter.
func (b *Snapshotter) Mounts(_ context.Context, key string) ([]object.Mount, error) {
	snap, err := b.Store.GetMountable(key)
	if err != nil {
		return nil, err
	}
	return b.mounts(snap)
}

func (b *Snapshotter) mounts(snap store.Snapshot) ([]object.Mount, error) {
	id, err := subvolumeID(b.dir(snap.Info.Kind, snap.ID))
	if err != nil {
		return nil, err
	}
	options := []string{"subvolid=" + strconv.FormatUint(id, 10)}
	if snap.Info.Kind == object.SnapshotView {
		options = append(options, "ro")
	}
	return []object.Mount{{Type: "btrfs", Source: b.device, Options: options}}, nil
}

// Commit is snapshot.Snapshotter.
func (b *Snapshotter) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	sealed := ""
	err := b.Store.Commit(ctx, name, key, opts, false, func(id string) (object.SnapshotUsage, error) {
		snap, err := b.Store.Get(key)
		if err != nil {
			return object.SnapshotUsage{}, err
		}
		usage, err := b.measure(ctx, snap)
		if err != nil {
			return usage, err
		}
		target := b.dir(object.SnapshotCommitted, id)
		if err := deleteSubvolume(target); err != nil { // of a commit that failed
			return usage, err
		}
		if err := snapshotSubvolume(target, b.dir(object.SnapshotActive, id), true); err != nil {
			return usage, err
		}
		sealed = id
		return usage, nil
	})
	if err == nil {
		_ = deleteSubvolume(b.dir(object.SnapshotActive, sealed)) // or Cleanup does
	}
	return err
}

// Remove is snapshot.Snapshotter. A subvolume that cannot be deleted is left to
// Cleanup: the snapshot is gone all the same.
func (b *Snapshotter) Remove(ctx context.Context, key string) error {
	id, err := b.Store.Remove(ctx, key)
	if err != nil {
		return err
	}
	for _, kind := range []object.SnapshotKind{object.SnapshotActive, object.SnapshotView, object.SnapshotCommitted} {
		_ = deleteSubvolume(b.dir(kind, id))
	}
	return nil
}
