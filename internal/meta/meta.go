// Package meta keeps the records of the daemon in one bolt database, in
// containerd's schema, and decides what may be deleted.
//
// It owns meta.db and the files beside it (schema.go and backup.go describe
// them): namespaces, images, containers, sandboxes, leases, and the namespaces'
// views of the content store and the snapshotters. Names in backends are the
// namespace's name, a number and the caller's key.
//
// Transactions (package boltx): every call makes at most one write transaction,
// calls that come at the same time share it, reads never wait. No transaction is open
// during a call to a backend, to a caller's function or to the exchange; where a
// change takes both a backend and a record, a lock of that one object's name
// holds them together, and the order of the two says what a crash leaves.
// Events are published after the commit.
//
// Collection of garbage: gc.go says what stays and why it is safe to decide
// that beside writers; clean.go takes backends' bytes; schedule.go decides when.
//
// Damage: Open looks through the file before bolt does (package boltx), and
// replaces one that is damaged by what it can save (rescue.go, adopt.go), with the help of
// backups that are made as changes go on (backup.go).
//
// Lock order: the lock of a name (locks), then a claim (claims), then the locks
// of package boltx. The mutexes of scheduler, backups, claims and locks are leaves.
//
// Goroutines: the timers of scheduler and backups run a collection or a backup
// in one of their own; a collection starts one for each backend that it cleans.
// Close ends them.
package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/boltx"
	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/par"
	"berth/internal/snapshot"
	"berth/internal/trace"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Options of Open. Path, Content, Snapshotters and Events are required.
type Options struct {
	// Path of meta.db.
	Path         string
	Content      content.Store
	Snapshotters map[string]snapshot.Backend
	Events       *events.Exchange
	// Isolated keeps blobs of one namespace invisible to another until it
	// proves, by writing them, that it has the bytes.
	Isolated bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// GC says when garbage is collected; DefaultGC when nil.
	GC *GCOptions
	// Log is told what background work could not do; nothing when nil.
	Log *slog.Logger
	// LockTimeout is how long Open waits for another process that has the
	// database open; 10 s when 0.
	LockTimeout time.Duration
	// NoSync leaves it to the kernel when transactions reach the disk.
	NoSync bool
	// Collected, unless nil, is called after each garbage collection, by whoever
	// asked for it: it must not take long.
	Collected func(took time.Duration, err error)
}

// DB is the metadata database.
type DB struct {
	path     string
	bolt     *boltx.DB
	content  blobBackend
	backends map[string]*backend
	events   *events.Exchange
	isolated bool
	clock    func() time.Time
	log      *slog.Logger
	report   Report

	claims  claims
	locks   par.Locks[string] // of snapshots, by snapshotter, namespace and key
	numbers numbers
	sched   *scheduler
	backup  backups

	collecting chan struct{}     // capacity 1: held by the collection that runs
	touched    map[node]struct{} // the barrier of gc.go; belongs to the write transaction

	noSync    bool
	collected func(time.Duration, error)

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	background sync.WaitGroup
}

// Open opens or makes the database. A damaged file is no error: it is put
// aside and replaced by what could be saved, which Report tells. The caller
// closes the DB.
func Open(ctx context.Context, opts Options) (*DB, error) {
	db := &DB{
		path:       opts.Path,
		backends:   map[string]*backend{},
		events:     opts.Events,
		isolated:   opts.Isolated,
		clock:      opts.Now,
		log:        opts.Log,
		noSync:     opts.NoSync,
		collected:  opts.Collected,
		collecting: make(chan struct{}, 1),
	}
	db.content.store = opts.Content
	// After a crash, backends may have what no record names: the first
	// collection looks.
	db.content.dirty.Store(true)
	for name, b := range opts.Snapshotters {
		db.backends[name] = &backend{Backend: b, name: name}
		db.backends[name].dirty.Store(true)
	}
	if db.clock == nil {
		db.clock = time.Now
	}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	for name, b := range opts.Snapshotters {
		if r, ok := b.(snapshot.Rescuer); ok && r.Rescued() != nil {
			db.log.Error("the records of a snapshotter were damaged", "snapshotter", name, "error", r.Rescued())
		}
	}
	gc := DefaultGC()
	if opts.GC != nil {
		gc = *opts.GC
	}
	db.ctx, db.cancel = context.WithCancel(context.WithoutCancel(ctx))
	db.sched = newScheduler(gc, db.clock, db.collectInBackground)
	db.backup.run = db.backupInBackground
	timeout := opts.LockTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	if err := db.open(ctx, timeout); err != nil {
		db.cancel()
		return nil, fmt.Errorf("open metadata database %s: %w", opts.Path, err)
	}
	db.sched.start()
	return db, nil
}

