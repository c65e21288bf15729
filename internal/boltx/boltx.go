// Package boltx opens bolt databases so that writing is cheap and damage is no
// end: concurrent writers share a commit (group.go), a commit takes one flush of
// the disk instead of two (seal.go), and files are looked through without
// trusting them (file.go), since bolt panics on a damaged one.
//
// Readers wait for nobody. They see a transaction from the moment at which it is
// written, which is before its writers are told that it is durable.
//
// Lock order: the turn of the group, then bolt's own lock.
package boltx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// DB is a bolt database. All methods are safe for concurrent use.
type DB struct {
	db     *bolt.DB
	view   *mapping
	sealer *sealer // nil: bolt flushes, twice for each commit

	group  group
	failed error // of a flush; belongs to whose turn it is

	points struct{ before, flush, after string } // names for package failpoint
}

// Lock opens the file at path, which it makes when there is none, and locks it
// as bolt does; errdefs.ErrUnavailable when another process holds the lock for
// as long as timeout.
func Lock(ctx context.Context, path string, timeout time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(&os.PathError{Op: "lock", Path: path, Err: err}, f.Close())
		}
		// There is no lock with a timeout; this happens at start-up only.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another process, perhaps a daemon that still runs, has it open: %w", errdefs.ErrUnavailable)
		}
	}
}

// Check looks through a locked file before it is opened, and undoes a
// transaction that a power cut has torn (seal.go); undone is its number, else 0.
// closed is the number of the last transaction when the database was last closed
// in order, 0 if that is not known. An empty file is in order, its last
// transaction is 0. errdefs.ErrDataLoss when the file is damaged: bolt must not
// open it.
func Check(f *os.File, closed uint64) (last, undone uint64, err error) {
	defer CatchFaults(&err)()
	data, unmap, err := Map(f)
	if err != nil {
		return 0, 0, err
	}
	defer unmap()
	if len(data) == 0 {
		return 0, 0, nil
	}
	if undone, err = undoTorn(f, data, closed); err != nil {
		return 0, 0, err
	}
	m, err := VerifyNewest(data)
	return m.Tx, undone, err
}

// New opens the database in a file from Lock in which Check found no damage. It
// owns the file from then on, also when it fails. The name is that of its
// failpoints, <name>.commit.….
func New(f *os.File, name string) (d *DB, err error) {
	d = &DB{}
	d.points.before, d.points.flush, d.points.after = name+".commit.before", name+".commit.before-flush", name+".commit.after"
	defer func() {
		if err != nil {
			err = fmt.Errorf("open database %s: %w", f.Name(), err)
		}
	}()
	defer CatchFaults(&err)()
	d.db, err = bolt.Open(f.Name(), 0o600, &bolt.Options{
		// The lock belongs to the open file: bolt's own attempt succeeds.
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		// As containerd does for its records. The free list is found by a walk
		// when the file is opened, and not written with every commit.
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType, // in memory only
		NoStatistics:   true,
		// Addresses, not memory: the file need not be mapped anew when it
		// grows, for which a writer would wait for all readers, and readers
		// for it.
		InitialMmapSize: mapSize,
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d.db.AllocSize = growBy
	d.view = &mapping{f: f}
	if d.db.Info().PageSize < sealOffset+sealSize {
		return d, nil
	}
	sealer, err := newSealer(f, d.view)
	if err != nil {
		d.view.close()
		return nil, errors.Join(err, d.db.Close())
	}
	if writeThrough(d.db, sealer.writeAt) {
		d.sealer = sealer
		d.db.NoSync = true // the sealer does it
	}
	return d, nil
}

// writeThrough has bolt write its file through a function, so that a meta page
// gets its seal before anybody, the kernel's write-back included, can see it
// without. bolt has no option for that, only a field; a bolt without the field
// flushes for itself.
func writeThrough(db *bolt.DB, write func(b []byte, off int64) (int, error)) bool {
	ops := reflect.ValueOf(db).Elem().FieldByName("ops")
	if !ops.IsValid() || ops.Kind() != reflect.Struct {
		return false
	}
	field := ops.FieldByName("writeAt")
	if !field.IsValid() || field.Type() != reflect.TypeOf(write) {
		return false
	}
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(write))
	return true
}

// NoSync leaves it to the kernel when transactions reach the disk: a power cut may
// then cost the last ones, or all. It is called before anything is written.
func (d *DB) NoSync() {
	d.db.NoSync = true
	if d.sealer != nil {
		d.sealer.noSync = true
	}
}

// Open is Lock, Check and New, for those who cannot mend a damaged file.
func Open(path, name string) (*DB, error) {
	f, err := Lock(context.Background(), path, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if _, _, err := Check(f, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), f.Close())
	}
	return New(f, name)
}

// Close waits for transactions to end.
func (d *DB) Close() error {
	d.group.enter()
	defer d.group.leave()
	err := d.db.Close() // waits for readers, and updates fail from now on
	d.view.close()
	return err
}

// View runs fn in a read transaction: the database as the last commit left it.
// It never waits for a writer. It must not last: meanwhile no page that was in
// use at its beginning can be freed. What fn panics with is returned as an error.
func (d *DB) View(fn func(*bolt.Tx) error) (err error) {
	defer CatchFaults(&err)()
	return d.db.View(fn)
}

// Alone runs fn while no write transaction is open.
func (d *DB) Alone(fn func()) {
	d.group.enter()
	defer d.group.leave()
	fn()
}
