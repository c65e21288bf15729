package par

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(3)
		<-q.Idle()
		var now, most, done atomic.Int32
		for range 20 {
			q.Add(func() {
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Second) // deliberate: virtual time
				now.Add(-1)
				done.Add(1)
			})
		}
		<-q.Idle()
		if most.Load() != 3 || done.Load() != 20 {
			t.Errorf("%d at once, %d done", most.Load(), done.Load())
		}
		<-q.Idle()
	})
}

func TestBatchRunsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var state, seen, runs atomic.Int64
		b := NewBatch(func() error {
			s := state.Load()
			time.Sleep(time.Second) // deliberate: virtual time
			seen.Store(s)
			runs.Add(1)
			return nil
		})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				mine := state.Add(1)
				if err := b.Do(); err != nil {
					t.Error(err)
				}
				if seen.Load() < mine {
					t.Errorf("run saw %d, this caller had made %d", seen.Load(), mine)
				}
			})
		}
		wg.Wait()
		if n := runs.Load(); n > 2 {
			t.Errorf("%d runs for callers that came at once", n)
		}
	})
}

func TestBatchError(t *testing.T) {
	boom := errors.New("boom")
	b := NewBatch(func() error { return boom })
	for range 3 {
		if err := b.Do(); err != boom {
			t.Fatal(err)
		}
	}
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks[string]
		start := time.Now()
		unlock, _, ok := l.TryLock("a")
		if !ok {
			t.Fatal("free lock refused")
		}
		time.Sleep(time.Minute) // deliberate: virtual time
		if _, since, ok := l.TryLock("a"); ok || !since.Equal(start) {
			t.Fatalf("held lock: %v, since %v", ok, since)
		}
		other, _, ok := l.TryLock("b")
		if !ok {
			t.Fatal("other key is locked")
		}
		other()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		got := make(chan func())
		go func() {
			u, err := l.Lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
			}
			got <- u
		}()
		synctest.Wait()
		unlock()
		second := <-got
		unlock() // has no effect on the second holder
		if _, _, ok := l.TryLock("a"); ok {
			t.Fatal("second holder lost the lock")
		}
		second()
		if len(l.held) != 0 {
			t.Fatalf("%d locks left", len(l.held))
		}
	})
}