func (db *DB) open(ctx context.Context, timeout time.Duration) (err error) {
	if err := os.MkdirAll(filepath.Dir(db.path), 0o711); err != nil {
		return err
	}
	f, err := boltx.Lock(ctx, db.path, timeout)
	if err != nil {
		return err
	}
	last, report, err := rescueFile(f, db.path, db.now())
	if err != nil {
		return errors.Join(err, f.Close())
	}
	db.report = report
	if report.Damage != nil {
		// The lock is that of the file which was put aside.
		f.Close()
		if f, err = boltx.Lock(ctx, db.path, timeout); err != nil {
			return err
		}
	}
	if db.bolt, err = boltx.New(f, "meta"); err != nil {
		return err
	}
	if db.noSync {
		db.bolt.NoSync()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.bolt.Close())
		}
	}()
	ready := false
	if err := db.view(ctx, func(tx *bolt.Tx) error {
		ready = prepared(tx)
		return nil
	}); err != nil {
		return err
	}
	if !ready {
		if err := db.update(ctx, prepare); err != nil {
			return err
		}
	}
	if last == 0 && db.report.Damage == nil && db.storesHold(ctx) {
		db.report.Damage = damaged("there was no database, or an empty one, to tell of what the stores hold")
		db.report.Source = "the stores"
	}
	if last > 0 && cleanMark(db.path) != last || db.report.Damage != nil {
		db.report.Unclean = true
		if err := db.view(ctx, func(tx *bolt.Tx) error {
			db.report.Unreadable = unreadable(tx)
			return nil
		}); err != nil {
			return err
		}
	}
	if db.report.Damage != nil {
		return db.adoptOrphans(ctx)
	}
	return nil
}

// Report tells what Open found and did.
func (db *DB) Report() Report { return db.report }

// Close ends background work and closes the database; not the stores. It waits
// for calls that are under way; callers have ended theirs.
func (db *DB) Close() error {
	db.sched.close()
	due := db.backup.close()
	db.cancel()
	db.collecting <- struct{}{} // waits for a collection, and no other begins
	db.waitForBackends()
	var err error
	if due {
		err = db.writeBackup()
	}
	var last uint64
	err = errors.Join(err, db.view(context.Background(), func(tx *bolt.Tx) error {
		last = uint64(tx.ID())
		return nil
	}))
	if cerr := db.bolt.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	// Everything is on disk: what the mark says is true.
	return errors.Join(err, writeCleanMark(db.path, last))
}

// waitForBackends waits for backends that are being cleaned, but not long for
// one that hangs: it finds the database closed when it comes back.
func (db *DB) waitForBackends() {
	done := make(chan struct{})
	go func() {
		db.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		db.log.Warn("a backend does not answer, the database is closed without it")
	}
}

func (db *DB) collectInBackground() bool {
	ctx, span := trace.Start(db.ctx, "gc.collect")
	stats, _, err := db.collect(ctx)
	span.Set(trace.Int("removed", stats.Removed))
	span.End(err)
	if err != nil && db.ctx.Err() == nil {
		db.log.Error("garbage collection failed", "error", err)
	}
	return err == nil
}

func (db *DB) backupInBackground() {
	if err := db.writeBackup(); err != nil {
		db.log.Warn("metadata backup failed", "error", err)
	}
}

func (db *DB) now() time.Time { return db.clock().UTC() }

// expires tells the scheduler of a gc.expire label.
func (db *DB) expires(label string) {
	if t, err := time.Parse(time.RFC3339, label); err == nil {
		db.sched.expireAt(t)
	}
}

func (db *DB) publish(ctx context.Context, namespace string, e events.Event) {
	db.events.Publish(ctx, namespace, e)
}

// Namespaces returns the namespace records.
func (db *DB) Namespaces() Namespaces { return Namespaces{db} }

// Scope returns the stores as seen in a namespace. What is written through
// them is added to the lease, unless it is empty; errdefs.ErrNotFound comes
// from the write when there is no such lease.
func (db *DB) Scope(namespace, lease string) Scope { return Scope{db, namespace, lease} }

// Scope is the database as one namespace, and perhaps one lease, sees it.
type Scope struct {
	db        *DB
	namespace string
	lease     string
}

// Namespace that the scope is of.
func (s Scope) Namespace() string { return s.namespace }

// Content returns the namespace's view of the content store.
func (s Scope) Content() content.Store { return blobs{s} }

// Snapshotter returns the namespace's view of a snapshotter; the empty name is
// errdefs.ErrInvalidArgument, an unknown one errdefs.ErrNotFound with the names that there are.
// The view is also a snapshot.Syncer and a snapshot.Cleaner.
func (s Scope) Snapshotter(name string) (snapshot.Backend, error) {
	if name == "" {
		return nil, invalid("no snapshotter was named; there are %s", s.db.snapshotters())
	}
	b, ok := s.db.backends[name]
	if !ok {
		return nil, fmt.Errorf("snapshotter %q, there are %s: %w", name, s.db.snapshotters(), errdefs.ErrNotFound)
	}
	return &snapshots{s, name, b}, nil
}

func (db *DB) snapshotters() string {
	return strings.Join(slices.Sorted(maps.Keys(db.backends)), ", ")
}

func (s Scope) Images() Images         { return Images{s} }
func (s Scope) Containers() Containers { return Containers{s} }
func (s Scope) Leases() Leases         { return Leases{s} }
func (s Scope) Sandboxes() Sandboxes   { return Sandboxes{s} }

// check is made before anything is written.
func (s Scope) check() error { return checkNamespace(s.namespace) }

func (s Scope) publish(ctx context.Context, e events.Event) { s.db.publish(ctx, s.namespace, e) }

// numbers hands out the numbers in the names of backend snapshots. They grow
// beyond what the database says, so that one may be taken without a
// transaction; the record brings it into the database. A crash before that
// leaves a backend snapshot of the number, and the number to be used again:
// Prepare goes on to the next when the backend has it.
type numbers struct {
	mu   sync.Mutex
	last map[string]uint64
}

func (n *numbers) next(sequence string, used uint64) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last == nil {
		n.last = map[string]uint64{}
	}
	n.last[sequence] = max(n.last[sequence], used) + 1
	return n.last[sequence]
}
