package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The schema is containerd's, "v1" at version 4, so that a database can be
// taken over and handed back. <x> is a bucket with any name, time is
// time.Time.MarshalBinary in UTC, varint is binary.PutVarint (zigzag), Any is
// the wire form of google.protobuf.Any. A label whose value is empty is not
// stored.
//
//	v1
//	├─ version                        varint 4
//	└─ <namespace>
//	   ├─ labels                      key → value
//	   ├─ images
//	   │  └─ <name>
//	   │     ├─ createdat, updatedat  time
//	   │     ├─ labels, annotations   key → value; annotations of the target
//	   │     └─ target                digest, mediatype: string; size: varint
//	   ├─ containers
//	   │  └─ <id>
//	   │     ├─ createdat, updatedat  time
//	   │     ├─ image, snapshotter, snapshotKey, sandboxid   string
//	   │     ├─ spec                  Any
//	   │     ├─ runtime               name: string; options: Any
//	   │     ├─ extensions            name → Any
//	   │     └─ labels                key → value
//	   ├─ sandboxes
//	   │  └─ <id>
//	   │     ├─ createdat, updatedat  time
//	   │     ├─ sandboxer             string
//	   │     ├─ spec                  Any
//	   │     ├─ runtime               name: string; options: Any
//	   │     ├─ extensions            name → Any
//	   │     └─ labels                key → value
//	   ├─ snapshots
//	   │  └─ <snapshotter>            the bucket's sequence numbers the backend's keys
//	   │     └─ <key>
//	   │        ├─ name               key in the backend: <namespace>/<number>/<key>
//	   │        ├─ createdat, updatedat  time
//	   │        ├─ parent             key of the parent in this bucket
//	   │        ├─ children           key → nothing
//	   │        └─ labels             key → value
//	   ├─ content
//	   │  ├─ blob
//	   │  │  └─ <digest>
//	   │  │     ├─ createdat, updatedat  time
//	   │  │     ├─ size               varint
//	   │  │     └─ labels             key → value
//	   │  └─ ingests
//	   │     └─ <reference>           the sequence of ingests numbers the backend's references
//	   │        ├─ ref                reference in the backend: <namespace>/<number>/<reference>
//	   │        ├─ expireat           time; absent when a lease holds the ingest
//	   │        └─ expected           digest, of an ingest that only waits for its commit:
//	   │                              the bytes are in the backend already
//	   └─ leases
//	      └─ <id>
//	         ├─ createdat             time
//	         ├─ labels                key → value
//	         ├─ content, ingests, images   ID → nothing
//	         └─ snapshots
//	            └─ <snapshotter>      key → nothing
const (
	schemaVersion  = "v1"
	schemaRevision = 4

	keyVersion     = "version"
	keyLabels      = "labels"
	keyImages      = "images"
	keyContainers  = "containers"
	keySandboxes   = "sandboxes"
	keySnapshots   = "snapshots"
	keyContent     = "content"
	keyBlob        = "blob"
	keyIngests     = "ingests"
	keyLeases      = "leases"
	keyCreatedAt   = "createdat"
	keyUpdatedAt   = "updatedat"
	keyAnnotations = "annotations"
	keyTarget      = "target"
	keyDigest      = "digest"
	keyMediaType   = "mediatype"
	keySize        = "size"
	keyImage       = "image"
	keySnapshotter = "snapshotter"
	keySnapshotKey = "snapshotKey"
	keySandboxID   = "sandboxid"
	keySandboxer   = "sandboxer"
	keySpec        = "spec"
	keyRuntime     = "runtime"
	keyName        = "name"
	keyOptions     = "options"
	keyExtensions  = "extensions"
	keyParent      = "parent"
	keyChildren    = "children"
	keyRef         = "ref"
	keyExpireAt    = "expireat"
	keyExpected    = "expected"
)

// sub descends from b, nil as soon as a bucket is missing.
func sub(b *bolt.Bucket, keys ...string) *bolt.Bucket {
	for _, k := range keys {
		if b == nil || k == "" {
			return nil
		}
		b = b.Bucket([]byte(k))
	}
	return b
}

