// Package store is what snapshotters that keep their files on a local disk
// share: the records of snapshots in metadata.db, in containerd's format, and a
// directory per snapshot, snapshots/<id>.
//
// The directory is made before the record that names it is committed, and
// removed after that is gone. So a crash leaves nothing but directories without
// a record, which Cleanup removes. Identifiers are never used twice: the
// bucket's sequence, which is committed with the record, is the last one.
//
// Lock order: cleaning before mu; no lock is held over a transaction but
// cleaning. Concurrent changes share commits (package boltx).
package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/boltx"
	"berth/internal/failpoint"
	"berth/internal/filter"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Store keeps the records and directories of one snapshotter.
type Store struct {
	root string
	db   *boltx.DB
	now  func() time.Time

	mu      sync.Mutex
	last    uint64         // identifier given
	pending map[uint64]int // identifiers whose record is being made or changed: how often

	kept    map[string]bool // identifiers that a rescue has found without a record
	rescued error

	cleaning sync.Mutex // held by Cleanup, for its whole time
}

// Open opens or makes a store below root, which it makes if need be.
//
// A damaged database is no error: it is replaced by what could be saved of it,
// see Rescued.
func Open(root string, now func() time.Time) (*Store, error) {
	dir := filepath.Join(root, "snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	db, rescued, err := openDatabase(root, now())
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s := &Store{root: root, db: db, now: now, pending: map[uint64]int{}, kept: readKept(root), rescued: rescued}
	if err := s.readLast(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshot store %s: %w", root, err), db.Close())
	}
	return s, nil
}

// readLast finds the last identifier: of the records, of a directory whose record a
// crash has prevented, or of what a rescue has found without one. The last is not
// always in dir, and must not be taken for garbage in the way of a new snapshot.
func (s *Store) readLast(dir string) error {
	if err := s.db.View(func(tx *bolt.Tx) error {
		if snapshots, _ := buckets(tx); snapshots != nil {
			s.last = snapshots.Sequence()
		}
		return nil
	}); err != nil {
		return err
	}
	names, err := dirNames(dir)
	for _, name := range slices.AppendSeq(names, maps.Keys(s.kept)) {
		if id, err := strconv.ParseUint(name, 10, 63); err == nil {
			s.last = max(s.last, id)
		}
	}
	return err
}

func dirNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Root is the directory of the store.
func (s *Store) Root() string { return s.root }

// Dir is the directory of the snapshot with that identifier.
func (s *Store) Dir(id string) string { return filepath.Join(s.root, "snapshots", id) }

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Sync is snapshot.Syncer: it writes back the filesystem that the store is on.
func (s *Store) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(s.root)
	if err != nil {
		return fmt.Errorf("sync snapshots: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync snapshots below %s: %w", s.root, err)
	}
	return nil
}

// Snapshot is a snapshot with what is needed to mount it.
type Snapshot struct {
	ID   string
	Info object.SnapshotInfo
	// ParentIDs are the identifiers of the ancestors, the nearest first.
	ParentIDs []string
	// Usage is what was recorded when it was committed.
	Usage object.SnapshotUsage
}

// Get reads a snapshot of any kind.
func (s *Store) Get(key string) (Snapshot, error) {
	var snap Snapshot
	err := s.db.View(func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		_, r, err := find(snapshots, key)
		if err != nil {
			return err
		}
		snap = Snapshot{ID: formatID(r.id), Info: r.info, Usage: r.usage}
		if snap.ParentIDs, err = chain(snapshots, r.info.Parent); err != nil {
			return fmt.Errorf("snapshot %q: %w", key, err)
		}
		return nil
	})
	return snap, err
}

// GetMountable is Get for what can be mounted: errdefs.ErrFailedPrecondition
// when the snapshot is committed.
func (s *Store) GetMountable(key string) (Snapshot, error) {
	snap, err := s.Get(key)
	if err == nil && snap.Info.Kind != object.SnapshotActive && snap.Info.Kind != object.SnapshotView {
		return Snapshot{}, fmt.Errorf("snapshot %q is %s, only active ones and views have mounts: %w",
			key, strings.ToLower(snap.Info.Kind.String()), errdefs.ErrFailedPrecondition)
	}
	return snap, err
}

