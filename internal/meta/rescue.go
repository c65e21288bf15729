package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/internal/boltx"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Report tells what Open found, and what it had to do.
type Report struct {
	// Unclean is set when the last shutdown was not a clean one: every record
	// was read. Unreadable names those that could not be; they are still there.
	Unclean    bool
	Unreadable []string
	// Undone is the number of a transaction that a power cut has torn, 0 when
	// there was none: its calls had not returned.
	Undone uint64

	// Damage is what was wrong with the file; nil when nothing was, and then
	// nothing of what follows is set.
	Damage error
	// Kept is where the damaged file was put.
	Kept string
	// Source says what the new file was made of.
	Source string
	// BackupTime is when the backup was made that was used; zero without one.
	BackupTime time.Time
	// Restored names the records that only the backup still had: they are as
	// old as it is.
	Restored []string
	// Lost names the records that are known to have existed and are gone. When
	// BadPages is not 0, more may be.
	Lost []string
	// BadPages counts the parts of the file that could not be read.
	BadPages int
	// Adopted names blobs and snapshots that had no record any more and were
	// given one, from what their stores know.
	Adopted []string
}

// rescueFile makes sure that bolt can open the file at path, and returns the
// number of its last transaction. A new or empty file is left to bolt. A
// damaged one is replaced by what can be saved:
//
//   - the backup, if it is as new as the file;
//   - or the state before the last transaction, if that is sound: bolt keeps it;
//   - otherwise every record of the damaged file that can be read, and from the
//     backup those that cannot.
func rescueFile(f *os.File, path string, now time.Time) (tx uint64, r Report, err error) {
	defer boltx.CatchFaults(&err)()
	tx, r.Undone, r.Damage = boltx.Check(f, cleanMark(path))
	data, unmap, err := boltx.Map(f)
	if err != nil {
		return 0, r, err
	}
	defer unmap()
	switch {
	case len(data) == 0:
		// bolt would begin anew. Where there is a backup, there was more.
		if _, _, err := readBackup(path); err != nil {
			return 0, r, nil
		}
		r.Damage = damaged("the file is empty")
	case r.Damage == nil:
		r.Damage = missesLast(data, tx, path)
	}
	if r.Damage == nil {
		return tx, r, nil
	}
	return 0, r, rebuildFile(data, path, now, &r)
}

// missesLast tells whether the meta page of the last transaction was damaged
// after a clean shutdown: bolt would quietly go back to the one before. After a
// crash it may be half written, and nobody was told that it had succeeded.
func missesLast(data []byte, tx uint64, path string) error {
	if cleanMark(path) == tx+1 && len(boltx.ReadMetas(data)) == 1 {
		return damaged("the last transaction, %d, is missing", tx+1)
	}
	return nil
}

