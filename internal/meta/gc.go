package meta

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/internal/boltx"
	"berth/internal/failpoint"

	bolt "go.etcd.io/bbolt"
)

// Garbage collection
//
// What is reachable stays. Roots are leases that have not expired, with what
// they hold; images that have not expired; containers; sandboxes; ingests
// within their time; and whatever carries the label gc.root. From there on,
// references lead from an image to its target, from a container to its
// snapshot, from a snapshot to its parent, from an ingest to the blob that it
// stands for, and along the gc.ref labels of all of them; gc.bref labels are
// the same edges, written down at their far end. Everything else is garbage:
// leases, images, blobs, ingests and snapshots. Containers and sandboxes are
// removed by their owners only.
//
// A collection has three phases, and none of them stops writers or readers:
//
//  1. Mark, in a read transaction: the database as of one moment, T. It yields
//     the set that was reachable at T, and the candidates: what existed at T
//     and was not.
//  2. Sweep the records of the candidates, in write transactions of a bounded
//     number of removals each.
//  3. Remove from the backends, with no transaction and no lock held, what no
//     record names any more.
//
// Why it is safe to sweep what was marked earlier. From before T until the
// sweep has ended, every write transaction notes the records that it writes
// (touch: the barrier). A candidate can have become reachable after T only
// along an edge that did not exist at T, or because it became a root; either
// is part of some record, and the record was written after T, hence noted. So
// each sweeping transaction begins by marking again from everything noted so
// far: from the noted records themselves, although some had been marked at T
// with the edges that they had then. Write transactions are serial, so what is
// noted is complete for all that precede the sweeping one, and whatever follows
// it sees the candidates gone, as it would after any removal. Objects made after
// T are no candidates, those deleted and made again are noted. The error is on
// the safe side: what was noted may be garbage by now, and the next collection
// finds it.
//
// Why it is safe to remove from a backend what no record names. Those who are
// about to record a backend object hold a claim on it from before they look at
// or make it until the record is committed. The collector begins to watch the
// claims, reads once what the records name, looks through the backend, or in it for
// what removed records had named, and dooms what is not named; that fails when the object is claimed, or was at any time
// since the watch began. So what is doomed had no record then, nor got one since,
// and as nobody claims it, it cannot get one before the removal has ended. See
// claims.

// Labels of containerd's that guide the collector.
const (
	labelGC     = "containerd.io/gc."
	labelExpire = "containerd.io/gc.expire"
	labelFlat   = "containerd.io/gc.flat"
	labelUsedAt = "containerd.io/gc.cond.value-usedat"
)

// sweepBatch bounds the removals of one transaction, and with it how long
// writers wait for it.
const sweepBatch = 256

type nodeKind uint8

const (
	kindContent nodeKind = iota + 1
	kindSnapshot
	kindContainer
	kindImage
	kindLease
	kindIngest
	kindSandbox
	// flat, added to a kind, stands for the object without what its labels refer to.
	flat nodeKind = 0x80
)

// node names a record. The key of a snapshot is <snapshotter>/<key>.
type node struct {
	kind nodeKind
	ns   string
	key  string
}

// GCStats is what a collection did and how long its phases took.
type GCStats struct {
	Mark, Sweep time.Duration
	// Removed counts records.
	Removed int
}

// Collect runs a garbage collection now and returns when it is done: records
// and, unless a backend takes longer than ctx lasts, bytes. What had become
// garbage before the call is gone after it.
func (db *DB) Collect(ctx context.Context) (GCStats, error) {
	stats, cleaned, err := db.collect(ctx)
	if err != nil {
		return stats, err
	}
	select {
	case <-cleaned:
	case <-ctx.Done():
		return stats, fmt.Errorf("records were collected, a backend still removes: %w", ctx.Err())
	}
	return stats, nil
}

// CollectRecords is Collect for those who need not wait for the backends: they
// remove bytes in the background.
func (db *DB) CollectRecords(ctx context.Context) (GCStats, error) {
	stats, _, err := db.collect(ctx)
	return stats, err
}

