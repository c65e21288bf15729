package activation

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// The database, containerd's:
//
//	v1                        its sequence numbers activations
//	└─ <namespace>
//	   ├─ mounts/<name>       id (unsigned varint), createdat, updatedat, lease, labels/<key>
//	   │  ├─ active/<order>   type, mp (mount point), mat (mounted at); order is one byte
//	   │  └─ system/<order>   type, source, target, options (joined by NUL)
//	   └─ leases/<lease>/<name>   nothing
var (
	keyRoot    = []byte("v1")
	keyMounts  = []byte("mounts")
	keyLeases  = []byte("leases")
	keyLease   = []byte("lease")
	keyID      = []byte("id")
	keyActive  = []byte("active")
	keySystem  = []byte("system")
	keyType    = []byte("type")
	keySource  = []byte("source")
	keyTarget  = []byte("target")
	keyOptions = []byte("options")
	keyPoint   = []byte("mp")
	keyAt      = []byte("mat")
	keyLabels  = []byte("labels")
	keyCreated = []byte("createdat")
	keyUpdated = []byte("updatedat")
)

// maxMounts is what an order of one byte can tell apart, with one to spare for
// the bind that a temporary activation adds.
const maxMounts = 255

// within walks down the buckets; nil when one is missing.
func within(tx *bolt.Tx, keys ...[]byte) *bolt.Bucket {
	b := tx.Bucket(keyRoot)
	for _, k := range keys {
		if b == nil {
			return nil
		}
		b = b.Bucket(k)
	}
	return b
}

func bucket(tx *bolt.Tx, namespace, id string) *bolt.Bucket {
	if namespace == "" || id == "" {
		return nil
	}
	return within(tx, []byte(namespace), keyMounts, []byte(id))
}

// begin writes the record of an activation that is about to be made. One of the
// name that was never finished, or whose mounts are lost, is replaced: stale is its
// number.
func begin(tx *bolt.Tx, namespace, id string, at time.Time, o Options, lost bool) (number, stale uint64, err error) {
	root, err := tx.CreateBucketIfNotExists(keyRoot)
	if err != nil {
		return 0, 0, err
	}
	if b := bucket(tx, namespace, id); b != nil {
		if b.Bucket(keyActive) != nil && !lost {
			return 0, 0, fmt.Errorf("they are active: %w", errdefs.ErrAlreadyExists)
		}
		stale = readID(b)
		if err := remove(tx, namespace, id); err != nil {
			return 0, 0, err
		}
	}
	ns, err := root.CreateBucketIfNotExists([]byte(namespace))
	if err != nil {
		return 0, 0, err
	}
	mounts, err := ns.CreateBucketIfNotExists(keyMounts)
	if err != nil {
		return 0, 0, err
	}
	b, err := mounts.CreateBucket([]byte(id))
	if err != nil {
		return 0, 0, err
	}
	if number, err = root.NextSequence(); err != nil {
		return 0, 0, err
	}
	if err := b.Put(keyID, binary.AppendUvarint(nil, number)); err != nil {
		return 0, 0, err
	}
	if err := putLabels(b, o.Labels); err != nil {
		return 0, 0, err
	}
	if err := putTimes(b, at, at); err != nil {
		return 0, 0, err
	}
	if o.Lease == "" {
		return number, stale, nil
	}
	if err := b.Put(keyLease, []byte(o.Lease)); err != nil {
		return 0, 0, err
	}
	leases, err := ns.CreateBucketIfNotExists(keyLeases)
	if err != nil {
		return 0, 0, err
	}
	lease, err := leases.CreateBucketIfNotExists([]byte(o.Lease))
	if err != nil {
		return 0, 0, err
	}
	return number, stale, lease.Put([]byte(id), nil)
}

