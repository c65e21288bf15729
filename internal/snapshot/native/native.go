// Package native is the snapshotter that copies: a snapshot is a directory
// with all its files, which a bind mount shows. It works on every filesystem,
// and shares blocks between snapshots where the filesystem can (reflinks).
//
// Its files are containerd's:
//
//	metadata.db       see package store
//	snapshots/<id>    the files; a view of a parent has none of its own
package native

import (
	"context"
	"fmt"
	"os"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/store"
)

// Snapshotter is a snapshot.Backend, snapshot.Cleaner and snapshot.Syncer.
type Snapshotter struct{ store.Base }

// New opens the snapshotter whose files are below root. now is the clock,
// time.Now when nil.
func New(root string, now func() time.Time) (*Snapshotter, error) {
	if now == nil {
		now = time.Now
	}
	s, err := store.Open(root, now)
	if err != nil {
		return nil, fmt.Errorf("native snapshotter: %w", err)
	}
	return &Snapshotter{store.Base{Store: s}}, nil
}

// Capabilities is snapshot.Backend. A copy cannot be put onto a parent later.
func (n *Snapshotter) Capabilities() []string { return nil }

// Usage is snapshot.Snapshotter. It counts the whole copy.
func (n *Snapshotter) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	return n.Store.Usage(key, n.measure(ctx))
}

func (n *Snapshotter) measure(ctx context.Context) func(id string) (object.SnapshotUsage, error) {
	return func(id string) (object.SnapshotUsage, error) { return store.Measure(ctx, n.Store.Dir(id)) }
}

// Prepare is snapshot.Snapshotter.
func (n *Snapshotter) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return n.create(ctx, object.SnapshotActive, key, parent, labels)
}

// View is snapshot.Snapshotter.
func (n *Snapshotter) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return n.create(ctx, object.SnapshotView, key, parent, labels)
}

func (n *Snapshotter) create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	snap, err := n.Store.Create(ctx, kind, key, parent, labels, func(dir string, snap store.Snapshot) error {
		if kind == object.SnapshotView && len(snap.ParentIDs) > 0 {
			return nil
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if len(snap.ParentIDs) == 0 {
			return os.Chmod(dir, 0o755)
		}
		return store.CopyTree(ctx, n.Store.Dir(snap.ParentIDs[0]), dir)
	})
	if err != nil {
		return nil, err
	}
	return n.mounts(snap), nil
}

// Mounts is snapshot.Snapshotter.
func (n *Snapshotter) Mounts(ctx context.Context, key string) ([]object.Mount, error) {
	snap, err := n.Store.GetMountable(key)
	if err != nil {
		return nil, err
	}
	return n.mounts(snap), nil
}

func (n *Snapshotter) mounts(snap store.Snapshot) []object.Mount {
	id, mode := snap.ID, "rw"
	if snap.Info.Kind == object.SnapshotView {
		mode = "ro"
		if len(snap.ParentIDs) > 0 {
			id = snap.ParentIDs[0]
		}
	}
	return []object.Mount{{Type: "bind", Source: n.Store.Dir(id), Options: []string{"rbind", mode}}}
}

// Commit is snapshot.Snapshotter.
func (n *Snapshotter) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	return n.Store.Commit(ctx, name, key, opts, false, n.measure(ctx))
}

// Remove is snapshot.Snapshotter. A directory that cannot be deleted is left to
// Cleanup: the snapshot is gone all the same.
func (n *Snapshotter) Remove(ctx context.Context, key string) error {
	id, err := n.Store.Remove(ctx, key)
	if err == nil {
		_ = n.Store.Delete(id)
	}
	return err
}
