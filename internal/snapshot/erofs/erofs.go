// Package erofs is the snapshotter whose committed layers are images of the
// read-only filesystem erofs, which overlayfs stacks.
//
// Its files are containerd's:
//
//	metadata.db                 see package store
//	snapshots/<id>/fs           upper directory of an active snapshot; empty of
//	                            others, but for its owner
//	snapshots/<id>/work         overlayfs' scratch directory, of an active one
//	snapshots/<id>/.erofslayer  tells differs that layer.erofs may be written
//	snapshots/<id>/rwlayer.img  with DefaultSize: an ext4 image that holds upper
//	                            and work, made at the first mount
//	snapshots/<id>/layer.erofs  the layer: written by the erofs differ, or made
//	                            of what the snapshot has when it is committed
//	snapshots/<id>/fsmeta.erofs of a layer: the metadata of it and all below it
//	                            in one, their images are its devices
//
// layer.erofs is made under another name and renamed, before the record says
// committed; the files it was made of are deleted after that. What a crash
// leaves of them, Cleanup deletes.
package erofs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/overlay"
	"berth/internal/snapshot/store"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Options of New; the zero value is containerd's default.
type Options struct {
	// OverlayOptions are added to overlay mounts.
	OverlayOptions []string
	// Verity seals layers by fs-verity, and refuses one that is not sealed.
	Verity bool
	// Immutable gives layers the immutable attribute.
	Immutable bool
	// DefaultSize, in bytes, makes writable layers images of that size; 0 makes
	// them directories.
	DefaultSize int64
	// DMVerity is auto (use a layer's dm-verity data if there are any), on or
	// off; auto when empty.
	DMVerity string
	// Caches are directories of layers that were made before, as
	// <algorithm>/<first two digits>/<digest>.erofs by their diff IDs. Such a
	// layer is used where it is, and never changed; it must outlive the
	// snapshots. A directory that is not there has no layers.
	Caches []string
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Snapshotter is a snapshot.Backend, snapshot.Cleaner and snapshot.Syncer.
type Snapshotter struct {
	store.Base
	opts     Options
	remapIDs func() bool
}

// New opens the snapshotter whose files are below root. errdefs.ErrNotImplemented
// when the kernel has no erofs, or lacks what the options ask for.
func New(root string, opts Options) (*Snapshotter, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	e := &Snapshotter{opts: opts}
	if err := e.check(root); err != nil {
		return nil, fmt.Errorf("erofs snapshotter: %w", err)
	}
	s, err := store.Open(root, opts.Now)
	if err != nil {
		return nil, fmt.Errorf("erofs snapshotter: %w", err)
	}
	e.Store = s
	e.remapIDs = sync.OnceValue(func() bool { return overlay.CanRemap(root) })
	return e, nil
}

func (e *Snapshotter) check(root string) error {
	switch e.opts.DMVerity {
	case "", "auto", "off":
	case "on":
		return fmt.Errorf("dmverity_mode is \"on\": layers with dm-verity cannot be mounted: %w", errdefs.ErrNotImplemented)
	default:
		return fmt.Errorf("dmverity_mode %q is neither auto, on nor off: %w", e.opts.DMVerity, errdefs.ErrInvalidArgument)
	}
	if len(e.opts.Caches) > 0 && (e.opts.Verity || e.opts.Immutable) {
		return fmt.Errorf("layers of layer_content_caches are shared, so that neither enable_fsverity nor set_immutable can be used with them: %w", errdefs.ErrInvalidArgument)
	}
	for _, dir := range e.opts.Caches {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("layer_content_caches: %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\terofs\n") {
		return fmt.Errorf("the kernel has no erofs (is its module loaded?): %w", errdefs.ErrNotImplemented)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if e.opts.DefaultSize == 0 {
		if err := overlay.CheckDirType(root); err != nil {
			return err
		}
	}
	if e.opts.Verity {
		return checkVerity(root)
	}
	return nil
}

// Capabilities is snapshot.Backend.
func (e *Snapshotter) Capabilities() []string {
	out := []string{"only-remap-ids"}
	if e.remapIDs() {
		out = append(out, "remap-ids")
	}
	return append(out, "rebase")
}

func (e *Snapshotter) path(id, name string) string { return filepath.Join(e.Store.Dir(id), name) }

// layer is the image of a committed snapshot.
func (e *Snapshotter) layer(id string, labels map[string]string) (string, error) {
	path := e.path(id, "layer.erofs")
	if kind := labels[labelSource]; kind == sourceCache {
		path = labels[labelSourceRef]
	} else if kind != "" {
		return "", fmt.Errorf("snapshot %s has its layer from %q, which is not known here: %w", id, kind, errdefs.ErrNotImplemented)
	}
	st, err := os.Lstat(path)
	if err == nil && labels[labelSource] == sourceCache {
		st, err = os.Stat(path)
	}
	if err != nil {
		return "", fmt.Errorf("layer of snapshot %s: %w", id, err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("layer of snapshot %s: %s is no file: %w", id, path, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// Labels that containerd keeps for itself, on snapshots whose layer is elsewhere.
const (
	labelPrivate   = "io.containerd.erofs.v1/"
	labelSource    = labelPrivate + "blob.source"
	labelSourceRef = labelPrivate + "blob.ref"

	sourceCache = "cache"
	// labelDiffID is that of the layer that a snapshot is prepared for.
	labelDiffID = "containerd.io/snapshot/diff-id"
)

// Usage is snapshot.Snapshotter.
func (e *Snapshotter) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	return e.Store.Usage(key, func(id string) (object.SnapshotUsage, error) {
		usage, err := store.Measure(ctx, e.path(id, "fs"))
		if err != nil || e.opts.DefaultSize == 0 {
			return usage, err
		}
		image, err := measureFile(e.path(id, writableImage))
		if errors.Is(err, os.ErrNotExist) {
			return usage, nil
		}
		usage.Size += image.Size
		return usage, err
	})
}

func measureFile(path string) (object.SnapshotUsage, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return object.SnapshotUsage{}, err
	}
	return object.SnapshotUsage{Inodes: 1, Size: st.Blocks * 512}, nil
}

// Update is snapshot.Snapshotter. The private labels stay.
func (e *Snapshotter) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error) {
	snap, err := e.Store.Get(info.Name)
	if err != nil {
		return object.SnapshotInfo{}, err
	}
	info.Labels = withPrivate(info.Labels, snap.Info.Labels)
	return e.Base.Update(ctx, info, fieldpaths...)
}

func withPrivate(labels, from map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if !strings.HasPrefix(k, labelPrivate) { // not a client's to set
			out[k] = v
		}
	}
	for k, v := range from {
		if strings.HasPrefix(k, labelPrivate) {
			out[k] = v
		}
	}
	return out
}

// Prepare is snapshot.Snapshotter.
func (e *Snapshotter) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return e.create(ctx, object.SnapshotActive, key, parent, labels)
}

// View is snapshot.Snapshotter.
func (e *Snapshotter) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return e.create(ctx, object.SnapshotView, key, parent, labels)
}

func (e *Snapshotter) create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(k, _ string) bool { return strings.HasPrefix(k, labelPrivate) })
	if path := e.cached(labels); path != "" && kind == object.SnapshotActive {
		labels[labelSource], labels[labelSourceRef] = sourceCache, path
	}
	snap, err := e.Store.Create(ctx, kind, key, parent, labels, e.fill)
	if err != nil {
		return nil, err
	}
	return e.mounts(snap)
}

