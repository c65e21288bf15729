// Package overlay is the snapshotter that stacks directories with overlayfs.
//
// Its files are containerd's, so that either daemon takes over from the other:
//
//	metadata.db             see package store
//	snapshots/<id>/fs       what the snapshot itself has
//	snapshots/<id>/work     overlayfs' scratch directory, of an active one
//
// A snapshot's mounts are a bind of its fs when it has no parent, a read-only
// bind of the parent's when it is a view of a single one, else an overlay.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/store"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// labelUpperdir names the directory of a snapshot's own files, if
// Options.UpperdirLabel is set. It is reported, not stored.
const labelUpperdir = "containerd.io/snapshot/overlay.upperdir"

// Options of New; the zero value is containerd's default.
type Options struct {
	// UpperdirLabel adds the location of a snapshot's files to its labels.
	UpperdirLabel bool
	// SyncRemove deletes a snapshot's files in Remove, not in Cleanup.
	SyncRemove bool
	// MountOptions are for overlay mounts, such as "volatile" or "index=on".
	MountOptions []string
	// SlowChown lets clients change owners file by file where idmapped mounts
	// do not work.
	SlowChown bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Snapshotter is a snapshot.Backend, snapshot.Cleaner and snapshot.Syncer.
type Snapshotter struct {
	store    *store.Store
	opts     Options
	options  []string // of overlay mounts
	remapIDs func() bool
}

// Rescued is snapshot.Rescuer.
func (s *Snapshotter) Rescued() error { return s.store.Rescued() }

// New opens the snapshotter whose files are below root. errdefs.ErrNotImplemented
// when root's filesystem cannot hold an overlay's files.
func New(root string, opts Options) (*Snapshotter, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s, err := store.Open(root, opts.Now)
	if err != nil {
		return nil, fmt.Errorf("overlay snapshotter: %w", err)
	}
	if err := CheckDirType(root); err != nil {
		return nil, errors.Join(fmt.Errorf("overlay snapshotter: %w", err), s.Close())
	}
	o := &Snapshotter{store: s, opts: opts, options: slices.Clone(opts.MountOptions)}
	if userns.RunningInUserNS() && !has(o.options, "userxattr") && takesUserXattr(root) {
		o.options = append(o.options, "userxattr")
	}
	// The kernel takes the last of equal options, so the configured one must
	// be the only one.
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil && !has(o.options, "index") {
		o.options = append(o.options, "index=off")
	}
	o.remapIDs = sync.OnceValue(func() bool { return CanRemap(root) })
	return o, nil
}

// takesUserXattr tries an overlay that keeps its records in user.* attributes:
// before Linux 5.11, and on a tmpfs before 6.6, there is none.
func takesUserXattr(root string) bool { return canMount(root, "userxattr") }

func has(options []string, key string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		name, _, _ := strings.Cut(o, "=")
		return name == key
	})
}

// CheckDirType: without types in directory entries overlayfs cannot tell
// whiteouts from files. errdefs.ErrNotImplemented when root's have none.
func CheckDirType(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", root, err)
		}
		if n <= 0 {
			return nil
		}
		for rest := buf[:n]; len(rest) > 19; {
			size := int(rest[16]) | int(rest[17])<<8 // little-endian on both architectures
			if rest[18] == unix.DT_UNKNOWN {
				return fmt.Errorf("the filesystem of %s does not record file types in directories (xfs: make it with ftype=1): %w", root, errdefs.ErrNotImplemented)
			}
			if size <= 0 || size > len(rest) {
				return nil
			}
			rest = rest[size:]
		}
	}
}

// Capabilities is snapshot.Backend.
func (o *Snapshotter) Capabilities() []string {
	var out []string
	if o.remapIDs() {
		out = append(out, "remap-ids")
	}
	if !o.opts.SlowChown {
		out = append(out, "only-remap-ids")
	}
	if o.canRebase() {
		out = append(out, "rebase")
	}
	return out
}

// canRebase: a layer that is unpacked apart has its whiteouts as devices with
// trusted.* attributes, which a user namespace cannot make.
func (o *Snapshotter) canRebase() bool { return !has(o.options, "userxattr") }

// Root is snapshot.Backend.
func (o *Snapshotter) Root() string { return o.store.Root() }

