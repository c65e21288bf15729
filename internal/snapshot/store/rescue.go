package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/boltx"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A damaged metadata.db is put aside as metadata.db.damaged-<time>, and replaced by
// the records of it that can be read. A snapshot whose record is lost counts as
// absent: a layer is unpacked again, under another identifier. What it had on the
// disk may belong to a container that runs, so it is no garbage: the identifiers of
// what no record names at that moment are in metadata.db.kept, one on a line, and
// Cleanup leaves them alone until somebody removes that file.
const (
	databaseName = "metadata.db"
	keptName     = databaseName + ".kept"
	lockTimeout  = 5 * time.Second
)

// openDatabase opens the database below root, having mended it if need be;
// rescued says then what was wrong with it and what became of it.
func openDatabase(root string, now time.Time) (db *boltx.DB, rescued error, err error) {
	path := filepath.Join(root, databaseName)
	f, err := boltx.Lock(context.Background(), path, lockTimeout)
	if err != nil {
		return nil, nil, err
	}
	_, _, damage := boltx.Check(f, 0)
	if damage == nil {
		db, err = boltx.New(f, "snapshot")
		return db, nil, err
	}
	if !errdefs.IsDataLoss(damage) {
		return nil, nil, errors.Join(damage, f.Close())
	}
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	saved, bad, err := rebuild(f, path)
	if err == nil {
		err = errors.Join(keep(root, path+".rebuilt"), os.Link(path, aside))
	}
	if err == nil {
		err = os.Rename(path+".rebuilt", path)
	}
	if dir, derr := os.Open(root); derr == nil {
		err = errors.Join(err, dir.Sync(), dir.Close())
	}
	// The lock is that of the file which was put aside.
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, fmt.Errorf("%s is damaged (%w) and could not be rebuilt: %w", path, damage, err)
	}
	if f, err = boltx.Lock(context.Background(), path, lockTimeout); err != nil {
		return nil, nil, err
	}
	rescued = fmt.Errorf("%s was damaged and is put aside as %s; %d snapshots were saved, %d parts could not be read; what has lost its record stays on the disk (%s): %w",
		path, filepath.Base(aside), saved, bad, keptName, damage)
	db, err = boltx.New(f, "snapshot")
	return db, rescued, err
}

// rebuild writes the records that can be read to <path>.rebuilt.
func rebuild(f *os.File, path string) (saved, bad int, err error) {
	defer boltx.CatchFaults(&err)()
	data, unmap, err := boltx.Map(f)
	if err != nil {
		return 0, 0, err
	}
	defer unmap()
	if err := os.Remove(path + ".rebuilt"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, 0, err
	}
	to, err := boltx.Open(path+".rebuilt", "snapshot.rescue")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	for _, m := range boltx.ReadMetas(data) {
		// The one before the last is of use only when the last is of none.
		if saved > 0 {
			break
		}
		err = to.Update(context.Background(), func(tx *bolt.Tx) (err error) {
			saved, bad, err = salvage(tx, boltx.NewFile(data, m))
			return err
		})
	}
	return saved, bad, err
}

// salvage copies what can be read of a file's records.
func salvage(tx *bolt.Tx, from *boltx.File) (saved, bad int, err error) {
	snapshots, parents, err := makeBuckets(tx)
	if err != nil {
		return 0, 0, err
	}
	skip := func(error) error { bad++; return nil }
	ids := map[string]uint64{} // by key
	child := map[string]string{}
	record := func(key, value []byte, isBucket bool) error {
		if !isBucket {
			return skip(nil)
		}
		b, err := snapshots.CreateBucketIfNotExists(slices.Clone(key))
		if err != nil {
			return skip(err)
		}
		whole := true
		if err := copyInto(b, from, value, func(error) error { whole = false; return skip(nil) }); err != nil {
			return err
		}
		r, err := decode(string(key), b)
		if err != nil || !whole {
			bad++
			return snapshots.DeleteBucket(slices.Clone(key))
		}
		ids[r.info.Name] = r.id
		if r.info.Parent != "" {
			child[r.info.Name] = r.info.Parent
		}
		saved++
		return nil
	}
	if err := from.Bucket(from.Root, func(name, v1 []byte, isBucket bool) error {
		if !isBucket || string(name) != "v1" {
			return nil
		}
		return from.Bucket(v1, func(name, all []byte, isBucket bool) error {
			if !isBucket || string(name) != "snapshots" {
				return nil
			}
			return from.Bucket(all, record, skip)
		}, skip)
	}, skip); err != nil {
		return saved, bad, err
	}
	last := uint64(0)
	for _, id := range ids {
		last = max(last, id)
	}
	for key, parent := range child {
		if id, ok := ids[parent]; ok {
			if err := parents.Put(parentKey(id, ids[key]), []byte(key)); err != nil {
				return saved, bad, err
			}
		}
	}
	return saved, bad, snapshots.SetSequence(max(last, snapshots.Sequence()))
}

// copyInto copies the elements of a record, its labels included.
func copyInto(to *bolt.Bucket, from *boltx.File, value []byte, bad boltx.BadFunc) error {
	return from.Bucket(value, func(k, v []byte, isBucket bool) error {
		if !isBucket {
			return to.Put(slices.Clone(k), slices.Clone(v))
		}
		inner, err := to.CreateBucketIfNotExists(slices.Clone(k))
		if err != nil {
			return err
		}
		return from.Bucket(v, func(k, v []byte, isBucket bool) error {
			if isBucket {
				return bad(nil)
			}
			return inner.Put(slices.Clone(k), slices.Clone(v))
		}, bad)
	}, bad)
}

// keep notes what the database does not name, so that Cleanup leaves it alone.
func keep(root, database string) error {
	db, err := boltx.Open(database, "snapshot.rescue")
	if err != nil {
		return err
	}
	recorded := map[string]struct{}{}
	err = db.View(func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		if snapshots == nil {
			return nil
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			_, r, err := find(snapshots, string(k))
			recorded[formatID(r.id)] = struct{}{}
			return err
		})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	// Snapshotters keep things in snapshots, active, view and the like.
	kept := readKept(root)
	places, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil {
		return err
	}
	for _, path := range places {
		id := filepath.Base(path)
		if _, ok := recorded[id]; !ok {
			if _, err := strconv.ParseUint(id, 10, 63); err == nil {
				kept[id] = true
			}
		}
	}
	var lines []string
	for id := range kept {
		lines = append(lines, id)
	}
	slices.Sort(lines)
	f, err := os.OpenFile(filepath.Join(root, keptName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	// Durable before the database that does not name them.
	return errors.Join(err, f.Sync(), f.Close())
}

func readKept(root string) map[string]bool {
	kept := map[string]bool{}
	b, err := os.ReadFile(filepath.Join(root, keptName))
	if err != nil {
		return kept // there was no rescue
	}
	for id := range strings.FieldsSeq(string(b)) {
		kept[id] = true
	}
	return kept
}

// Rescued tells what was wrong with the database when it was opened, and what
// became of it; nil when it was in order.
func (s *Store) Rescued() error { return s.rescued }

// Rescued is Store.Rescued.
func (b Base) Rescued() error { return b.Store.Rescued() }
