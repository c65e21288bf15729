package par

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroupJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		var runs atomic.Int32
		release := make(chan struct{})
		work := func(context.Context) (int, error) {
			<-release
			return int(runs.Add(1)), nil
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if v, err := g.Do(t.Context(), "k", work); v != 1 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			})
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if v, _ := g.Do(t.Context(), "k", work); v != 2 {
			t.Errorf("later call got %d, not a run of its own", v)
		}
		if len(g.calls) != 0 {
			t.Errorf("%d calls left", len(g.calls))
		}
	})
}

func TestGroupWorkOutlivesFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int, string]
		release := make(chan struct{})
		first, leave := context.WithCancel(t.Context())
		go func() {
			if _, err := g.Do(first, 1, func(ctx context.Context) (string, error) {
				<-release
				return "done", ctx.Err()
			}); !errors.Is(err, context.Canceled) {
				t.Errorf("first caller: %v", err)
			}
		}()
		synctest.Wait()
		result := make(chan string)
		go func() {
			v, err := g.Do(t.Context(), 1, nil)
			if err != nil {
				t.Error(err)
			}
			result <- v
		}()
		synctest.Wait()
		leave()
		synctest.Wait()
		close(release)
		if v := <-result; v != "done" {
			t.Errorf("second caller got %q", v)
		}
	})
}

func TestGroupCancelsAbandonedWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int, int]
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go g.Do(ctx, 1, func(ctx context.Context) (int, error) {
			defer close(ended)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		synctest.Wait()
		cancel()
		<-ended
		if v, err := g.Do(t.Context(), 1, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil {
			t.Errorf("later call joined abandoned work: %d, %v", v, err)
		}
	})
}

func TestGroupPanic(t *testing.T) {
	var g Group[int, int]
	_, err := g.Do(t.Context(), 1, func(context.Context) (int, error) { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Fatalf("got %v", err)
	}
}

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
