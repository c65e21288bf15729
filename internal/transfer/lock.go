package transfer

import (
	"context"
	"sync"
)

// locks is a set of locks by key. The zero value is ready for use.
type locks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	token chan struct{} // holds one value while the lock is taken
	users int           // holders and waiters
}

func (l *locks) get(key string) *keyLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.held[key]
	if k == nil {
		if l.held == nil {
			l.held = map[string]*keyLock{}
		}
		k = &keyLock{token: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.users++
	return k
}

func (l *locks) put(key string, k *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.held, key)
	}
}

// try takes the lock if nobody holds it; unlock is nil when somebody does.
func (l *locks) try(key string) (unlock func()) {
	k := l.get(key)
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; l.put(key, k) }
	default:
		l.put(key, k)
		return nil
	}
}

// lock takes the lock, and waits for it until ctx ends.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k := l.get(key)
	select {
	case k.token <- struct{}{}:
		return func() { <-k.token; l.put(key, k) }, nil
	case <-ctx.Done():
		l.put(key, k)
		return nil, context.Cause(ctx)
	}
}
