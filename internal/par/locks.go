package par

import (
	"context"
	"sync"
	"time"
)

// Locks is a set of locks by key; a key that nobody holds takes no memory. The
// zero value is ready.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*holder
}

type holder struct {
	since    time.Time
	released chan struct{} // closed when the lock is given back
}

// TryLock takes the lock of a key if it is free. Otherwise it tells since when
// it has been held.
func (l *Locks[K]) TryLock(key K) (unlock func(), since time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[key]; h != nil {
		return nil, h.since, false
	}
	h := &holder{since: time.Now(), released: make(chan struct{})}
	if l.held == nil {
		l.held = make(map[K]*holder)
	}
	l.held[key] = h
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
		close(h.released)
	}), h.since, true
}

// Lock waits for the lock of a key until the context ends. Those who wait get
// it in no particular order. unlock may be called more than once.
func (l *Locks[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if unlock, _, ok := l.TryLock(key); ok {
			return unlock, nil
		}
		l.mu.Lock()
		h := l.held[key]
		l.mu.Unlock()
		if h == nil {
			continue
		}
		select {
		case <-h.released:
		case <-ctx.Done():
		}
	}
}