// collect marks and sweeps; cleaned is closed when the backends are done too.
func (db *DB) collect(ctx context.Context) (stats GCStats, cleaned <-chan struct{}, err error) {
	select {
	case db.collecting <- struct{}{}:
	case <-ctx.Done():
		return stats, nil, ctx.Err()
	}
	defer func() { <-db.collecting }()
	start := time.Now()
	defer func() {
		if db.collected != nil && ctx.Err() == nil {
			db.collected(time.Since(start), err)
		}
	}()
	db.bolt.Alone(func() { db.touched = map[node]struct{}{} })
	defer db.bolt.Alone(func() { db.touched = nil })
	m := newMarker(db.now())
	var candidates []node
	if err := db.view(ctx, func(tx *bolt.Tx) error {
		candidates = m.mark(tx)
		return nil
	}); err != nil {
		return stats, nil, fmt.Errorf("mark garbage: %w", err)
	}
	db.sched.expireAt(m.expiry)
	stats.Mark = time.Since(start)
	failpoint.Hit("meta.gc.marked")
	for len(candidates) > 0 {
		batch := candidates[:min(sweepBatch, len(candidates))]
		candidates = candidates[len(batch):]
		removed, err := db.sweep(m, batch)
		if err != nil {
			return stats, nil, fmt.Errorf("sweep garbage: %w", err)
		}
		failpoint.Hit("meta.gc.swept")
		stats.Removed += len(removed)
		db.swept(ctx, removed)
	}
	stats.Sweep = time.Since(start) - stats.Mark
	return stats, db.cleanBackends(), nil
}

// touch notes that a write transaction writes the record of n: the barrier.
// Only write transactions call it, so it needs no lock.
func (db *DB) touch(n node) {
	if db.touched != nil {
		db.touched[n] = struct{}{}
	}
}

// sweep removes the records of a batch that are still garbage.
func (db *DB) sweep(m *marker, batch []node) (removed []removal, err error) {
	err = db.bolt.Update(context.Background(), func(tx *bolt.Tx) error {
		removed = nil
		m.tx = tx
		for n := range db.touched {
			m.again(n)
		}
		for _, n := range batch {
			if m.isMarked(n) {
				continue
			}
			backend, gone, err := removeNode(tx, n)
			if err != nil {
				return fmt.Errorf("remove %s in namespace %s: %w", n.key, n.ns, err)
			}
			if gone {
				removed = append(removed, removal{n, backend})
			}
		}
		return nil
	})
	return removed, err
}

// removal is a record that was removed, and the key of the snapshot that it named
// in its backend.
type removal struct {
	node
	backend string
}

func removeNode(tx *bolt.Tx, n node) (backend string, gone bool, err error) {
	path, key := n.path()
	all := inNamespace(tx, n.ns, path...)
	record := sub(all, key)
	if record == nil {
		return "", false, nil
	}
	if n.kind == kindSnapshot {
		backend = getString(record, keyName)
		return backend, true, unlinkSnapshot(all, key)
	}
	return "", true, all.DeleteBucket([]byte(key))
}

// path of the bucket that holds the record, and its key there.
func (n node) path() ([]string, string) {
	switch n.kind &^ flat {
	case kindContent:
		return []string{keyContent, keyBlob}, n.key
	case kindSnapshot:
		snapshotter, key, _ := strings.Cut(n.key, "/")
		return []string{keySnapshots, snapshotter}, key
	case kindContainer:
		return []string{keyContainers}, n.key
	case kindImage:
		return []string{keyImages}, n.key
	case kindLease:
		return []string{keyLeases}, n.key
	case kindIngest:
		return []string{keyContent, keyIngests}, n.key
	default:
		return []string{keySandboxes}, n.key
	}
}

// marker finds what is reachable. Its sets outlive the transaction of the mark
// and serve the sweeps.
type marker struct {
	tx     *bolt.Tx
	now    time.Time
	marked map[node]struct{}
	back   map[node][]node // gc.bref: from the object that keeps to those kept
	todo   []node
	// expiry is the earliest moment at which something that was a root expires;
	// zero when nothing does.
	expiry time.Time
	last   place // of references
}

func newMarker(now time.Time) *marker {
	return &marker{now: now, marked: map[node]struct{}{}, back: map[node][]node{}}
}

// mark marks what is reachable and returns what is not.
func (m *marker) mark(tx *bolt.Tx) (garbage []node) {
	m.tx = tx
	m.eachNamespace(m.roots)
	m.drain(new(boltx.Pace).Step)
	m.eachNamespace(func(ns string, b *bolt.Bucket) {
		eachCollectable(ns, b, func(n node, _ *bolt.Bucket, _ []byte) {
			if !m.isMarked(n) {
				garbage = append(garbage, n)
			}
		})
	})
	return garbage
}

// again marks from the present references of n, whether it was marked before
// or not.
func (m *marker) again(n node) {
	m.marked[n] = struct{}{}
	m.references(n)
	m.drain(func() {}) // in a write transaction: others wait for it
}

func (m *marker) isMarked(n node) bool {
	if _, ok := m.marked[n]; ok {
		return true
	}
	n.kind |= flat
	_, ok := m.marked[n]
	return ok
}

