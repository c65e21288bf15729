// Package activation keeps the mounts that the daemon performs in place of its
// clients, because they need preparation (see mount.Activator): by name, in a
// namespace, until they are deactivated or nothing refers to them any more.
//
// On disk, below <state>/io.containerd.mount-manager.v1.bolt, everything as
// containerd has it: mounts.db (bolt; its buckets are drawn in records.go) and
// t/<id>, the directory of an activation. With the state directory both are gone
// after a reboot, as the mounts are; where it has outlived them, a record whose mounts
// are not there is replaced by the next activation of the name. The database is
// opened, and made, when there is something to keep: most hosts never have it.
//
// An activation is on record, without its mounts, before the first of them is
// performed, and with them when all are. What a crash leaves is found by that: such a
// record is replaced by the next activation of the name, or collected; so is a
// directory that no record names.
//
// What refers to an activation: the lease under which it was made, and the labels
// containerd.io/gc.bref.{container,content,image,snapshot.<snapshotter>} of its
// own, which name what it is for. Collect removes the others.
//
// A name is locked while it is activated or deactivated, with no other lock held.
package activation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/par"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Info is an activation.
type Info struct {
	Name   string
	Labels map[string]string
	// Active are the mounts that were performed. Of those that are read from the
	// database only type, mount point and time are known.
	Active []object.ActiveMount
	// System are those that remain for the client to do.
	System []object.Mount
}

// Options of an activation.
type Options struct {
	mount.ActivateOptions
	Labels map[string]string
	// Lease that keeps it, or empty.
	Lease string
}

// openTimeout is how long another process may have the database open.
const openTimeout = 5 * time.Second

// Table is the activations of a daemon.
type Table struct {
	dir       string
	activator *mount.Activator
	names     par.Locks[name]

	mu     sync.Mutex
	db     *bolt.DB // nil until it is needed
	closed bool
}

type name struct{ namespace, name string }

// New makes the table of a directory, which need not exist.
func New(dir string, activator *mount.Activator) *Table {
	return &Table{dir: dir, activator: activator}
}

// Close lets go of the database; the mounts stay.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.db == nil {
		return nil
	}
	return t.db.Close()
}

// open opens the database, or makes it; nil without error when there is none and
// it is not to be made.
func (t *Table) open(make bool) (*bolt.DB, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("the daemon is shutting down: %w", errdefs.ErrUnavailable)
	}
	if t.db != nil {
		return t.db, nil
	}
	path := filepath.Join(t.dir, "mounts.db")
	if make {
		if err := os.MkdirAll(t.targets(), 0o700); err != nil {
			return nil, fmt.Errorf("make directory of mounts: %w", err)
		}
	} else if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      openTimeout,
		NoStatistics: true,
		FreelistType: bolt.FreelistMapType, // in memory only; the file is the same
	})
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	t.db = db
	return db, nil
}

func (t *Table) targets() string { return filepath.Join(t.dir, "t") }

func (t *Table) target(id uint64) string {
	return filepath.Join(t.targets(), strconv.FormatUint(id, 10))
}

// Needed tells whether mounts need an activation at all.
func (t *Table) Needed(mounts []object.Mount, opts mount.ActivateOptions) bool {
	return t.activator.Needed(mounts, opts)
}

// Activate performs the mounts that need it. errdefs.ErrNotImplemented when none
// does: then the client mounts what it has; errdefs.ErrAlreadyExists for a name
// that is active. A failure leaves nothing.
func (t *Table) Activate(ctx context.Context, namespace, id string, mounts []object.Mount, o Options) (_ Info, err error) {
	if id == "" {
		return Info{}, fmt.Errorf("activate mounts: the name is empty: %w", errdefs.ErrInvalidArgument)
	}
	if !t.activator.Needed(mounts, o.ActivateOptions) {
		return Info{}, fmt.Errorf("activate mounts %q: none of %d needs it: %w", id, len(mounts), errdefs.ErrNotImplemented)
	}
	if len(mounts) >= maxMounts {
		return Info{}, fmt.Errorf("activate mounts %q: %d are too many, the most is %d: %w", id, len(mounts), maxMounts-1, errdefs.ErrInvalidArgument)
	}
	db, err := t.open(true)
	if err != nil {
		return Info{}, fmt.Errorf("activate mounts %q: %w", id, err)
	}
	unlock, err := t.names.Lock(ctx, name{namespace, id})
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	lost, err := lost(db, namespace, id)
	if err != nil {
		return Info{}, fmt.Errorf("activate mounts %q: %w", id, err)
	}
	start := time.Now()
	var number, stale uint64
	err = db.Update(func(tx *bolt.Tx) (err error) {
		number, stale, err = begin(tx, namespace, id, start, o, lost)
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("activate mounts %q: %w", id, err)
	}
	if stale != 0 {
		if err := t.activator.Deactivate(ctx, t.target(stale)); err != nil {
			return Info{}, errors.Join(err, t.forget(db, namespace, id))
		}
	}
	info := Info{Name: id, Labels: o.Labels}
	dir := t.target(number)
	if err = os.Mkdir(dir, 0o700); err == nil {
		info.Active, info.System, err = t.activator.Activate(ctx, dir, mounts, o.ActivateOptions)
	}
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error { return finish(tx, namespace, id, info, start) })
	}
	if err != nil {
		// First the mounts: while there is a record they are found.
		err = errors.Join(err, t.activator.Deactivate(context.WithoutCancel(ctx), dir))
		return Info{}, fmt.Errorf("activate mounts %q: %w", id, errors.Join(err, t.forget(db, namespace, id)))
	}
	return info, nil
}