// Create makes an active snapshot or a view. fill makes its directory; it runs
// with no lock held and gets the path, which does not exist yet, and the
// snapshot. Whatever it made is removed if anything fails.
func (s *Store) Create(ctx context.Context, kind object.SnapshotKind, key, parent string, labels map[string]string, fill func(dir string, snap Snapshot) error) (snap Snapshot, err error) {
	if key == "" {
		return Snapshot{}, fmt.Errorf("the key of a snapshot must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	// What would fail is found out before anything is made.
	if err := s.db.View(func(tx *bolt.Tx) error {
		snap.ParentIDs, err = creatable(tx, key, parent)
		return err
	}); err != nil {
		return Snapshot{}, err
	}
	now := s.now().UTC()
	snap.Info = object.SnapshotInfo{Kind: kind, Name: key, Parent: parent, Labels: cleanLabels(labels), Created: now, Updated: now}
	id, release := s.newID()
	defer release()
	snap.ID = formatID(id)
	dir := s.Dir(snap.ID)
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveTree(dir))
		}
	}()
	if err := fill(dir, snap); err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %q: %w", key, err)
	}
	if err := failpoint.Hit("snapshot.create.filled"); err != nil {
		return Snapshot{}, err
	}
	err = s.db.Update(ctx, func(tx *bolt.Tx) error { return insert(tx, record{id: id, info: snap.Info}) })
	failpoint.Hit("snapshot.create.recorded")

	if err != nil {
		return Snapshot{}, err
	}
	return snap, nil
}

// newID gives out an identifier; Cleanup leaves its directory alone until
// release.
func (s *Store) newID() (id uint64, release func()) {
	s.mu.Lock()
	s.last++
	id = s.last
	s.mu.Unlock()
	return id, s.hold(id)
}

// hold keeps Cleanup off what belongs to an identifier until release.
func (s *Store) hold(id uint64) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[id]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pending[id]--; s.pending[id] == 0 {
			delete(s.pending, id)
		}
	}
}

func creatable(tx *bolt.Tx, key, parent string) (parentIDs []string, err error) {
	snapshots, _ := buckets(tx)
	if snapshots != nil && snapshots.Bucket([]byte(key)) != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	if parent == "" {
		return nil, nil
	}
	if _, err := findParent(snapshots, parent); err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	return chain(snapshots, parent)
}

func insert(tx *bolt.Tx, r record) error {
	snapshots, parents, err := makeBuckets(tx)
	if err != nil {
		return err
	}
	b, err := newBucket(snapshots, r.info.Name)
	if err != nil {
		return err
	}
	if r.info.Parent != "" {
		parent, err := findParent(snapshots, r.info.Parent)
		if err != nil {
			return fmt.Errorf("snapshot %q: %w", r.info.Name, err)
		}
		if err := parents.Put(parentKey(parent.id, r.id), []byte(r.info.Name)); err != nil {
			return err
		}
	}
	if r.id > snapshots.Sequence() {
		if err := snapshots.SetSequence(r.id); err != nil {
			return err
		}
	}
	return r.put(b)
}