func (m *marker) push(n node) {
	if _, ok := m.marked[n]; !ok {
		m.marked[n] = struct{}{}
		m.todo = append(m.todo, n)
	}
}

// drain marks what is reachable from what was pushed, and calls step for each.
func (m *marker) drain(step func()) {
	for len(m.todo) > 0 {
		step()
		n := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		m.references(n)
	}
}

func (m *marker) eachNamespace(fn func(ns string, b *bolt.Bucket)) {
	_ = records(m.tx.Bucket([]byte(schemaVersion)), func(ns []byte, b *bolt.Bucket) error {
		fn(string(ns), b)
		return nil
	})
}

// eachCollectable calls fn for every record that the collector may remove, with
// where it is: to open them all takes longer than to go through their names.
func eachCollectable(ns string, b *bolt.Bucket, fn func(n node, all *bolt.Bucket, key []byte)) {
	var pace boltx.Pace
	each := func(kind nodeKind, prefix string, all *bolt.Bucket) {
		if all == nil {
			return
		}
		_ = all.ForEachBucket(func(key []byte) error {
			pace.Step()
			fn(node{kind, ns, prefix + string(key)}, all, key)
			return nil
		})
	}
	each(kindLease, "", sub(b, keyLeases))
	each(kindImage, "", sub(b, keyImages))
	each(kindIngest, "", sub(b, keyContent, keyIngests))
	each(kindContent, "", sub(b, keyContent, keyBlob))
	_ = records(sub(b, keySnapshots), func(name []byte, all *bolt.Bucket) error {
		each(kindSnapshot, string(name)+"/", all)
		return nil
	})
}

// roots pushes the roots of a namespace and collects its back references.
func (m *marker) roots(ns string, b *bolt.Bucket) {
	eachCollectable(ns, b, func(n node, all *bolt.Bucket, key []byte) {
		record := all.Bucket(key)
		switch n.kind {
		case kindLease:
			m.lease(n, record)
		case kindImage:
			if !m.expired(expiryOf(record)) {
				m.push(n)
			}
		case kindIngest:
			// One without a time belongs to a lease.
			if t, err := getTime(record, keyExpireAt); err == nil && !t.IsZero() && !m.expired(t) {
				m.push(n)
			}
		}
		m.backReferences(n, record)
	})
	_ = records(sub(b, keyContainers), func(id []byte, record *bolt.Bucket) error {
		m.push(node{kindContainer, ns, string(id)})
		return nil
	})
	_ = records(sub(b, keySandboxes), func(id []byte, record *bolt.Bucket) error {
		m.push(node{kindSandbox, ns, string(id)})
		return nil
	})
}

// lease pushes a lease and what it holds, unless it has expired.
func (m *marker) lease(n node, record *bolt.Bucket) {
	if m.expired(expiryOf(record)) {
		return
	}
	m.push(n)
	var modifier nodeKind
	if labels := sub(record, keyLabels); labels != nil && labels.Get([]byte(labelFlat)) != nil {
		modifier = flat
	}
	forEachHeld(record, func(typ, id string) {
		switch {
		case typ == keyContent:
			m.push(node{kindContent | modifier, n.ns, id})
		case typ == keyImages:
			m.push(node{kindImage | modifier, n.ns, id})
		case typ == keyIngests:
			m.push(node{kindIngest, n.ns, id})
		default:
			m.push(node{kindSnapshot | modifier, n.ns, strings.TrimPrefix(typ, keySnapshots+"/") + "/" + id})
		}
	})
}

// expired tells whether t has passed, and notes it when it has not. The zero
// time never passes.
func (m *marker) expired(t time.Time) bool {
	if t.IsZero() {
		return false
	}
	if m.now.After(t) {
		return true
	}
	if m.expiry.IsZero() || t.Before(m.expiry) {
		m.expiry = t
	}
	return false
}

// expiryOf reads gc.expire, the zero time when there is none. Compat: one that
// is no time does not count.
func expiryOf(record *bolt.Bucket) time.Time {
	labels := sub(record, keyLabels)
	if labels == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, getString(labels, labelExpire))
	if err != nil {
		return time.Time{}
	}
	return t
}

// bucket is inNamespace in the transaction of the marker, without the way there
// for those that lie in the same one as the node before.
func (m *marker) bucket(ns string, path []string) *bolt.Bucket {
	if m.last.tx != m.tx || m.last.ns != ns || !slices.Equal(m.last.path, path) {
		m.last = place{m.tx, ns, path, inNamespace(m.tx, ns, path...)}
	}
	return m.last.bucket
}

