// Package boltx lets concurrent writers of a bolt database share a commit, and
// so its two fsyncs.
//
// There is no goroutine and no delay: a writer that finds nobody at work
// commits at once; those that come meanwhile wait, and are committed together
// by the first of them. Readers wait for nobody.
package boltx

import (
	"context"
	"fmt"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// maxGroup bounds how many calls share a commit, and so how long the first of
// them waits for the others' work.
const maxGroup = 256

// DB is a bolt database. All methods are safe for concurrent use.
type DB struct {
	db *bolt.DB

	mu      sync.Mutex
	busy    bool
	waiting []*call
}

type call struct {
	fn   func(*bolt.Tx) error
	err  error
	lead bool          // it is this call's turn to commit a group
	done chan struct{} // closed when err or lead is set
}

// Open opens or makes the database file. An error after some seconds when
// another process has it open.
func Open(path string) (*DB, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      5 * time.Second,
		NoStatistics: true,
		FreelistType: bolt.FreelistMapType, // in memory only; the file is the same
	})
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return &DB{db: db}, nil
}

// Close waits for transactions to end.
func (d *DB) Close() error { return d.db.Close() }

// View runs fn in a read transaction, which sees the last commit. It must not
// last: meanwhile no page that was in use at its beginning can be freed.
func (d *DB) View(fn func(*bolt.Tx) error) error { return d.db.View(fn) }

// Update runs fn in a write transaction and returns when that is on disk. When
// fn fails nothing that it did remains, and its error is returned. fn may run
// more than once: it sets its results, it does not add to them, and it waits
// for nothing but the database. The context counts until fn is queued.
func (d *DB) Update(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{fn: fn, done: make(chan struct{})}
	d.mu.Lock()
	if d.busy {
		d.waiting = append(d.waiting, c)
		d.mu.Unlock()
		<-c.done
		if !c.lead {
			return c.err
		}
		d.mu.Lock()
	}
	d.busy = true
	n := min(len(d.waiting), maxGroup-1)
	group := append([]*call{c}, d.waiting[:n]...)
	d.waiting = append([]*call(nil), d.waiting[n:]...)
	d.mu.Unlock()

	defer d.pass()
	d.commit(group)
	for _, other := range group[1:] {
		close(other.done)
	}
	return c.err
}

// pass gives the turn to the next who waits.
func (d *DB) pass() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy = len(d.waiting) > 0
	if d.busy {
		next := d.waiting[0]
		d.waiting = d.waiting[1:]
		next.lead = true
		close(next.done)
	}
}

// commit runs a group in one transaction. A call that fails is taken out, the
// others are run again without it, and it then again on its own: it must not
// fail because of something that was never committed.
func (d *DB) commit(group []*call) {
	var alone []*call
	for len(group) > 0 {
		failed := -1
		err := d.db.Update(func(tx *bolt.Tx) error {
			for i, c := range group {
				if err := run(c.fn, tx); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed < 0 {
			for _, c := range group {
				c.err = err
			}
			break
		}
		if len(group) == 1 && len(alone) == 0 {
			group[0].err = err
			return
		}
		alone = append(alone, group[failed])
		group = append(group[:failed:failed], group[failed+1:]...)
	}
	for _, c := range alone {
		c.err = d.db.Update(func(tx *bolt.Tx) error { return run(c.fn, tx) })
	}
}

// run turns a panic into an error: it is one caller's, and the others who
// share the transaction have nothing to do with it.
func run(fn func(*bolt.Tx) error, tx *bolt.Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a database transaction: %v", p)
		}
	}()
	return fn(tx)
}