// Close is snapshot.Snapshotter.
func (o *Snapshotter) Close() error { return o.store.Close() }

// Sync is snapshot.Syncer.
func (o *Snapshotter) Sync(ctx context.Context) error { return o.store.Sync(ctx) }

// Cleanup is snapshot.Cleaner.
func (o *Snapshotter) Cleanup(ctx context.Context) error { return o.store.Cleanup(ctx) }

// Stat is snapshot.Snapshotter.
func (o *Snapshotter) Stat(ctx context.Context, key string) (object.SnapshotInfo, error) {
	snap, err := o.store.Get(key)
	return o.info(snap), err
}

// Update is snapshot.Snapshotter.
func (o *Snapshotter) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error) {
	snap, err := o.store.Update(ctx, info, fieldpaths...)
	return o.info(snap), err
}

// Walk is snapshot.Snapshotter.
func (o *Snapshotter) Walk(ctx context.Context, fn func(object.SnapshotInfo) error, filters ...string) error {
	return o.store.Walk(ctx, func(snap store.Snapshot) error { return fn(o.info(snap)) }, filters...)
}

func (o *Snapshotter) info(snap store.Snapshot) object.SnapshotInfo {
	if o.opts.UpperdirLabel && snap.ID != "" {
		if snap.Info.Labels == nil {
			snap.Info.Labels = map[string]string{}
		}
		snap.Info.Labels[labelUpperdir] = o.fs(snap.ID)
	}
	return snap.Info
}

func (o *Snapshotter) fs(id string) string   { return filepath.Join(o.store.Dir(id), "fs") }
func (o *Snapshotter) work(id string) string { return filepath.Join(o.store.Dir(id), "work") }

// Usage is snapshot.Snapshotter.
func (o *Snapshotter) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	return o.store.Usage(key, o.measure(ctx))
}

func (o *Snapshotter) measure(ctx context.Context) func(id string) (object.SnapshotUsage, error) {
	return func(id string) (object.SnapshotUsage, error) { return store.Measure(ctx, o.fs(id)) }
}

// Prepare is snapshot.Snapshotter.
func (o *Snapshotter) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return o.create(ctx, object.SnapshotActive, key, parent, labels)
}

// View is snapshot.Snapshotter.
func (o *Snapshotter) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return o.create(ctx, object.SnapshotView, key, parent, labels)
}

func (o *Snapshotter) create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	snap, err := o.store.Create(ctx, kind, key, parent, labels, o.fill)
	if err != nil {
		return nil, err
	}
	return o.mounts(snap), nil
}

// fill makes the directories of a snapshot.
func (o *Snapshotter) fill(dir string, snap store.Snapshot) error {
	if err := MakeDirs(dir, snap.Info.Kind == object.SnapshotActive); err != nil {
		return err
	}
	parent := ""
	if len(snap.ParentIDs) > 0 {
		parent = o.fs(snap.ParentIDs[0])
	}
	return ChownRoot(filepath.Join(dir, "fs"), parent, snap.Info.Labels)
}

// MakeDirs makes the directory of a snapshot, with fs in it and, if need be, work.
func MakeDirs(dir string, work bool) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	err := mkdir(filepath.Join(dir, "fs"), 0o755)
	if err == nil && work {
		err = mkdir(filepath.Join(dir, "work"), 0o711)
	}
	return err
}

// mkdir makes a directory with that very mode, whatever the umask.
func mkdir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// ChownRoot gives the root directory of a snapshot its owner: what the labels
// map the container's root to, else that of the parent's, if there is one.
func ChownRoot(fs, parent string, labels map[string]string) error {
	uid, gid, err := rootOwner(parent, labels)
	if err != nil || uid == os.Geteuid() && gid == os.Getegid() {
		return err
	}
	return os.Lchown(fs, uid, gid)
}

// MappedRoot is what the labels map the container's root to; mapped is false
// when there are none.
func MappedRoot(labels map[string]string) (uid, gid int, mapped bool, err error) {
	uidmap, gidmap := labels[snapshot.LabelUIDMapping], labels[snapshot.LabelGIDMapping]
	if uidmap == "" && gidmap == "" {
		return 0, 0, false, nil
	}
	if uid, err = hostRoot(snapshot.LabelUIDMapping, uidmap); err == nil {
		gid, err = hostRoot(snapshot.LabelGIDMapping, gidmap)
	}
	return uid, gid, true, err
}