// rebuildFile replaces the file at path. Until the rename, a crash leaves the
// damaged file in its place, to be found again.
func rebuildFile(data []byte, path string, now time.Time, r *Report) error {
	r.Kept = path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	if err := writeAtomically(path+".rebuilt", func(f *os.File) error { return rebuild(data, f, path, r) }); err != nil {
		return fmt.Errorf("%s is damaged (%w) and could not be rebuilt: %w", path, r.Damage, err)
	}
	if err := os.Link(path, r.Kept); err != nil {
		return fmt.Errorf("keep the damaged database: %w", err)
	}
	if err := os.Rename(path+".rebuilt", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// rebuild writes a sound bolt file to f.
func rebuild(data []byte, f *os.File, path string, r *Report) error {
	metas := boltx.ReadMetas(data)
	backup, made, berr := readBackup(path)
	switch {
	case berr == nil && (len(metas) == 0 || boltx.ReadMetas(backup)[0].Tx >= metas[0].Tx):
		r.BackupTime = made
		r.Source = "the backup, which has all that the file had"
		if len(metas) == 0 {
			r.Source = "the backup"
		}
		_, err := f.Write(backup)
		return err
	case len(metas) == 2 && verifyPrevious(data, metas[1]) == nil:
		r.Source = "the state before the last transaction"
		return copyWithout(data, metas[0], f)
	case berr == nil:
		r.BackupTime = made
		r.Source = "the records that could still be read, and the backup"
		if _, err := f.Write(backup); err != nil {
			return err
		}
	case errdefs.IsNotFound(berr):
		r.Source = "the records that could still be read; there is no backup"
	default:
		r.Source = fmt.Sprintf("the records that could still be read; the backup cannot be used: %v", berr)
	}
	return salvageInto(f, data, metas, r)
}

// salvageInto adds the records that can be read to f, which is empty or has the
// backup.
func salvageInto(f *os.File, data []byte, metas []boltx.Meta, r *Report) error {
	to, err := bolt.Open(f.Name(), 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	err = to.Update(func(tx *bolt.Tx) error {
		v1, err := tx.CreateBucketIfNotExists([]byte(schemaVersion))
		if err != nil {
			return err
		}
		if getInt(v1, keyVersion) == 0 {
			if err := putInt(v1, keyVersion, schemaRevision); err != nil {
				return err
			}
		}
		s := &salvage{report: r, readable: map[string]bool{}, lost: map[string]bool{}}
		if len(metas) > 0 {
			s.file = boltx.NewFile(data, metas[0])
			if err := s.merge(v1); err != nil {
				return err
			}
		} else {
			r.BadPages++
		}
		s.finish(v1)
		return nil
	})
	return errors.Join(err, to.Close())
}

func verifyPrevious(data []byte, m boltx.Meta) (err error) {
	defer boltx.CatchFaults(&err)()
	return boltx.NewFile(data, m).Verify()
}

// copyWithout copies the file but for one of its meta pages, so that bolt
// takes the other.
func copyWithout(data []byte, m boltx.Meta, f *os.File) error {
	if _, err := io.Copy(f, bytes.NewReader(data)); err != nil {
		return err
	}
	_, err := f.WriteAt(make([]byte, m.PageSize), int64(m.Page)*int64(m.PageSize))
	return err
}

// salvage reads what can be read of a damaged file, record by record: one is
// taken as a whole or not at all.
type salvage struct {
	file     *boltx.File
	report   *Report
	readable map[string]bool // names of the records that were taken
	lost     map[string]bool // names of those that are there and could not be
}

// merge copies the readable records over those in v1.
func (s *salvage) merge(v1 *bolt.Bucket) error {
	return s.guard(func() error {
		return s.file.Bucket(s.file.Root, func(k, v []byte, isBucket bool) error {
			if isBucket && string(k) == schemaVersion {
				return s.level(v1, v, nil)
			}
			return nil
		}, s.bad)
	})
}

func (s *salvage) bad(error) error {
	s.report.BadPages++
	return nil
}

// guard counts a sector that the disk cannot read as a bad page.
func (s *salvage) guard(fn func() error) (err error) {
	ok := false
	func() {
		var fault error
		defer func() { ok = fault == nil }()
		defer boltx.CatchFaults(&fault)()
		err = fn()
	}()
	if !ok {
		return s.bad(nil)
	}
	return err
}

// level goes through a bucket above the records.
func (s *salvage) level(to *bolt.Bucket, value []byte, path []string) error {
	if len(value) >= boltx.BucketHeader {
		if err := to.SetSequence(max(to.Sequence(), binary.LittleEndian.Uint64(value[8:]))); err != nil {
			return err
		}
	}
	found, before := map[string]bool{}, s.report.BadPages
	if err := s.file.Bucket(value, func(k, v []byte, isBucket bool) error {
		key := string(k)
		found[key] = true
		below := append(slices.Clone(path), key)
		switch {
		case !isBucket:
			if sub(to, key) != nil {
				return nil
			}
			return to.Put(bytes.Clone(k), bytes.Clone(v))
		case isRecord(below):
			return s.record(to, key, v, below)
		}
		next, err := ensure(to, key)
		if err != nil {
			return s.bad(err)
		}
		return s.guard(func() error { return s.level(next, v, below) })
	}, s.bad); err != nil {
		return err
	}
	if s.report.BadPages > before {
		return nil
	}
	// All of this bucket was read: what only the backup has was deleted since.
	var deleted []string
	_ = records(to, func(k []byte, _ *bolt.Bucket) error {
		if !found[string(k)] {
			deleted = append(deleted, string(k))
		}
		return nil
	})
	for _, key := range deleted {
		if err := to.DeleteBucket([]byte(key)); err != nil {
			return err
		}
	}
	return nil
}

// isRecord tells whether the path below v1 is that of a record.
func isRecord(path []string) bool {
	if len(path) < 2 {
		return false
	}
	switch path[1] {
	case keySnapshots, keyContent:
		return len(path) == 4
	case keyLabels:
		return len(path) == 2
	}
	return len(path) == 3
}

// record takes one record, if all of it can be read.
func (s *salvage) record(to *bolt.Bucket, key string, value []byte, path []string) error {
	name := strings.Join(path, "/")
	content, err := s.collect(value, 0)
	if err != nil {
		s.report.BadPages++
		s.lost[name] = true
		return nil
	}
	s.readable[name] = true
	if err := drop(to, key); err != nil {
		return err
	}
	b, err := to.CreateBucket([]byte(key))
	if err != nil {
		s.lost[name] = true
		return nil
	}
	return content.write(b)
}

// memory is a bucket in memory.
type memory struct {
	sequence uint64
	values   map[string][]byte
	buckets  map[string]*memory
}

func (s *salvage) collect(value []byte, depth int) (m *memory, err error) {
	defer boltx.CatchFaults(&err)()
	if depth > boltx.MaxDepth || len(value) < boltx.BucketHeader {
		return nil, damaged("bucket is cut off or nested too deeply")
	}
	m = &memory{binary.LittleEndian.Uint64(value[8:]), map[string][]byte{}, map[string]*memory{}}
	err = s.file.Bucket(value, func(k, v []byte, isBucket bool) error {
		if !isBucket {
			m.values[string(k)] = bytes.Clone(v)
			return nil
		}
		inner, err := s.collect(v, depth+1)
		m.buckets[string(k)] = inner
		return err
	}, func(err error) error { return err })
	return m, err
}

func (m *memory) write(b *bolt.Bucket) error {
	if err := b.SetSequence(m.sequence); err != nil {
		return err
	}
	for k, v := range m.values {
		if err := b.Put([]byte(k), v); err != nil {
			return err
		}
	}
	for k, inner := range m.buckets {
		child, err := b.CreateBucket([]byte(k))
		if err != nil {
			return err
		}
		if err := inner.write(child); err != nil {
			return err
		}
	}
	return nil
}

// finish names what came from the backup alone, and what came from nowhere.
func (s *salvage) finish(v1 *bolt.Bucket) {
	eachRecord(v1, nil, func(path []string, _ *bolt.Bucket) {
		name := strings.Join(path, "/")
		delete(s.lost, name)
		if !s.readable[name] {
			s.report.Restored = append(s.report.Restored, name)
		}
	})
	s.report.Lost = slices.Sorted(maps.Keys(s.lost))
}

// eachRecord calls fn for every record below v1, with its path.
func eachRecord(b *bolt.Bucket, path []string, fn func(path []string, record *bolt.Bucket)) {
	_ = records(b, func(k []byte, inner *bolt.Bucket) error {
		below := append(slices.Clone(path), string(k))
		if isRecord(below) {
			fn(below, inner)
		} else {
			eachRecord(inner, below, fn)
		}
		return nil
	})
}

// unreadable names the records that cannot be decoded.
func unreadable(tx *bolt.Tx) (names []string) {
	eachRecord(tx.Bucket([]byte(schemaVersion)), nil, func(path []string, b *bolt.Bucket) {
		id := path[len(path)-1]
		var err error
		switch path[1] {
		case keyImages:
			_, err = readImage(id, b)
		case keyContainers:
			_, err = readContainer(id, b)
		case keySandboxes:
			_, err = readSandbox(id, b)
		case keyLeases:
			_, err = readLease(id, b)
		case keySnapshots:
			_, err = readSnapshot(id, b)
		case keyContent:
			if path[2] == keyIngests {
				_, err = getTime(b, keyExpireAt)
			} else {
				_, err = readBlob("", b)
			}
		}
		if err != nil {
			names = append(names, strings.Join(path, "/"))
		}
	})
	return names
}