// inNamespace finds a bucket below a namespace, nil when there is none.
func inNamespace(tx *bolt.Tx, namespace string, keys ...string) *bolt.Bucket {
	return sub(sub(tx.Bucket([]byte(schemaVersion)), namespace), keys...)
}

// ensure descends from b and makes the buckets that are missing.
func ensure(b *bolt.Bucket, keys ...string) (*bolt.Bucket, error) {
	for _, k := range keys {
		next := sub(b, k)
		if next == nil {
			var err error
			if next, err = b.CreateBucket([]byte(k)); err != nil {
				return nil, err
			}
		}
		b = next
	}
	return b, nil
}

func ensureInNamespace(tx *bolt.Tx, namespace string, keys ...string) (*bolt.Bucket, error) {
	b, err := ensure(tx.Bucket([]byte(schemaVersion)), namespace)
	if errors.Is(err, berrors.ErrIncompatibleValue) {
		return nil, fmt.Errorf("namespace %q: the name is reserved: %w", namespace, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	return ensure(b, keys...)
}

// create makes the bucket of a new record.
func create(parent *bolt.Bucket, kind, name string) (*bolt.Bucket, error) {
	b, err := parent.CreateBucket([]byte(name))
	switch {
	case errors.Is(err, berrors.ErrBucketExists):
		return nil, fmt.Errorf("%s %q: %w", kind, name, errdefs.ErrAlreadyExists)
	case err != nil:
		return nil, fmt.Errorf("create %s %q: %w", kind, name, err)
	}
	return b, nil
}

// remove deletes the bucket of a record; parent may be nil.
func remove(parent *bolt.Bucket, kind, name string) error {
	if sub(parent, name) == nil {
		return notFound(kind, name)
	}
	return parent.DeleteBucket([]byte(name))
}

func notFound(kind, name string) error {
	return fmt.Errorf("%s %q: %w", kind, name, errdefs.ErrNotFound)
}

// drop deletes a bucket when it is there.
func drop(b *bolt.Bucket, key string) error {
	if sub(b, key) == nil {
		return nil
	}
	return b.DeleteBucket([]byte(key))
}

func isEmpty(b *bolt.Bucket) bool {
	if b == nil {
		return true
	}
	k, _ := b.Cursor().First()
	return k == nil
}

// records calls fn for every bucket within b.
func records(b *bolt.Bucket, fn func(key []byte, record *bolt.Bucket) error) error {
	if b == nil {
		return nil
	}
	return b.ForEachBucket(func(k []byte) error { return fn(k, b.Bucket(k)) })
}

// page collects up to n records of b that follow the key after ("" begins);
// next is the key to go on with, "" at the end.
func page(b *bolt.Bucket, after string, n int, fn func(key []byte, record *bolt.Bucket)) (next string) {
	if b == nil {
		return ""
	}
	c := b.Cursor()
	k, v := c.Seek([]byte(after))
	if k != nil && string(k) == after {
		k, v = c.Next()
	}
	for ; k != nil; k, v = c.Next() {
		if v != nil {
			continue
		}
		if n == 0 {
			return next
		}
		fn(k, b.Bucket(k))
		next = string(k)
		n--
	}
	return ""
}

func getString(b *bolt.Bucket, key string) string { return string(b.Get([]byte(key))) }

func putString(b *bolt.Bucket, key, value string) error { return b.Put([]byte(key), []byte(value)) }

func getInt(b *bolt.Bucket, key string) int64 {
	n, _ := binary.Varint(b.Get([]byte(key)))
	return n
}

func putInt(b *bolt.Bucket, key string, n int64) error {
	return b.Put([]byte(key), binary.AppendVarint(nil, n))
}

// getTime returns the zero time when there is none.
func getTime(b *bolt.Bucket, key string) (t time.Time, err error) {
	v := b.Get([]byte(key))
	if v == nil {
		return t, nil
	}
	if err := t.UnmarshalBinary(v); err != nil {
		return t, fmt.Errorf("stored time %s: %w", key, err)
	}
	return t, nil
}

func putTime(b *bolt.Bucket, key string, t time.Time) error {
	v, err := t.UTC().MarshalBinary()
	if err != nil {
		return fmt.Errorf("time %s: %w", key, err)
	}
	return b.Put([]byte(key), v)
}

func getTimes(b *bolt.Bucket, created, updated *time.Time) error {
	c, errCreated := getTime(b, keyCreatedAt)
	u, errUpdated := getTime(b, keyUpdatedAt)
	*created, *updated = c, u
	return errors.Join(errCreated, errUpdated)
}

func putTimes(b *bolt.Bucket, created, updated time.Time) error {
	if err := putTime(b, keyCreatedAt, created); err != nil {
		return err
	}
	return putTime(b, keyUpdatedAt, updated)
}

// getMap returns nil when there is no such bucket.
func getMap(b *bolt.Bucket, key string) map[string]string {
	mb := sub(b, key)
	if mb == nil {
		return nil
	}
	m := map[string]string{}
	c := mb.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if v != nil {
			m[string(k)] = string(v)
		}
	}
	return m
}

// putMap replaces the bucket; empty values are left out.
func putMap(b *bolt.Bucket, key string, m map[string]string) error {
	if err := drop(b, key); err != nil {
		return err
	}
	var mb *bolt.Bucket
	for k, v := range m {
		if v == "" {
			continue
		}
		if k == "" {
			return invalid("%s: the value %.64q has no key", key, v)
		}
		if mb == nil {
			var err error
			if mb, err = b.CreateBucket([]byte(key)); err != nil {
				return err
			}
		}
		if err := mb.Put([]byte(k), []byte(v)); err != nil {
			return fmt.Errorf("%s %q: %w", key, k, err)
		}
	}
	return nil
}

func getAny(b *bolt.Bucket, key string) (*object.Any, error) {
	v := b.Get([]byte(key))
	if v == nil {
		return nil, nil
	}
	a := new(object.Any)
	if err := a.UnmarshalBinary(v); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return a, nil
}

func putAny(b *bolt.Bucket, key string, a *object.Any) error {
	if a == nil {
		return b.Delete([]byte(key))
	}
	v, err := a.MarshalBinary()
	if err != nil {
		return err
	}
	return b.Put([]byte(key), v)
}

func getExtensions(b *bolt.Bucket) (map[string]object.Any, error) {
	eb := sub(b, keyExtensions)
	if eb == nil {
		return nil, nil
	}
	m := map[string]object.Any{}
	c := eb.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		var a object.Any
		if err := a.UnmarshalBinary(v); err != nil {
			return nil, fmt.Errorf("extension %q: %w", k, err)
		}
		m[string(k)] = a
	}
	return m, nil
}

