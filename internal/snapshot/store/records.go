package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// The buckets, which are containerd's:
//
//	v1
//	├─ snapshots                 its sequence is the last identifier given
//	│  └─ <key or name>
//	│     ├─ id          uvarint
//	│     ├─ kind        one byte, object.SnapshotKind
//	│     ├─ parent      name of the parent; absent when there is none
//	│     ├─ createdat   time.Time.MarshalBinary
//	│     ├─ updatedat   time.Time.MarshalBinary
//	│     ├─ inodes      varint, of a committed one
//	│     ├─ size        varint, of a committed one
//	│     └─ labels      bucket: key → value
//	└─ parents
//	   └─ uvarint(parent id) 0x00 uvarint(id)  →  key or name
func buckets(tx *bolt.Tx) (snapshots, parents *bolt.Bucket) {
	v := tx.Bucket([]byte("v1"))
	if v == nil {
		return nil, nil
	}
	return v.Bucket([]byte("snapshots")), v.Bucket([]byte("parents"))
}

func makeBuckets(tx *bolt.Tx) (snapshots, parents *bolt.Bucket, err error) {
	v, err := tx.CreateBucketIfNotExists([]byte("v1"))
	if err == nil {
		snapshots, err = v.CreateBucketIfNotExists([]byte("snapshots"))
	}
	if err == nil {
		parents, err = v.CreateBucketIfNotExists([]byte("parents"))
	}
	return snapshots, parents, err
}

// record is what the bucket of a snapshot holds.
type record struct {
	id       uint64
	info     object.SnapshotInfo
	usage    object.SnapshotUsage
	hasUsage bool
}

