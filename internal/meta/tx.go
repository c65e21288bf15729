package meta

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"berth/internal/failpoint"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// maxGroup bounds how many calls share a commit, and with it how long the
// first of them waits for the others' work.
const maxGroup = 256

// write is one call that waits to be part of a transaction.
type write struct {
	fn   func(*bolt.Tx) error
	err  error
	lead bool          // set before done is closed: the call must run the next group itself
	done chan struct{} // closed when err is final, or lead is set
}

// writers lets concurrent calls share a transaction, and with it the two
// fsyncs of a commit. There is no thread and no delay: a call that finds
// nobody at work runs at once; those that arrive meanwhile wait and are
// committed together by the first of them.
type writers struct {
	mu      sync.Mutex
	busy    bool
	waiting []*write
}

// update runs fn in a write transaction and returns when it is on disk. fn may
// run more than once, with nothing left of the earlier runs: it sets its
// results, it does not add to them. It must not wait for anything but the
// database. What it panics with is returned as an error.
func (db *DB) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	return db.write(ctx, fn, false)
}

// updateRemoving is update for a change that is likely to leave garbage: it
// causes a collection soon. Others only count.
func (db *DB) updateRemoving(ctx context.Context, fn func(*bolt.Tx) error) error {
	return db.write(ctx, fn, true)
}

func (db *DB) write(ctx context.Context, fn func(*bolt.Tx) error, removal bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.submit(fn); err != nil {
		return err
	}
	db.sched.mutated(removal)
	db.backup.committed()
	return nil
}

func (db *DB) submit(fn func(*bolt.Tx) error) error {
	w := &write{fn: fn, done: make(chan struct{})}
	g := &db.writers
	g.mu.Lock()
	if g.busy {
		g.waiting = append(g.waiting, w)
		g.mu.Unlock()
		<-w.done
		if !w.lead {
			return w.err
		}
		g.mu.Lock() // the leader before left the group's place to w
	}
	g.busy = true
	group := []*write{w}
	n := min(len(g.waiting), maxGroup-1)
	group = append(group, g.waiting[:n]...)
	g.waiting = append([]*write(nil), g.waiting[n:]...)
	g.mu.Unlock()

	db.commit(group)

	g.mu.Lock()
	if len(g.waiting) > 0 {
		next := g.waiting[0]
		g.waiting = g.waiting[1:]
		next.lead = true
		close(next.done)
	} else {
		g.busy = false
	}
	g.mu.Unlock()
	for _, other := range group[1:] {
		close(other.done)
	}
	return w.err
}

// commit runs the group in one transaction. A call that fails may have changed
// something before it did: the transaction is rolled back and the others run
// again without it.
func (db *DB) commit(group []*write) {
	for len(group) > 0 {
		failed, err := db.try(group)
		if failed >= 0 {
			group[failed].err = err
			group = append(append([]*write(nil), group[:failed]...), group[failed+1:]...)
			continue
		}
		for _, w := range group {
			w.err = err
		}
		return
	}
}

// try returns the index of the call that failed, or -1 with the outcome of the
// transaction for all.
func (db *DB) try(group []*write) (failed int, err error) {
	failed = -1
	defer catchFaults(&err)()
	tx, err := db.bolt.Begin(true)
	if err != nil {
		return -1, fmt.Errorf("begin transaction: %w", err)
	}
	defer func() {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, berrors.ErrTxClosed) && err == nil {
			err = rerr
		}
	}()
	for i, w := range group {
		failed = i // also when it panics
		if err := w.fn(tx); err != nil {
			return i, err
		}
	}
	failed = -1
	if err := failpoint.Hit("meta.commit.before"); err != nil {
		return -1, err
	}
	if err := tx.Commit(); err != nil {
		return -1, fmt.Errorf("commit transaction: %w", err)
	}
	failpoint.Hit("meta.commit.after")
	return -1, nil
}

// view runs fn in a read transaction: the database as the last commit left it.
// It never waits for a writer. fn must not call back to a client or a store:
// a long read keeps pages from being reused.
func (db *DB) view(ctx context.Context, fn func(*bolt.Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer catchFaults(&err)()
	return db.bolt.View(fn)
}

// catchFaults turns a panic, and the fault of a page that the disk cannot
// read, into an error: a bad sector fails the call that needs it, not the
// daemon. The database is memory-mapped, so there is no read error to return.
func catchFaults(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("read metadata database: %v: %w", p, errdefs.ErrDataLoss)
		}
	}
}