// finish adds the mounts to the record.
func finish(tx *bolt.Tx, namespace, id string, info Info, began time.Time) error {
	b := bucket(tx, namespace, id)
	if b == nil {
		return fmt.Errorf("the record has gone: %w", errdefs.ErrAborted)
	}
	active, err := b.CreateBucket(keyActive)
	if err != nil {
		return err
	}
	for i, m := range info.Active {
		one, err := active.CreateBucket([]byte{byte(i)})
		if err != nil {
			return err
		}
		at, err := m.MountedAt.MarshalBinary()
		if err != nil {
			return err
		}
		if err := put(one, pair{keyType, []byte(m.Type)}, pair{keyPoint, []byte(m.MountPoint)}, pair{keyAt, at}); err != nil {
			return err
		}
	}
	if err := putTimes(b, began, time.Now()); err != nil {
		return err
	}
	if len(info.System) == 0 {
		return nil
	}
	system, err := b.CreateBucket(keySystem)
	if err != nil {
		return err
	}
	for i, m := range info.System {
		one, err := system.CreateBucket([]byte{byte(i)})
		if err != nil {
			return err
		}
		fields := []pair{{keyType, []byte(m.Type)}, {keySource, []byte(m.Source)}, {keyTarget, []byte(m.Target)}}
		if len(m.Options) > 0 {
			fields = append(fields, pair{keyOptions, []byte(strings.Join(m.Options, "\x00"))})
		}
		if err := put(one, fields...); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a record, if there is one, with its entry under its lease.
func remove(tx *bolt.Tx, namespace, id string) error {
	b := bucket(tx, namespace, id)
	if b == nil {
		return nil
	}
	if lease := b.Get(keyLease); len(lease) > 0 {
		leases := within(tx, []byte(namespace), keyLeases)
		if entry := within(tx, []byte(namespace), keyLeases, lease); entry != nil {
			lease := append([]byte(nil), lease...)
			if err := entry.Delete([]byte(id)); err != nil {
				return err
			}
			if k, _ := entry.Cursor().First(); k == nil {
				if err := leases.DeleteBucket(lease); err != nil {
					return err
				}
			}
		}
	}
	return within(tx, []byte(namespace), keyMounts).DeleteBucket([]byte(id))
}

type pair struct{ key, value []byte }

func put(b *bolt.Bucket, pairs ...pair) error {
	for _, p := range pairs {
		if err := b.Put(p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}

func putLabels(b *bolt.Bucket, labels map[string]string) error {
	if len(labels) == 0 {
		return nil
	}
	l, err := b.CreateBucket(keyLabels)
	if err != nil {
		return err
	}
	for k, v := range labels {
		if k == "" || v == "" {
			continue
		}
		if err := l.Put([]byte(k), []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

func putTimes(b *bolt.Bucket, created, updated time.Time) error {
	c, err := created.UTC().MarshalBinary()
	if err != nil {
		return err
	}
	u, err := updated.UTC().MarshalBinary()
	if err != nil {
		return err
	}
	return put(b, pair{keyCreated, c}, pair{keyUpdated, u})
}

func readID(b *bolt.Bucket) uint64 {
	id, _ := binary.Uvarint(b.Get(keyID))
	return id
}

// readInfo reads a record; fields that are not there are empty.
func readInfo(id string, b *bolt.Bucket) (Info, error) {
	info := Info{Name: id, Labels: readLabels(b)}
	err := eachBucket(b.Bucket(keyActive), func(_ []byte, m *bolt.Bucket) error {
		active := object.ActiveMount{Mount: object.Mount{Type: string(m.Get(keyType))}, MountPoint: string(m.Get(keyPoint))}
		if at := m.Get(keyAt); at != nil {
			if err := active.MountedAt.UnmarshalBinary(at); err != nil {
				return fmt.Errorf("mounts %q: time of a mount: %w", id, err)
			}
		}
		info.Active = append(info.Active, active)
		return nil
	})
	if err != nil {
		return Info{}, err
	}
	err = eachBucket(b.Bucket(keySystem), func(_ []byte, m *bolt.Bucket) error {
		system := object.Mount{Type: string(m.Get(keyType)), Source: string(m.Get(keySource)), Target: string(m.Get(keyTarget))}
		if options := m.Get(keyOptions); len(options) > 0 {
			system.Options = strings.Split(string(options), "\x00")
		}
		info.System = append(info.System, system)
		return nil
	})
	return info, err
}

func readLabels(b *bolt.Bucket) map[string]string {
	l := b.Bucket(keyLabels)
	if l == nil {
		return nil
	}
	labels := make(map[string]string)
	c := l.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		labels[string(k)] = string(v)
	}
	return labels
}

// eachBucket calls fn with the buckets of b, which may be nil, in order.
func eachBucket(b *bolt.Bucket, fn func(key []byte, b *bolt.Bucket) error) error {
	if b == nil {
		return nil
	}
	return b.ForEachBucket(func(k []byte) error { return fn(k, b.Bucket(k)) })
}

func eachName(tx *bolt.Tx, namespace string, fn func(id string, b *bolt.Bucket) error) error {
	if namespace == "" {
		return nil
	}
	return eachBucket(within(tx, []byte(namespace), keyMounts), func(k []byte, b *bolt.Bucket) error { return fn(string(k), b) })
}
