// Package blockfile is the snapshotter whose snapshots are images of a
// filesystem, each a copy of its parent's, mounted by loop devices. It works on
// every filesystem, and shares blocks where that can (reflinks).
//
// Its files are containerd's:
//
//	metadata.db       see package store
//	scratch           the empty filesystem that the first layers are copies of
//	snapshots/<id>    the image; a view of a parent has none of its own
package blockfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/store"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Options of New; the zero value is containerd's default.
type Options struct {
	// ScratchFile is copied to scratch, if that is not there.
	ScratchFile string
	// RecreateScratch copies it in any case.
	RecreateScratch bool
	// FSType is what the images hold; ext4 when empty.
	FSType string
	// MountOptions replace "loop", which is added if it is not among them.
	MountOptions []string
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Snapshotter is a snapshot.Backend, snapshot.Cleaner and snapshot.Syncer.
type Snapshotter struct {
	store.Base
	scratch string
	fstype  string
	options []string
}

// New opens the snapshotter whose files are below root. errdefs.ErrNotImplemented
// when there is no scratch file and nothing to make it of.
func New(ctx context.Context, root string, opts Options) (*Snapshotter, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FSType == "" {
		opts.FSType = "ext4"
	}
	b := &Snapshotter{scratch: filepath.Join(root, "scratch"), fstype: opts.FSType, options: slices.Clone(opts.MountOptions)}
	if !slices.Contains(b.options, "loop") {
		b.options = append(b.options, "loop")
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("blockfile snapshotter: %w", err)
	}
	if err := makeScratch(ctx, b.scratch, opts); err != nil {
		return nil, fmt.Errorf("blockfile snapshotter: %w", err)
	}
	s, err := store.Open(root, opts.Now)
	if err != nil {
		return nil, fmt.Errorf("blockfile snapshotter: %w", err)
	}
	b.Store = s
	return b, nil
}

func makeScratch(ctx context.Context, scratch string, opts Options) error {
	_, err := os.Stat(scratch)
	if err == nil && !opts.RecreateScratch {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if opts.ScratchFile == "" {
		return fmt.Errorf("no scratch file: set scratch_file to an image of an empty filesystem: %w", errdefs.ErrNotImplemented)
	}
	// Under another name until it is whole.
	draft := scratch + ".new"
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	if err := store.CopyFile(ctx, opts.ScratchFile, draft, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, scratch)
}

// Capabilities is snapshot.Backend. An image cannot be put onto a parent later.
func (b *Snapshotter) Capabilities() []string { return nil }

// Usage is snapshot.Snapshotter: what the image takes beyond its parent's.
//
// Differs from containerd: there it is the difference of the images' lengths,
// which is nothing mostly.
func (b *Snapshotter) Usage(_ context.Context, key string) (object.SnapshotUsage, error) {
	snap, err := b.Store.Get(key)
	if err != nil || snap.Info.Kind == object.SnapshotView {
		return object.SnapshotUsage{}, err
	}
	usage := snap.Usage
	if snap.Info.Kind == object.SnapshotActive {
		if usage, err = b.measure(snap.ID); err != nil {
			return object.SnapshotUsage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
		}
	}
	if snap.Info.Parent != "" {
		parent, err := b.Store.Get(snap.Info.Parent)
		if err != nil {
			return object.SnapshotUsage{}, err
		}
		usage.Size = max(usage.Size-parent.Usage.Size, 0)
	}
	return usage, nil
}

// measure counts all of an image: records hold that, as containerd's do.
func (b *Snapshotter) measure(id string) (object.SnapshotUsage, error) {
	var st unix.Stat_t
	if err := unix.Stat(b.Store.Dir(id), &st); err != nil {
		return object.SnapshotUsage{}, err
	}
	return object.SnapshotUsage{Inodes: 1, Size: st.Blocks * 512}, nil
}

// Prepare is snapshot.Snapshotter.
func (b *Snapshotter) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return b.create(ctx, object.SnapshotActive, key, parent, labels)
}

// View is snapshot.Snapshotter.
func (b *Snapshotter) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return b.create(ctx, object.SnapshotView, key, parent, labels)
}

func (b *Snapshotter) create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	snap, err := b.Store.Create(ctx, kind, key, parent, labels, func(path string, snap store.Snapshot) error {
		if len(snap.ParentIDs) == 0 {
			return store.CopyFile(ctx, b.scratch, path, 0o600)
		}
		if kind == object.SnapshotView {
			return nil
		}
		return store.CopyFile(ctx, b.Store.Dir(snap.ParentIDs[0]), path, 0o600)
	})
	if err != nil {
		return nil, err
	}
	return b.mounts(snap), nil
}

// Mounts is snapshot.Snapshotter.
func (b *Snapshotter) Mounts(_ context.Context, key string) ([]object.Mount, error) {
	snap, err := b.Store.GetMountable(key)
	if err != nil {
		return nil, err
	}
	return b.mounts(snap), nil
}

func (b *Snapshotter) mounts(snap store.Snapshot) []object.Mount {
	id, mode := snap.ID, "rw"
	if snap.Info.Kind == object.SnapshotView {
		mode = "ro"
		if len(snap.ParentIDs) > 0 {
			id = snap.ParentIDs[0]
		}
	}
	return []object.Mount{{Type: b.fstype, Source: b.Store.Dir(id), Options: append(slices.Clone(b.options), mode)}}
}

// Commit is snapshot.Snapshotter.
func (b *Snapshotter) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	return b.Store.Commit(ctx, name, key, opts, false, func(id string) (object.SnapshotUsage, error) {
		// Copies will be made of the image as it is on disk.
		if err := mount.Released(ctx, b.Store.Dir(id)); err != nil {
			return object.SnapshotUsage{}, err
		}
		return b.measure(id)
	})
}

// Remove is snapshot.Snapshotter. An image that cannot be deleted is left to
// Cleanup: the snapshot is gone all the same.
func (b *Snapshotter) Remove(ctx context.Context, key string) error {
	id, err := b.Store.Remove(ctx, key)
	if err == nil {
		_ = b.Store.Delete(id)
	}
	return err
}
