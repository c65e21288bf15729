package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/boltx"
	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

const (
	// callTimeout ends a call to a backend that hangs during a collection.
	callTimeout = time.Minute
	// doomBatch bounds how many objects are doomed at a time: who wants one of
	// them waits until its turn has come.
	doomBatch = 32
	// removers is how many objects are removed at a time: the records of a backend
	// then share the flush of a commit, for which others wait too.
	removers = 8
	// cleanerTimeout is how long a collection waits for what an earlier one still
	// removes from a backend: that may hang, and is then left to itself.
	cleanerTimeout = 2 * time.Second
)

// cleaning is what the collector knows of a backend: what to look for in it, and
// whether somebody does.
type cleaning struct {
	dirty atomic.Bool // something may be there that no record names: look through all of it

	mu      sync.Mutex
	unnamed map[string]struct{} // keys whose record was removed; others may name them too
	done    chan struct{}       // closed when the cleaner ends; nil while there is none
	again   bool                // a collection came meanwhile: the cleaner begins anew
}

// lost notes that a record which named an object of the backend is gone.
func (c *cleaning) lost(key string) {
	if key == "" {
		return // the record named nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unnamed == nil {
		c.unnamed = map[string]struct{}{}
	}
	c.unnamed[key] = struct{}{}
}

// take returns what is to be looked for: certain keys, or anything.
func (c *cleaning) take() (keys []string, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys, c.unnamed = slices.Collect(maps.Keys(c.unnamed)), nil
	return keys, c.dirty.Swap(false)
}

// backend is a snapshotter with what the collector knows of it.
type backend struct {
	snapshot.Backend
	cleaning
	name string
}

func (b *backend) claim(key string) string { return "snapshot " + b.name + " " + key }

// blobBackend is the content store with what the collector knows of it.
type blobBackend struct {
	cleaning
	store content.Store
}

// swept tells the world, and the backends, of records that a collection removed.
func (db *DB) swept(ctx context.Context, removed []removal) {
	for _, n := range removed {
		switch n.kind {
		case kindContent, kindIngest:
			db.content.dirty.Store(true)
		case kindImage:
			db.publish(ctx, n.ns, events.ImageDelete(n.key))
		case kindSnapshot:
			path, key := n.path()
			if b := db.backends[path[1]]; b != nil {
				b.lost(n.backend)
			}
			db.publish(ctx, n.ns, events.SnapshotRemove(path[1], key))
		}
	}
}

// cleanBackends has every backend cleaned that needs it, each in a goroutine of
// its own: one that hangs holds up only itself. The channel is closed when all are
// done. One that is being cleaned already is cleaned once more after that, since
// it may have been looked through before the records went.
func (db *DB) cleanBackends() <-chan struct{} {
	var all sync.WaitGroup
	clean := func(c *cleaning, what string, fn cleaner) {
		cleaned, fresh := db.clean(c, what, fn)
		if cleaned == nil {
			return
		}
		var patience <-chan time.Time
		if !fresh {
			patience = time.After(cleanerTimeout)
		}
		all.Go(func() {
			select {
			case <-cleaned:
			case <-patience:
			}
		})
	}
	clean(&db.content.cleaning, "content", func(ctx context.Context, _ []string, _ bool) error { return db.cleanContent(ctx) })
	for name, b := range db.backends {
		clean(&b.cleaning, name, func(ctx context.Context, keys []string, all bool) error {
			return db.cleanSnapshots(ctx, b, keys, all)
		})
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	return done
}

// cleaner removes from a backend those of the keys that no record names, or
// everything that none names.
type cleaner func(ctx context.Context, keys []string, all bool) error

// clean starts a cleaner (fresh) or has the one that runs begin anew, and returns
// what is closed at its end; nil when there is nothing to do.
func (db *DB) clean(c *cleaning, what string, fn cleaner) (done <-chan struct{}, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil {
		c.again = true
		return c.done, false
	}
	if !c.dirty.Load() && len(c.unnamed) == 0 {
		return nil, false
	}
	c.done = make(chan struct{})
	db.background.Go(func() {
		for more := true; more; more = c.goOn() {
			keys, all := c.take()
			if !all && len(keys) == 0 {
				continue
			}
			if err := fn(db.ctx, keys, all); err != nil {
				c.dirty.Store(true) // what failed is tried again
				if db.ctx.Err() == nil {
					db.log.Warn("garbage is left for the next collection", "backend", what, "error", err)
				}
			}
		}
	})
	return c.done, true
}

// goOn tells the cleaner whether it was asked to clean once more, or ends it.
func (c *cleaning) goOn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again {
		c.again = false
		return true
	}
	close(c.done)
	c.done = nil
	return false
}