// putExtensions replaces the extensions.
//
// Differs from containerd: there an extension that an update leaves out stays.
func putExtensions(b *bolt.Bucket, m map[string]object.Any) error {
	if err := drop(b, keyExtensions); err != nil || len(m) == 0 {
		return err
	}
	eb, err := b.CreateBucket([]byte(keyExtensions))
	if err != nil {
		return err
	}
	for name, a := range m {
		if name == "" {
			return invalid("there is an extension without a name")
		}
		if err := putAny(eb, name, &a); err != nil {
			return fmt.Errorf("extension %q: %w", name, err)
		}
	}
	return nil
}

func getRuntime(b *bolt.Bucket) (r object.Runtime, err error) {
	rb := sub(b, keyRuntime)
	if rb == nil {
		return r, nil
	}
	r.Name = getString(rb, keyName)
	r.Options, err = getAny(rb, keyOptions)
	return r, err
}

func putRuntime(b *bolt.Bucket, r object.Runtime) error {
	if err := drop(b, keyRuntime); err != nil {
		return err
	}
	rb, err := b.CreateBucket([]byte(keyRuntime))
	if err != nil {
		return err
	}
	if err := putString(rb, keyName, r.Name); err != nil {
		return err
	}
	return putAny(rb, keyOptions, r.Options)
}

