package boltx

import (
	"os"
	"runtime"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Pace makes a walk through many records give way to goroutines that wait for a
// processor, which the runtime would let wait for 10 ms: what a request costs is
// less than that. It is for readers: a writer keeps others waiting meanwhile.
type Pace int

// paceEvery records, which take about 0.1 ms, a walk gives way.
const paceEvery = 32

// Step counts a record.
func (p *Pace) Step() {
	if *p++; *p%paceEvery == 0 {
		runtime.Gosched()
	}
}

// mapSize is the smallest stretch of addresses that a file is mapped to.
const mapSize = 1 << 30

// mapping is a file mapped for reading, with room to grow. What it gave out is
// valid until it is closed.
type mapping struct {
	f *os.File

	mu   sync.Mutex
	data []byte
	old  [][]byte
}

// upTo returns the first size bytes of the file, which must have them.
func (m *mapping) upTo(size int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(len(m.data)) < size {
		data, err := unix.Mmap(int(m.f.Fd()), 0, int(max(mapSize, 2*size)), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, &os.PathError{Op: "mmap", Path: m.f.Name(), Err: err}
		}
		if m.data != nil {
			m.old = append(m.old, m.data)
		}
		m.data = data
	}
	return m.data[:size:size], nil
}

func (m *mapping) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, data := range append(m.old, m.data) {
		if data != nil {
			_ = unix.Munmap(data)
		}
	}
	m.data, m.old = nil, nil
}

// ViewFile is View for those who read much: it costs no allocation per element.
// The file, and what it gives out, must not be used after fn.
func (d *DB) ViewFile(fn func(*File) error) error {
	for {
		found := false
		if err := d.View(func(tx *bolt.Tx) error {
			size := int64(d.db.Info().PageSize)
			head, err := d.view.upTo(2 * size)
			if err != nil {
				return err
			}
			metas := ReadMetas(head)
			i := slices.IndexFunc(metas, func(m Meta) bool { return m.Tx == uint64(tx.ID()) })
			if found = i >= 0; !found {
				return nil // two commits came since tx began: begin anew
			}
			data, err := d.view.upTo(int64(metas[i].Pages) * size)
			if err != nil {
				return err
			}
			return fn(&File{data: data, Meta: metas[i]})
		}); err != nil || found {
			return err
		}
	}
}

// Find returns the value of the bucket that is reached by these names, for
// Bucket; nil when there is none.
func (f *File) Find(names ...string) (value []byte, err error) { return f.Within(f.Root, names...) }

// Within is Find that begins in a bucket.
func (f *File) Within(bucket []byte, names ...string) (value []byte, err error) {
	value = bucket
	for _, name := range names {
		var next []byte
		if err := f.Bucket(value, func(k, v []byte, isBucket bool) error {
			if isBucket && string(k) == name {
				next = v
			}
			return nil
		}, func(err error) error { return err }); err != nil || next == nil {
			return nil, err
		}
		value = next
	}
	return value, nil
}