// place is a bucket of records, and how it was reached.
type place struct {
	tx     *bolt.Tx
	ns     string
	path   []string
	bucket *bolt.Bucket
}

// references pushes what a node refers to.
func (m *marker) references(n node) {
	for _, kept := range m.back[n] {
		m.push(kept)
	}
	path, key := n.path()
	record := sub(m.bucket(n.ns, path), key)
	if record == nil {
		return // nothing is there, or not any more
	}
	switch n.kind &^ flat {
	case kindSnapshot:
		if parent := getString(record, keyParent); parent != "" {
			m.push(node{n.kind, n.ns, path[1] + "/" + parent})
		}
	case kindImage:
		if target := sub(record, keyTarget); target != nil {
			m.push(node{kindContent | n.kind&flat, n.ns, getString(target, keyDigest)})
		}
	case kindIngest:
		if expected := getString(record, keyExpected); expected != "" {
			m.push(node{kindContent, n.ns, expected})
		}
	case kindContainer:
		if snapshotter := getString(record, keySnapshotter); snapshotter != "" {
			m.push(node{kindSnapshot, n.ns, snapshotter + "/" + getString(record, keySnapshotKey)})
		}
	}
	if n.kind&flat != 0 {
		return
	}
	eachLabel(record, func(k, v string) {
		if ref, ok := strings.CutPrefix(k, "ref."); ok {
			if to, ok := refersTo(n.ns, ref, v); ok && to.kind != kindContainer {
				m.push(to)
			}
		}
		if rest, ok := strings.CutPrefix(k, "cond.snapshot"); ok {
			m.condition(n.ns, rest, v)
		}
	})
}

// backReferences notes the gc.bref labels of a record, and pushes it when it
// is labelled a root.
func (m *marker) backReferences(n node, record *bolt.Bucket) {
	if n.kind == kindLease || n.kind == kindIngest {
		return
	}
	eachLabel(record, func(k, v string) {
		if strings.HasPrefix(k, "root") && n.kind != kindImage {
			m.push(n)
		}
		if ref, ok := strings.CutPrefix(k, "bref."); ok {
			if by, ok := refersTo(n.ns, ref, v); ok {
				m.back[by] = append(m.back[by], n)
			}
		}
	})
}

// eachLabel calls fn for the labels of the collector, without their prefix.
func eachLabel(record *bolt.Bucket, fn func(k, v string)) {
	labels := sub(record, keyLabels)
	if labels == nil {
		return
	}
	c := labels.Cursor()
	for k, v := c.Seek([]byte(labelGC)); bytes.HasPrefix(k, []byte(labelGC)); k, v = c.Next() {
		fn(string(k[len(labelGC):]), string(v))
	}
}

// refersTo reads the end of a reference label: content, image or container,
// optionally with a name after "." or "/", or snapshot.<snapshotter>[/<name>].
func refersTo(ns, ref, value string) (node, bool) {
	if snapshotter, ok := strings.CutPrefix(ref, "snapshot."); ok {
		snapshotter, _, _ = strings.Cut(snapshotter, "/")
		return node{kindSnapshot, ns, snapshotter + "/" + value}, true
	}
	if i := strings.IndexAny(ref, "./"); i >= 0 {
		ref = ref[:i]
	}
	switch ref {
	case "content":
		return node{kindContent, ns, value}, true
	case "image":
		return node{kindImage, ns, value}, true
	case "container":
		return node{kindContainer, ns, value}, true
	}
	return node{}, false
}

// condition pushes the snapshot of a label gc.cond.snapshot.<snapshotter> with
// the value "usedat<24h[,…]|<key>", if any of the conditions holds: the time in
// the snapshot's label gc.cond.value-usedat is less ("<"), or more (">"), than
// that long ago.
func (m *marker) condition(ns, snapshotter, value string) {
	snapshotter, _, _ = strings.Cut(strings.TrimLeft(snapshotter, "./"), "/")
	conditions, key, ok := strings.Cut(value, "|")
	labels := sub(inNamespace(m.tx, ns, keySnapshots, snapshotter), key, keyLabels)
	if !ok || labels == nil {
		return
	}
	used, err := time.Parse(time.RFC3339, getString(labels, labelUsedAt))
	if err != nil {
		return
	}
	for c := range strings.SplitSeq(conditions, ",") {
		rest, ok := strings.CutPrefix(c, "usedat")
		if !ok || rest == "" {
			continue
		}
		d, err := time.ParseDuration(rest[1:])
		age := m.now.Sub(used)
		if err == nil && (rest[0] == '<' && age < d || rest[0] == '>' && age > d) {
			m.push(node{kindSnapshot, ns, snapshotter + "/" + key})
		}
	}
}