// named is what the records of all namespaces name in a backend.
type namedObjects map[string]struct{}

func (s namedObjects) add(key string) {
	if key != "" {
		s[key] = struct{}{}
	}
}

func (db *DB) namedBlobs(ctx context.Context) (blobs, ingests namedObjects, err error) {
	blobs, ingests = namedObjects{}, namedObjects{}
	var pace boltx.Pace
	err = db.view(ctx, func(tx *bolt.Tx) error {
		return records(tx.Bucket([]byte(schemaVersion)), func(_ []byte, ns *bolt.Bucket) error {
			if err := records(sub(ns, keyContent, keyIngests), func(_ []byte, b *bolt.Bucket) error {
				ingests.add(getString(b, keyRef))
				blobs.add(getString(b, keyExpected))
				return nil
			}); err != nil {
				return err
			}
			return records(sub(ns, keyContent, keyBlob), func(d []byte, _ *bolt.Bucket) error {
				pace.Step()
				blobs.add(string(d))
				return nil
			})
		})
	})
	return blobs, ingests, err
}

func (db *DB) cleanContent(ctx context.Context) error {
	since, end := db.claims.watch()
	defer end()
	blobs, ingests, err := db.namedBlobs(ctx)
	if err != nil {
		return err
	}
	var garbage []string
	if err := db.content.store.Walk(ctx, func(info object.BlobInfo) error {
		if _, ok := blobs[info.Digest.String()]; !ok {
			garbage = append(garbage, info.Digest.String())
		}
		return nil
	}); err != nil {
		return fmt.Errorf("look for blobs: %w", err)
	}
	d := doomed{&db.content.cleaning, since, func(d string) string { return contentClaim(digest.Digest(d)) },
		func(ctx context.Context, d string) error { return db.content.store.Delete(ctx, digest.Digest(d)) }}
	failed := db.removeDoomed(ctx, d, garbage)
	return errors.Join(failed, db.cleanIngests(ctx, ingests))
}

// cleanIngests needs no claims: the record precedes the ingest, and the
// backend's reference is never used again once the record is gone.
func (db *DB) cleanIngests(ctx context.Context, before namedObjects) error {
	statuses, err := db.content.store.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("look for ingests: %w", err)
	}
	statuses = slices.DeleteFunc(statuses, func(st object.IngestStatus) bool {
		_, ok := before[st.Ref]
		return ok
	})
	if len(statuses) == 0 {
		return nil
	}
	_, now, err := db.namedBlobs(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, st := range statuses {
		if _, ok := now[st.Ref]; ok {
			continue
		}
		if err := db.call(ctx, func(ctx context.Context) error { return db.content.store.Abort(ctx, st.Ref) }); err != nil {
			failed = errors.Join(failed, fmt.Errorf("abort ingest %s: %w", st.Ref, err))
		}
	}
	return failed
}

// namedSnapshots reads the file itself: there are many, and a collection must not
// keep a processor busy for long.
func (db *DB) namedSnapshots(ctx context.Context, snapshotter string) (keys namedObjects, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = db.bolt.ViewFile(func(f *boltx.File) error {
		keys = namedObjects{}
		var pace boltx.Pace
		field := func(k, v []byte, isBucket bool) error {
			if !isBucket && string(k) == keyName {
				keys.add(string(v))
			}
			return nil
		}
		record := func(_, v []byte, isBucket bool) error {
			if !isBucket {
				return nil
			}
			pace.Step()
			return f.Bucket(v, field, fail)
		}
		v1, err := f.Find(schemaVersion)
		if err != nil || v1 == nil {
			return err
		}
		return f.Bucket(v1, func(_, ns []byte, isBucket bool) error {
			if !isBucket {
				return nil
			}
			all, err := f.Within(ns, keySnapshots, snapshotter)
			if err != nil || all == nil {
				return err
			}
			return f.Bucket(all, record, fail)
		}, fail)
	})
	return keys, err
}