// lost tells whether a record says active, but a mount of it is not there: the state
// directory has outlived a reboot, or the mount namespace that the daemon was in.
// It asks for no more than each path's own attributes, and outside a transaction.
func lost(db *bolt.DB, namespace, id string) (bool, error) {
	var active []object.ActiveMount
	err := db.View(func(tx *bolt.Tx) error {
		b := bucket(tx, namespace, id)
		if b == nil {
			return nil
		}
		info, err := readInfo(id, b)
		active = info.Active
		return err
	})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(active, func(m object.ActiveMount) bool { return !mount.IsThere(m.MountPoint) }), nil
}

func (t *Table) forget(db *bolt.DB, namespace, id string) error {
	return db.Update(func(tx *bolt.Tx) error { return remove(tx, namespace, id) })
}

// Deactivate undoes an activation. errdefs.ErrNotFound when there is none. After
// another error it is gone from the table, and Collect tries what is left of it.
func (t *Table) Deactivate(ctx context.Context, namespace, id string) error {
	db, err := t.open(false)
	if err != nil {
		return fmt.Errorf("deactivate mounts %q: %w", id, err)
	}
	if db == nil {
		return fmt.Errorf("mounts %q are not active: %w", id, errdefs.ErrNotFound)
	}
	unlock, err := t.names.Lock(ctx, name{namespace, id})
	if err != nil {
		return err
	}
	defer unlock()
	return t.deactivate(ctx, db, namespace, id, 0)
}

// deactivate is Deactivate with the name locked; only, unless 0, is the number that
// the activation must have.
func (t *Table) deactivate(ctx context.Context, db *bolt.DB, namespace, id string, only uint64) error {
	var number uint64
	found := false
	err := db.View(func(tx *bolt.Tx) error {
		if b := bucket(tx, namespace, id); b != nil {
			number = readID(b)
			found = only == 0 || only == number
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("deactivate mounts %q: %w", id, err)
	}
	if !found {
		return fmt.Errorf("mounts %q are not active: %w", id, errdefs.ErrNotFound)
	}
	// The record goes first, as in containerd: what is left without one is
	// collected, while one without its mounts would be taken for usable.
	err = db.Update(func(tx *bolt.Tx) error { return remove(tx, namespace, id) })
	if err != nil {
		return fmt.Errorf("deactivate mounts %q: %w", id, err)
	}
	return t.activator.Deactivate(context.WithoutCancel(ctx), t.target(number))
}

// Info of one activation; errdefs.ErrNotFound.
func (t *Table) Info(_ context.Context, namespace, id string) (info Info, err error) {
	err = t.view(func(tx *bolt.Tx) error {
		b := bucket(tx, namespace, id)
		if b == nil {
			return nil
		}
		info, err = readInfo(id, b)
		return err
	})
	if err == nil && info.Name == "" {
		err = fmt.Errorf("mounts %q are not active: %w", id, errdefs.ErrNotFound)
	}
	return info, err
}

// List calls fn with each activation of a namespace, by name, as of one moment.
func (t *Table) List(_ context.Context, namespace string) (all []Info, err error) {
	err = t.view(func(tx *bolt.Tx) error {
		return eachName(tx, namespace, func(id string, b *bolt.Bucket) error {
			info, err := readInfo(id, b)
			all = append(all, info)
			return err
		})
	})
	return all, err
}

// view reads the database, if there is one.
func (t *Table) view(fn func(*bolt.Tx) error) error {
	db, err := t.open(false)
	if err != nil || db == nil {
		return err
	}
	return db.View(fn)
}