// cached is where a cache has the layer that a snapshot is prepared for, empty
// when none has it. One that cannot be read has nothing.
func (e *Snapshotter) cached(labels map[string]string) string {
	id, err := digest.Parse(labels[labelDiffID])
	if err != nil || labels[snapshot.LabelRef] == "" {
		return ""
	}
	for _, dir := range e.opts.Caches {
		path := filepath.Join(dir, id.Algorithm().String(), id.Encoded()[:2], id.Encoded()+".erofs")
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func (e *Snapshotter) fill(dir string, snap store.Snapshot) error {
	active := snap.Info.Kind == object.SnapshotActive
	if err := overlay.MakeDirs(dir, active && e.opts.DefaultSize == 0); err != nil {
		return err
	}
	if active {
		if err := os.WriteFile(filepath.Join(dir, ".erofslayer"), nil, 0o644); err != nil {
			return err
		}
	}
	if e.opts.DefaultSize > 0 { // the owner is that of the directory in the image
		_, _, _, err := overlay.MappedRoot(snap.Info.Labels)
		return err
	}
	parent := ""
	if len(snap.ParentIDs) > 0 {
		parent = e.path(snap.ParentIDs[0], "fs")
	}
	return overlay.ChownRoot(filepath.Join(dir, "fs"), parent, snap.Info.Labels)
}

// Mounts is snapshot.Snapshotter.
func (e *Snapshotter) Mounts(_ context.Context, key string) ([]object.Mount, error) {
	snap, err := e.Store.GetMountable(key)
	if err != nil {
		return nil, err
	}
	return e.mounts(snap)
}

// Commit is snapshot.Snapshotter.
func (e *Snapshotter) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	snap, err := e.Store.Get(key)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	opts.Labels = withPrivate(opts.Labels, snap.Info.Labels)
	sealed := ""
	err = e.Store.Commit(ctx, name, key, opts, true, func(id string) (object.SnapshotUsage, error) {
		layer, err := e.seal(ctx, id, snap.Info.Labels)
		if err != nil {
			return object.SnapshotUsage{}, err
		}
		sealed = id
		return measureFile(layer)
	})
	if err == nil {
		_ = e.clearUpper(sealed) // or Cleanup does
	}
	return err
}

// Remove is snapshot.Snapshotter. A directory that cannot be deleted is left to
// Cleanup: the snapshot is gone all the same.
func (e *Snapshotter) Remove(ctx context.Context, key string) error {
	id, err := e.Store.Remove(ctx, key)
	if err == nil {
		_ = removeDir(e.Store.Dir(id))
	}
	return err
}

// Cleanup is snapshot.Cleaner.
func (e *Snapshotter) Cleanup(ctx context.Context) error {
	err := e.Store.Sweep(ctx, store.Place{Dir: e.Store.Dir(""), Remove: removeDir})
	return errors.Join(err, e.Store.Walk(ctx, func(snap store.Snapshot) error {
		if _, err := e.layer(snap.ID, snap.Info.Labels); err != nil {
			return nil // without its layer they are all that there is
		}
		return e.clearUpper(snap.ID)
	}, "kind==committed"))
}

// removeDir deletes the directory of a snapshot, immutable layer and all.
func removeDir(dir string) error {
	layer := filepath.Join(dir, "layer.erofs")
	if st, err := os.Lstat(layer); err == nil && st.Mode().IsRegular() {
		if err := setImmutable(layer, false); err != nil {
			return err
		}
	}
	return store.RemoveTree(dir)
}

func hasParents(snap store.Snapshot) bool { return len(snap.ParentIDs) > 0 }

// ancestors are the labels of a snapshot's ancestors, the nearest first.
func (e *Snapshotter) ancestors(snap store.Snapshot) ([]map[string]string, error) {
	var out []map[string]string
	for name := snap.Info.Parent; name != ""; {
		parent, err := e.Store.Get(name)
		if err != nil {
			return nil, err
		}
		out = append(out, parent.Info.Labels)
		name = parent.Info.Parent
	}
	if len(out) != len(snap.ParentIDs) {
		return nil, fmt.Errorf("snapshot %q changed meanwhile: %w", snap.Info.Name, errdefs.ErrUnavailable)
	}
	return slices.Clip(out), nil
}