// Commit turns the active snapshot key into the committed snapshot name. seal
// finishes its files and tells what they take; it runs with no lock held, and
// Cleanup leaves the files of that identifier alone. With rebase the options
// may name a parent for a snapshot that has none.
func (s *Store) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions, rebase bool, seal func(id string) (object.SnapshotUsage, error)) error {
	if name == "" {
		return fmt.Errorf("the name of a snapshot must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	c := commit{name: name, key: key, opts: opts, rebase: rebase, now: s.now().UTC()}
	var id uint64
	// What would fail is found out before the walk.
	if err := s.db.View(func(tx *bolt.Tx) (err error) {
		id, err = c.check(tx)
		return err
	}); err != nil {
		return err
	}
	defer s.hold(id)()
	usage, err := seal(formatID(id))
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	c.usage = usage
	if err := failpoint.Hit("snapshot.commit.measured"); err != nil {
		return err
	}
	err = s.db.Update(ctx, c.run)
	failpoint.Hit("snapshot.commit.recorded")
	return err
}

type commit struct {
	name, key string
	opts      snapshot.CommitOptions
	rebase    bool
	now       time.Time
	usage     object.SnapshotUsage
}

func (c *commit) check(tx *bolt.Tx) (id uint64, err error) {
	snapshots, _ := buckets(tx)
	_, r, err := find(snapshots, c.key)
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if r.info.Kind != object.SnapshotActive {
		return 0, fmt.Errorf("commit: snapshot %q is not active: %w", c.key, errdefs.ErrFailedPrecondition)
	}
	if snapshots.Bucket([]byte(c.name)) != nil {
		return 0, fmt.Errorf("commit: snapshot %q: %w", c.name, errdefs.ErrAlreadyExists)
	}
	if _, err := c.parent(snapshots, r); err != nil {
		return 0, fmt.Errorf("commit snapshot %q: %w", c.key, err)
	}
	return r.id, nil
}

// parent is the one that the committed snapshot will have.
func (c *commit) parent(snapshots *bolt.Bucket, r record) (name string, err error) {
	name = r.info.Parent
	if want := c.opts.Parent; want != "" && want != name {
		if name != "" {
			return "", fmt.Errorf("its parent is %q, it cannot become %q: %w", name, want, errdefs.ErrInvalidArgument)
		}
		if !c.rebase {
			return "", fmt.Errorf("this snapshotter cannot put it onto a parent: %w", errdefs.ErrNotImplemented)
		}
		name = want
	}
	if name == "" {
		return "", nil
	}
	parent, err := findParent(snapshots, name)
	if err == nil && parent.id == r.id {
		err = fmt.Errorf("it cannot be its own parent: %w", errdefs.ErrInvalidArgument)
	}
	return name, err
}

func (c *commit) run(tx *bolt.Tx) error {
	if _, err := c.check(tx); err != nil {
		return err
	}
	snapshots, parents := buckets(tx)
	_, r, err := find(snapshots, c.key)
	if err != nil {
		return err
	}
	if r.info.Parent, err = c.parent(snapshots, r); err != nil {
		return err
	}
	r.usage, r.hasUsage = c.usage, true
	r.info.Name, r.info.Kind = c.name, object.SnapshotCommitted
	r.info.Created, r.info.Updated = c.now, c.now
	r.info.Labels = cleanLabels(c.opts.Labels) // replaced, not inherited
	b, err := newBucket(snapshots, c.name)
	if err != nil {
		return err
	}
	if err := r.put(b); err != nil {
		return err
	}
	if r.info.Parent != "" {
		parent, err := findParent(snapshots, r.info.Parent)
		if err != nil {
			return err
		}
		if err := parents.Put(parentKey(parent.id, r.id), []byte(c.name)); err != nil {
			return err
		}
	}
	return snapshots.DeleteBucket([]byte(c.key))
}

// Remove takes the record of a snapshot without children away. Its directory
// stays until Delete or Cleanup.
func (s *Store) Remove(ctx context.Context, key string) (id string, err error) {
	err = s.db.Update(ctx, func(tx *bolt.Tx) error {
		snapshots, parents := buckets(tx)
		_, r, err := find(snapshots, key)
		if err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		if hasChildren(parents, r.id) {
			return fmt.Errorf("remove: snapshot %q has children: %w", key, errdefs.ErrFailedPrecondition)
		}
		if r.info.Parent != "" {
			// A parent that is gone must not keep its child for ever.
			if b := snapshots.Bucket([]byte(r.info.Parent)); b != nil {
				_, parent, err := find(snapshots, r.info.Parent)
				if err != nil {
					return err
				}
				if err := parents.Delete(parentKey(parent.id, r.id)); err != nil {
					return err
				}
			}
		}
		id = formatID(r.id)
		return snapshots.DeleteBucket([]byte(key))
	})
	return id, err
}

// Delete removes the directory of a snapshot whose record is gone.
func (s *Store) Delete(id string) error { return RemoveTree(s.Dir(id)) }

// Cleanup removes the directories that no record names. It goes on after a
// failure and returns what failed.
func (s *Store) Cleanup(ctx context.Context) error {
	return s.Sweep(ctx, Place{Dir: filepath.Join(s.root, "snapshots"), Remove: RemoveTree})
}

// Place is a directory in which what belongs to a snapshot has the identifier
// for its name.
type Place struct {
	Dir string
	// Kinds are those of the snapshots that have something here; all when nil.
	Kinds []object.SnapshotKind
	// Remove takes away what is at a path in Dir.
	Remove func(path string) error
}

// Sweep removes what no record accounts for. It goes on after a failure and
// returns what failed.
func (s *Store) Sweep(ctx context.Context, places ...Place) error {
	s.cleaning.Lock()
	defer s.cleaning.Unlock()
	// The order matters: what is listed here is pending now, or has its record
	// by the time the records are read, or is garbage.
	names := make([][]string, len(places))
	for i, p := range places {
		var err error
		if names[i], err = dirNames(p.Dir); err != nil {
			return fmt.Errorf("clean up snapshots: %w", err)
		}
	}
	pending := map[string]bool{}
	s.mu.Lock()
	for id := range s.pending {
		pending[formatID(id)] = true
	}
	s.mu.Unlock()
	kinds, err := s.kinds()
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	var errs []error
	for i, p := range places {
		for _, name := range names[i] {
			if err := ctx.Err(); err != nil {
				return err
			}
			kind, recorded := kinds[name]
			if pending[name] || s.kept[name] || recorded && (p.Kinds == nil || slices.Contains(p.Kinds, kind)) {
				continue
			}
			failpoint.Hit("snapshot.cleanup.before-files")
			if err := p.Remove(filepath.Join(p.Dir, name)); err != nil {
				errs = append(errs, fmt.Errorf("clean up snapshots: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// kinds are those of all records, by identifier. A record that does not tell
// its own stops it: then nothing is known to be garbage.
func (s *Store) kinds() (map[string]object.SnapshotKind, error) {
	kinds := map[string]object.SnapshotKind{}
	var pace boltx.Pace
	err := s.db.View(func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		if snapshots == nil {
			return nil
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			pace.Step()
			b := snapshots.Bucket(k)
			id, n := binary.Uvarint(b.Get([]byte("id")))
			if n <= 0 {
				return fmt.Errorf("snapshot %q: %w: no identifier", k, errDamaged)
			}
			kind := object.SnapshotUnknown
			if v := b.Get([]byte("kind")); len(v) == 1 {
				kind = object.SnapshotKind(v[0])
			}
			kinds[formatID(id)] = kind
			return nil
		})
	})
	return kinds, err
}

// Update changes labels; see snapshot.Snapshotter.
func (s *Store) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (updated Snapshot, err error) {
	err = s.db.Update(ctx, func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		b, r, err := find(snapshots, info.Name)
		if err != nil {
			return fmt.Errorf("update: %w", err)
		}
		labels := r.info.Labels
		if len(fieldpaths) == 0 {
			fieldpaths = []string{"labels"}
		}
		for _, path := range fieldpaths {
			if key, ok := strings.CutPrefix(path, "labels."); ok {
				if labels == nil {
					labels = map[string]string{}
				}
				labels[key] = info.Labels[key]
				continue
			}
			if path != "labels" {
				return fmt.Errorf("update: field %q of snapshot %q cannot be changed: %w", path, info.Name, errdefs.ErrInvalidArgument)
			}
			labels = cleanLabels(info.Labels)
		}
		r.info.Labels = cleanLabels(labels)
		r.info.Updated = s.now().UTC()
		updated = Snapshot{ID: formatID(r.id), Info: r.info}
		return putMutable(b, r.info)
	})
	return updated, err
}

// Walk calls fn for the snapshots that match. It reads them all first: fn may
// take its time and change snapshots.
func (s *Store) Walk(ctx context.Context, fn func(Snapshot) error, filters ...string) error {
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return err
	}
	var found []Snapshot
	var pace boltx.Pace
	if err := s.db.View(func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		if snapshots == nil {
			return nil
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			pace.Step()
			_, r, err := find(snapshots, string(k))
			if err != nil {
				return err
			}
			if match.Match(fields(r.info)) {
				found = append(found, Snapshot{ID: formatID(r.id), Info: r.info})
			}
			return nil
		})
	}); err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, snap := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(snap); err != nil {
			return err
		}
	}
	return nil
}

// Usage is what was recorded at the commit, what measure finds for an active
// snapshot (and for a committed one without a record of it), 0 for a view.
func (s *Store) Usage(key string, measure func(id string) (object.SnapshotUsage, error)) (object.SnapshotUsage, error) {
	var r record
	if err := s.db.View(func(tx *bolt.Tx) (err error) {
		snapshots, _ := buckets(tx)
		_, r, err = find(snapshots, key)
		return err
	}); err != nil {
		return object.SnapshotUsage{}, err
	}
	if r.info.Kind == object.SnapshotView || r.hasUsage {
		return r.usage, nil
	}
	usage, err := measure(formatID(r.id))
	if err != nil {
		return object.SnapshotUsage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return usage, nil
}