func rootOwner(parent string, labels map[string]string) (uid, gid int, err error) {
	if uid, gid, mapped, err := MappedRoot(labels); mapped {
		return uid, gid, err
	}
	if parent == "" {
		return os.Geteuid(), os.Getegid(), nil
	}
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return 0, 0, fmt.Errorf("directory of the parent: %w", err)
	}
	return int(st.Uid), int(st.Gid), nil
}

// hostRoot is what ID 0 is mapped to by a list of container:host:size.
func hostRoot(label, mapping string) (int, error) {
	for entry := range strings.SplitSeq(mapping, ",") {
		parts := strings.Split(entry, ":")
		if len(parts) != 3 || parts[0] != "0" {
			continue
		}
		if size, err := strconv.ParseUint(parts[2], 10, 32); err != nil || size == 0 {
			continue
		}
		if host, err := strconv.ParseUint(parts[1], 10, 32); err == nil {
			return int(host), nil
		}
	}
	return 0, fmt.Errorf("label %s=%q maps no ID to the container's 0 (want container:host:size, and both mappings): %w", label, mapping, errdefs.ErrInvalidArgument)
}

// Mounts is snapshot.Snapshotter.
func (o *Snapshotter) Mounts(ctx context.Context, key string) ([]object.Mount, error) {
	snap, err := o.store.GetMountable(key)
	if err != nil {
		return nil, err
	}
	return o.mounts(snap), nil
}

func (o *Snapshotter) mounts(snap store.Snapshot) []object.Mount {
	var options []string
	if labels := snap.Info.Labels; (labels[snapshot.LabelUIDMapping] != "" || labels[snapshot.LabelGIDMapping] != "") && o.remapIDs() {
		if v := labels[snapshot.LabelUIDMapping]; v != "" {
			options = append(options, "uidmap="+v)
		}
		if v := labels[snapshot.LabelGIDMapping]; v != "" {
			options = append(options, "gidmap="+v)
		}
	}
	active := snap.Info.Kind == object.SnapshotActive
	switch {
	case len(snap.ParentIDs) == 0 && active:
		return bind(o.fs(snap.ID), append(options, "rw", "rbind"))
	case len(snap.ParentIDs) == 0:
		return bind(o.fs(snap.ID), append(options, "ro", "rbind"))
	case len(snap.ParentIDs) == 1 && !active:
		return bind(o.fs(snap.ParentIDs[0]), append(options, "ro", "rbind"))
	}
	if active {
		options = append(options, "workdir="+o.work(snap.ID), "upperdir="+o.fs(snap.ID))
	}
	lowers := make([]string, len(snap.ParentIDs))
	for i, id := range snap.ParentIDs {
		lowers[i] = o.fs(id)
	}
	options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	return []object.Mount{{Type: "overlay", Source: "overlay", Options: append(options, o.options...)}}
}

func bind(source string, options []string) []object.Mount {
	return []object.Mount{{Type: "bind", Source: source, Options: options}}
}

// Commit is snapshot.Snapshotter.
func (o *Snapshotter) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	return o.store.Commit(ctx, name, key, opts, o.canRebase(), o.measure(ctx))
}

// Remove is snapshot.Snapshotter. A directory that cannot be deleted is left to
// Cleanup: the snapshot is gone all the same.
func (o *Snapshotter) Remove(ctx context.Context, key string) error {
	id, err := o.store.Remove(ctx, key)
	if err == nil && o.opts.SyncRemove {
		_ = o.store.Delete(id)
	}
	return err
}

// CanRemap tries an idmapped overlay on the filesystem of dir.
func CanRemap(dir string) bool { return canMount(dir, "uidmap=0:666:1", "gidmap=0:666:1") }

// canMount tries an overlay with options on the filesystem of dir.
func canMount(dir string, options ...string) bool {
	dir, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return false
		}
	}
	probe := object.Mount{Type: "overlay", Source: "overlay", Options: append(options,
		"lowerdir="+filepath.Join(dir, "lower"), "upperdir="+filepath.Join(dir, "upper"), "workdir="+filepath.Join(dir, "work"),
	)}
	return mount.WithTemp(context.Background(), []object.Mount{probe}, func(string) error { return nil }) == nil
}
