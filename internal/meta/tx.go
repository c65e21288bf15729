package meta

import (
	"context"

	bolt "go.etcd.io/bbolt"
)

// update runs fn in a write transaction, which it may share with others, and
// returns when that is on disk; see boltx.DB.Update for what fn may do.
func (db *DB) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	return db.write(ctx, fn, false)
}

// updateRemoving is update for a change that is likely to leave garbage: it
// causes a collection soon. Others only count.
func (db *DB) updateRemoving(ctx context.Context, fn func(*bolt.Tx) error) error {
	return db.write(ctx, fn, true)
}

// updateAndCollect is updateRemoving for those who wait for a collection after it,
// with collectNow: none is to be scheduled besides.
func (db *DB) updateAndCollect(ctx context.Context, collect bool, fn func(*bolt.Tx) error) error {
	return db.write(ctx, fn, !collect)
}

func (db *DB) collectNow(ctx context.Context) error {
	_, err := db.Collect(ctx)
	if err != nil {
		db.sched.mutated(true)
	}
	return err
}

func (db *DB) write(ctx context.Context, fn func(*bolt.Tx) error, removal bool) error {
	if err := db.bolt.Update(ctx, fn); err != nil {
		return err
	}
	db.sched.mutated(removal)
	db.backup.committed()
	return nil
}

// view runs fn in a read transaction: the database as the last commit left it.
// It never waits for a writer. fn must not call back to a client or a store:
// a long read keeps pages from being reused.
func (db *DB) view(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return db.bolt.View(fn)
}
