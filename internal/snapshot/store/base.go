package store

import (
	"context"

	"berth/internal/object"
)

// Base is the part of a snapshotter that is about its records alone, for
// embedding.
type Base struct{ Store *Store }

// Root is snapshot.Backend.
func (b Base) Root() string { return b.Store.Root() }

// Close is snapshot.Snapshotter.
func (b Base) Close() error { return b.Store.Close() }

// Sync is snapshot.Syncer.
func (b Base) Sync(ctx context.Context) error { return b.Store.Sync(ctx) }

// Cleanup is snapshot.Cleaner.
func (b Base) Cleanup(ctx context.Context) error { return b.Store.Cleanup(ctx) }

// Stat is snapshot.Snapshotter.
func (b Base) Stat(_ context.Context, key string) (object.SnapshotInfo, error) {
	snap, err := b.Store.Get(key)
	return snap.Info, err
}

// Update is snapshot.Snapshotter.
func (b Base) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error) {
	snap, err := b.Store.Update(ctx, info, fieldpaths...)
	return snap.Info, err
}

// Walk is snapshot.Snapshotter.
func (b Base) Walk(ctx context.Context, fn func(object.SnapshotInfo) error, filters ...string) error {
	return b.Store.Walk(ctx, func(snap Snapshot) error { return fn(snap.Info) }, filters...)
}