func (db *DB) cleanSnapshots(ctx context.Context, b *backend, keys []string, all bool) error {
	since, end := db.claims.watch()
	defer end()
	named, err := db.namedSnapshots(ctx, b.name)
	if err != nil {
		return err
	}
	garbage, parents, err := db.unnamedSnapshots(ctx, b, named, keys, all)
	if err != nil {
		return err
	}
	d := doomed{&b.cleaning, since, b.claim, func(ctx context.Context, key string) error {
		err := b.Remove(ctx, key)
		if errdefs.IsFailedPrecondition(err) {
			b.lost(key) // a child is in use; with that it can go
			return nil
		}
		return err
	}}
	failed := db.removeDoomed(ctx, d, generations(garbage, parents)...)
	failpoint.Hit("meta.gc.before-cleanup")
	if c, ok := b.Backend.(snapshot.Cleaner); ok {
		if err := db.call(ctx, c.Cleanup); err != nil && !errdefs.IsNotImplemented(err) {
			failed = errors.Join(failed, fmt.Errorf("clean up: %w", err))
		}
	}
	return failed
}

// unnamedSnapshots looks in a backend for what no record names, among the keys or
// all that it has. The parents are those of the garbage.
func (db *DB) unnamedSnapshots(ctx context.Context, b *backend, named namedObjects, keys []string, all bool) (garbage []string, parents map[string]string, err error) {
	parents = map[string]string{}
	found := func(info object.SnapshotInfo) error {
		if _, ok := named[info.Name]; !ok {
			parents[info.Name] = info.Parent
			garbage = append(garbage, info.Name)
		}
		return nil
	}
	if all {
		if err := b.Walk(ctx, found); err != nil {
			return nil, nil, fmt.Errorf("look for snapshots: %w", err)
		}
		return garbage, parents, nil
	}
	for _, key := range keys {
		var info object.SnapshotInfo
		err := db.call(ctx, func(ctx context.Context) (err error) {
			info, err = b.Stat(ctx, key)
			return err
		})
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look for snapshot %s: %w", key, err)
		}
		_ = found(info)
	}
	return garbage, parents, nil
}

// generations puts snapshots into groups, so that each comes in an earlier one
// than its parent. The parents are those of the snapshots themselves.
func generations(keys []string, parents map[string]string) [][]string {
	depth := func(key string) (n int) {
		for ; n <= len(parents); n++ { // a cycle is not worth an endless loop
			parent, ok := parents[key]
			if !ok {
				break
			}
			key = parent
		}
		return n
	}
	groups := map[int][]string{}
	for _, k := range keys {
		n := depth(k)
		groups[n] = append(groups[n], k)
	}
	var sorted [][]string
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(groups))) {
		sorted = append(sorted, groups[n])
	}
	return sorted
}

// doomed is how the objects of one backend are removed that no record named since
// the watch began.
type doomed struct {
	of     *cleaning
	since  *watch
	claim  func(key string) string
	remove func(ctx context.Context, key string) error
}

// removeDoomed removes objects, one group after the other, but several of a group
// at a time. It returns what went wrong with single ones, having tried all. What
// somebody has claimed meanwhile is left to the next collection.
func (db *DB) removeDoomed(ctx context.Context, d doomed, groups ...[]string) error {
	var mu sync.Mutex
	var failed error
	remove := func(key string) {
		defer db.claims.pardon(d.claim(key))
		failpoint.Hit("meta.gc.before-remove")
		if err := db.call(ctx, func(ctx context.Context) error { return d.remove(ctx, key) }); err != nil && !errdefs.IsNotFound(err) {
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, fmt.Errorf("remove %s: %w", key, err))
		}
	}
	for _, group := range groups {
		for batch := range slices.Chunk(group, doomBatch) {
			keys := make(chan string, len(batch))
			for _, key := range batch {
				if db.claims.doom(d.claim(key), d.since) {
					keys <- key
				} else {
					d.of.dirty.Store(true)
				}
			}
			close(keys)
			var all sync.WaitGroup
			for range min(removers, len(keys)) {
				all.Go(func() {
					for key := range keys {
						remove(key)
					}
				})
			}
			all.Wait()
			if ctx.Err() != nil {
				return errors.Join(failed, ctx.Err())
			}
		}
	}
	return failed
}

// call bounds one call to a backend.
func (db *DB) call(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return fn(ctx)
}
