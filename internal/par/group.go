// Package par runs work in parallel: once per key with callers that wait
// (Group), a bounded number at a time (Queue), one run for everyone who asked
// before it began (Batch), and locks by key (Locks).
//
// The types hold no goroutine while they have nothing to do. No lock of
// theirs is held while a caller's function runs, but the ones of Locks, which
// is what they are for.
package par

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group does keyed work once for all who ask for it while it runs. The zero
// value is ready.
type Group[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*call[V]
}

type call[V any] struct {
	done    chan struct{} // closed when value and err are set
	value   V
	err     error
	waiters int // guarded by Group.mu
	cancel  context.CancelFunc
}

// Do returns what fn returns for the key; while a call with the same key runs
// it joins that one instead, and fn is not called. A caller whose context ends
// leaves with the context's error. The work goes on as long as somebody waits
// for it: its own context has the values of the first caller's, and ends when
// the last has left. A panic in fn becomes an error.
func (g *Group[K, V]) Do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, error) {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
		c = g.start(ctx, key, fn)
	}
	c.waiters++
	g.mu.Unlock()

	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	if c.waiters == 0 {
		c.cancel()
		// Whoever comes now must not join work that is being abandoned.
		if g.calls[key] == c {
			delete(g.calls, key)
		}
	}
	var none V
	return none, context.Cause(ctx)
}

// start is called with g.mu held.
func (g *Group[K, V]) start(ctx context.Context, key K, fn func(context.Context) (V, error)) *call[V] {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[V]{done: make(chan struct{}), cancel: cancel}
	if g.calls == nil {
		g.calls = make(map[K]*call[V])
	}
	g.calls[key] = c
	go func() {
		defer cancel()
		defer close(c.done)
		defer func() {
			if p := recover(); p != nil {
				c.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			g.mu.Lock()
			if g.calls[key] == c {
				delete(g.calls, key)
			}
			g.mu.Unlock()
		}()
		c.value, c.err = fn(work)
	}()
	return c
}
