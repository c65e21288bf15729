package boltx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"berth/internal/failpoint"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// maxGroup bounds how many calls share a commit, and with it how long the first
// of them waits for the others' work.
const maxGroup = 256

// group lets concurrent calls share a transaction, and with it the flush of a
// commit. There is no goroutine and no delay: a call that finds nobody at work
// runs at once; those that arrive meanwhile wait and are committed together by
// the first of them.
type group struct {
	mu      sync.Mutex
	busy    bool
	waiting []*call
}

// call waits to be part of a transaction, or for a turn of its own (fn is nil).
type call struct {
	fn   func(*bolt.Tx) error
	err  error
	lead bool          // set before done is closed: the turn is the call's
	done chan struct{} // closed when err is final, or lead is set
}

// join queues a call until its outcome is known, or it has the turn (lead).
func (g *group) join(c *call) (lead bool) {
	g.mu.Lock()
	if !g.busy {
		g.busy = true
		g.mu.Unlock()
		return true
	}
	c.done = make(chan struct{})
	g.waiting = append(g.waiting, c)
	g.mu.Unlock()
	<-c.done
	return c.lead
}

// followers takes those who wait out of the queue, up to one that wants a turn
// of its own.
func (g *group) followers() (calls []*call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for n < min(len(g.waiting), maxGroup-1) && g.waiting[n].fn != nil {
		n++
	}
	calls = g.waiting[:n:n]
	g.waiting = g.waiting[n:]
	return calls
}

func (g *group) enter() { g.join(&call{}) }

// leave gives the turn to the first who waits.
func (g *group) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.busy, g.waiting = false, nil
		return
	}
	next := g.waiting[0]
	g.waiting = g.waiting[1:]
	next.lead = true
	close(next.done)
}

// Update runs fn in a write transaction and returns when that is on disk. When
// fn fails nothing that it did remains, and its error is returned. fn may run
// more than once, with nothing left of the earlier runs: it sets its results, it
// does not add to them. It must not wait for anything but the database. What it
// panics with is returned as an error. The context counts until fn is queued.
//
// An error of the disk is errdefs.ErrUnavailable for this and all later updates:
// what was written may be lost although it can be read. Opening the database
// again begins with what is on disk.
func (d *DB) Update(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{fn: fn}
	if !d.group.join(c) {
		return c.err
	}
	defer d.group.leave()
	calls := append([]*call{c}, d.group.followers()...)
	d.commit(calls)
	for _, other := range calls[1:] {
		close(other.done)
	}
	if d.sealer != nil && d.failed == nil {
		d.sealer.grow()
	}
	return c.err
}

// commit runs calls in one transaction. Those that fail are taken out, the others
// are run again without them, and then each of them again on its own: it must not
// fail because of something that was never committed.
func (d *DB) commit(calls []*call) {
	var alone []*call
	for len(calls) > 0 {
		failed, err := d.try(calls)
		if len(failed) == 0 {
			for _, c := range calls {
				c.err = err
			}
			break
		}
		if len(calls) == 1 && len(alone) == 0 {
			calls[0].err = err
			return
		}
		alone = append(alone, failed...)
		calls = slices.DeleteFunc(slices.Clone(calls), func(c *call) bool { return slices.Contains(failed, c) })
	}
	for _, c := range alone {
		_, c.err = d.try([]*call{c})
	}
}

// try returns the calls that failed, with the error of the first, or the outcome
// of the transaction for all. After a failure it goes on, although the transaction
// comes to nothing: many that fail are found out at once.
func (d *DB) try(calls []*call) (failed []*call, err error) {
	if d.failed != nil {
		return nil, d.failed
	}
	defer CatchFaults(&err)()
	tx, err := d.db.Begin(true)
	if err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	defer func() {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, berrors.ErrTxClosed) && err == nil {
			err = rerr
		}
	}()
	for _, c := range calls {
		if ferr := c.run(tx); ferr != nil {
			failed = append(failed, c)
			err = cmp.Or(err, ferr)
		}
	}
	if len(failed) > 0 {
		return failed, err
	}
	if err := failpoint.Hit(d.points.before); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		if d.sealer != nil && d.sealer.failed != nil {
			d.failed = undurable(d.sealer.failed)
			return nil, d.failed
		}
		return nil, fmt.Errorf("commit transaction: %w", err)
	}
	if d.sealer != nil {
		// A crash of the process here leaves the transaction done, although
		// nobody was told; a power cut leaves it done or not.
		failpoint.Hit(d.points.flush)
		if err := d.sealer.flush(); err != nil {
			d.failed = undurable(err)
			return nil, d.failed
		}
	}
	failpoint.Hit(d.points.after)
	return nil, nil
}

// run returns what fn panics with as an error, too.
func (c *call) run(tx *bolt.Tx) (err error) {
	defer CatchFaults(&err)()
	return c.fn(tx)
}

func undurable(err error) error {
	return fmt.Errorf("make records durable: %w: %w; nothing more is written until the daemon is started again", err, errdefs.ErrUnavailable)
}
