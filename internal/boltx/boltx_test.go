package boltx

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func open(t testing.TB) *DB {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "test.db"), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestConcurrentUpdates(t *testing.T) {
	db := open(t)
	own := errors.New("own")
	const n = 200
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = db.Update(t.Context(), func(tx *bolt.Tx) error {
				b, err := tx.CreateBucketIfNotExists([]byte("b"))
				if err != nil {
					return err
				}
				if err := b.Put(binary.BigEndian.AppendUint32(nil, uint32(i)), []byte{1}); err != nil {
					return err
				}
				switch i % 10 {
				case 3:
					return own
				case 7:
					panic("own")
				}
				return nil
			})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if want := i%10 == 3 || i%10 == 7; (err != nil) != want || i%10 == 3 && !errors.Is(err, own) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if err := db.View(func(tx *bolt.Tx) error {
		count := tx.Bucket([]byte("b")).Stats().KeyN
		if want := n * 8 / 10; count != want {
			return fmt.Errorf("%d keys, want %d: those of failed calls must be gone", count, want)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestFailureIsTheCallersOwn: a call must not fail because of another one in
// its group that comes to nothing.
func TestFailureIsTheCallersOwn(t *testing.T) {
	db := open(t)
	own := errors.New("own")
	create := func(fail error) *call {
		return &call{fn: func(tx *bolt.Tx) error {
			if _, err := tx.CreateBucket([]byte("same")); err != nil {
				return err
			}
			return fail
		}, done: make(chan struct{})}
	}
	first, second := create(own), create(nil)
	db.commit([]*call{first, second})
	if second.err != nil || first.err == nil {
		t.Errorf("%v, %v", first.err, second.err)
	}
}

// Many that fail do not make the others run again and again.
func TestManyFailures(t *testing.T) {
	db := open(t)
	own := errors.New("own")
	runs := 0
	calls := make([]*call, maxGroup)
	for i := range calls {
		calls[i] = &call{fn: func(tx *bolt.Tx) error {
			runs++
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			if err := b.Put(binary.BigEndian.AppendUint32(nil, uint32(i)), []byte{1}); err != nil {
				return err
			}
			if i%2 == 0 {
				return own
			}
			return nil
		}}
	}
	db.commit(calls)
	for i, c := range calls {
		if want := i%2 == 0; errors.Is(c.err, own) != want {
			t.Errorf("call %d: %v", i, c.err)
		}
	}
	if want := 2 * maxGroup; runs > want {
		t.Errorf("%d calls were run %d times, want at most %d", len(calls), runs, want)
	}
	if err := db.View(func(tx *bolt.Tx) error {
		if n := tx.Bucket([]byte("b")).Stats().KeyN; n != maxGroup/2 {
			return fmt.Errorf("%d keys", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t).Update(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkUpdate(b *testing.B) {
	db := open(b)
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for i := uint32(0); pb.Next(); i++ {
			if err := db.Update(b.Context(), func(tx *bolt.Tx) error {
				bucket, err := tx.CreateBucketIfNotExists([]byte("b"))
				if err != nil {
					return err
				}
				return bucket.Put(binary.BigEndian.AppendUint32(nil, i), []byte{1})
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