// prepare makes the schema in a new database and brings one of an earlier
// containerd to the present revision.
func prepare(tx *bolt.Tx) error {
	v1, err := tx.CreateBucketIfNotExists([]byte(schemaVersion))
	if err != nil {
		return err
	}
	steps := []func(tx *bolt.Tx, v1 *bolt.Bucket) error{
		linkChildren, // to revision 1
		moveIngests,  // to revision 2
		nil,          // revision 3 changed the library, not the data
		moveSandboxes,
	}
	for revision := revisionOf(v1); revision < schemaRevision; revision++ {
		if step := steps[revision]; step != nil {
			if err := step(tx, v1); err != nil {
				return fmt.Errorf("migrate database to %s.%d: %w", schemaVersion, revision+1, err)
			}
		}
	}
	return putInt(v1, keyVersion, schemaRevision)
}

// prepared tells whether prepare has nothing to do. A revision of the future
// is left alone: containerd adds to v1 in compatible ways only.
func prepared(tx *bolt.Tx) bool {
	v1 := tx.Bucket([]byte(schemaVersion))
	return v1 != nil && revisionOf(v1) >= schemaRevision
}

func revisionOf(v1 *bolt.Bucket) int { return int(max(0, getInt(v1, keyVersion))) }

// linkChildren gives every parent snapshot the list of its children.
func linkChildren(_ *bolt.Tx, v1 *bolt.Bucket) error {
	return records(v1, func(_ []byte, ns *bolt.Bucket) error {
		return records(sub(ns, keySnapshots), func(_ []byte, snapshotter *bolt.Bucket) error {
			var links [][2]string
			if err := records(snapshotter, func(key []byte, record *bolt.Bucket) error {
				if parent := getString(record, keyParent); parent != "" {
					links = append(links, [2]string{parent, string(key)})
				}
				return nil
			}); err != nil {
				return err
			}
			for _, l := range links {
				if err := linkChild(snapshotter, l[0], l[1]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// moveIngests turns the map from reference to backend reference into records.
func moveIngests(_ *bolt.Tx, v1 *bolt.Bucket) error {
	return records(v1, func(_ []byte, ns *bolt.Bucket) error {
		content := sub(ns, keyContent)
		old := sub(content, "ingest")
		if old == nil {
			return nil
		}
		ingests, err := ensure(content, keyIngests)
		if err != nil {
			return err
		}
		c := old.Cursor()
		for ref, backend := c.First(); ref != nil; ref, backend = c.Next() {
			record, err := ensure(ingests, string(ref))
			if err != nil {
				return err
			}
			if err := record.Put([]byte(keyRef), bytes.Clone(backend)); err != nil {
				return err
			}
		}
		return content.DeleteBucket([]byte("ingest"))
	})
}

// moveSandboxes moves the sandboxes that were kept beside v1 into it.
func moveSandboxes(tx *bolt.Tx, v1 *bolt.Bucket) error {
	var roots [][]byte
	if err := tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		if string(name) == schemaVersion {
			return nil
		}
		roots = append(roots, bytes.Clone(name))
		old := sub(b, keySandboxes)
		if old == nil {
			return nil
		}
		target, err := ensure(v1, string(name), keySandboxes)
		if err != nil {
			return err
		}
		return copyBucket(target, old)
	}); err != nil {
		return err
	}
	for _, name := range roots {
		if err := tx.DeleteBucket(name); err != nil {
			return err
		}
	}
	return nil
}

// copyBucket copies everything within from into to, over what is there.
func copyBucket(to, from *bolt.Bucket) error {
	c := from.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		inner := from.Bucket(k)
		if inner == nil {
			if err := to.Put(bytes.Clone(k), bytes.Clone(v)); err != nil {
				return err
			}
			continue
		}
		child, err := ensure(to, string(k))
		if err != nil {
			return err
		}
		if err := copyBucket(child, inner); err != nil {
			return err
		}
	}
	return nil
}