// find reads the record of a key.
func find(snapshots *bolt.Bucket, key string) (*bolt.Bucket, record, error) {
	if snapshots != nil && key != "" {
		if b := snapshots.Bucket([]byte(key)); b != nil {
			r, err := decode(key, b)
			return b, r, err
		}
	}
	return nil, record{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
}

var errDamaged = errors.New("the record is damaged")

func decode(key string, b *bolt.Bucket) (record, error) {
	r := record{info: object.SnapshotInfo{Name: key, Parent: string(b.Get([]byte("parent")))}}
	id, n := binary.Uvarint(b.Get([]byte("id")))
	if n <= 0 {
		return r, fmt.Errorf("snapshot %q: %w: no identifier", key, errDamaged)
	}
	r.id = id
	if kind := b.Get([]byte("kind")); len(kind) == 1 {
		r.info.Kind = object.SnapshotKind(kind[0])
	}
	for _, t := range [...]struct {
		field string
		to    *time.Time
	}{{"createdat", &r.info.Created}, {"updatedat", &r.info.Updated}} {
		if v := b.Get([]byte(t.field)); v != nil {
			if err := t.to.UnmarshalBinary(v); err != nil {
				return r, fmt.Errorf("snapshot %q: %w: %s: %w", key, errDamaged, t.field, err)
			}
		}
	}
	if labels := b.Bucket([]byte("labels")); labels != nil {
		r.info.Labels = map[string]string{}
		_ = labels.ForEach(func(k, v []byte) error {
			r.info.Labels[string(k)] = string(v)
			return nil
		})
	}
	size, n1 := binary.Varint(b.Get([]byte("size")))
	inodes, n2 := binary.Varint(b.Get([]byte("inodes")))
	r.usage, r.hasUsage = object.SnapshotUsage{Size: size, Inodes: inodes}, n1 > 0 && n2 > 0
	return r, nil
}

func (r record) put(b *bolt.Bucket) error {
	fields := map[string][]byte{
		"id":   binary.AppendUvarint(nil, r.id),
		"kind": {byte(r.info.Kind)},
	}
	if r.info.Parent != "" {
		fields["parent"] = []byte(r.info.Parent)
	}
	if r.hasUsage {
		fields["size"] = binary.AppendVarint(nil, r.usage.Size)
		fields["inodes"] = binary.AppendVarint(nil, r.usage.Inodes)
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if err := b.Put([]byte(k), fields[k]); err != nil {
			return err
		}
	}
	return putMutable(b, r.info)
}

// putMutable writes what Update may change.
func putMutable(b *bolt.Bucket, info object.SnapshotInfo) error {
	for field, t := range map[string]time.Time{"createdat": info.Created, "updatedat": info.Updated} {
		v, err := t.MarshalBinary()
		if err != nil {
			return err
		}
		if err := b.Put([]byte(field), v); err != nil {
			return err
		}
	}
	name := []byte("labels")
	if b.Bucket(name) != nil {
		if err := b.DeleteBucket(name); err != nil {
			return err
		}
	}
	if len(info.Labels) == 0 {
		return nil
	}
	labels, err := b.CreateBucket(name)
	if err != nil {
		return err
	}
	for k, v := range info.Labels {
		if err := labels.Put([]byte(k), []byte(v)); err != nil {
			return fmt.Errorf("label %q: %w", k, invalid(err))
		}
	}
	return nil
}

// invalid blames the caller for keys that bolt does not take.
func invalid(err error) error {
	if errors.Is(err, berrors.ErrKeyRequired) || errors.Is(err, berrors.ErrKeyTooLarge) || errors.Is(err, berrors.ErrValueTooLarge) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// newBucket makes the bucket of a key that must be free.
func newBucket(snapshots *bolt.Bucket, key string) (*bolt.Bucket, error) {
	b, err := snapshots.CreateBucket([]byte(key))
	if errors.Is(err, berrors.ErrBucketExists) {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, invalid(err))
	}
	return b, nil
}

func parentKey(parent, child uint64) []byte {
	return binary.AppendUvarint(append(binary.AppendUvarint(nil, parent), 0), child)
}

func hasChildren(parents *bolt.Bucket, id uint64) bool {
	if parents == nil {
		return false
	}
	prefix := append(binary.AppendUvarint(nil, id), 0)
	k, _ := parents.Cursor().Seek(prefix)
	return len(k) > len(prefix) && string(k[:len(prefix)]) == string(prefix)
}

// findParent reads the record of a committed parent.
func findParent(snapshots *bolt.Bucket, name string) (record, error) {
	_, parent, err := find(snapshots, name)
	if err != nil {
		return record{}, fmt.Errorf("parent: %w", err)
	}
	if parent.info.Kind != object.SnapshotCommitted {
		return record{}, fmt.Errorf("parent snapshot %q is not committed: %w", name, errdefs.ErrInvalidArgument)
	}
	return parent, nil
}

// chain is the identifiers of a parent and of its ancestors, the nearest first.
func chain(snapshots *bolt.Bucket, name string) ([]string, error) {
	var ids []string
	seen := map[uint64]bool{}
	for name != "" {
		b := snapshots.Bucket([]byte(name))
		if b == nil {
			return nil, fmt.Errorf("ancestor %q: %w", name, errdefs.ErrNotFound)
		}
		id, _ := binary.Uvarint(b.Get([]byte("id")))
		if seen[id] {
			return nil, fmt.Errorf("ancestor %q is its own: %w", name, errDamaged)
		}
		seen[id] = true
		ids = append(ids, formatID(id))
		name = string(b.Get([]byte("parent")))
	}
	return ids, nil
}

func formatID(id uint64) string { return strconv.FormatUint(id, 10) }

// fields of a snapshot that filters can name.
func fields(info object.SnapshotInfo) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), info.Kind != object.SnapshotUnknown
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			return filter.Label(info.Labels, path[1:])
		}
		return "", false
	})
}

// cleanLabels copies labels without the empty ones, which are not kept.
func cleanLabels(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	maps.DeleteFunc(out, func(_, v string) bool { return v == "" })
	return out
}
