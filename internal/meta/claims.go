package meta

import (
	"context"
	"slices"
	"sync"
)

// claims keeps the collector and the writers of a backend object apart while
// no record names the object: a blob that is about to be recorded, a snapshot
// that was just made. Holders share; the collector, which deletes, excludes
// them, and never waits: what is held it leaves for the next time.
type claims struct {
	mu     sync.Mutex
	held   map[string]int
	doomed map[string]chan struct{}
}

// hold waits while the object is being deleted, no longer than ctx lasts, and
// keeps it from being deleted until release.
func (c *claims) hold(ctx context.Context, key string) error {
	for {
		c.mu.Lock()
		deleted, doomed := c.doomed[key]
		if !doomed {
			if c.held == nil {
				c.held = map[string]int{}
			}
			c.held[key]++
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-deleted:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *claims) release(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key]--; c.held[key] <= 0 {
		delete(c.held, key)
	}
}

// doom reserves the object for deletion; false when somebody holds it.
func (c *claims) doom(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key] > 0 || c.doomed[key] != nil {
		return false
	}
	if c.doomed == nil {
		c.doomed = map[string]chan struct{}{}
	}
	c.doomed[key] = make(chan struct{})
	return true
}

// pardon ends what doom began, whether the object was deleted or not.
func (c *claims) pardon(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.doomed[key])
	delete(c.doomed, key)
}

// locks are mutexes with names, for objects whose change takes a call to a
// backend. A name costs nothing while nobody locks it.
type locks struct {
	mu    sync.Mutex
	named map[string]chan struct{} // closed on unlock
}

// lock takes the names, in their order, so that two callers cannot wait for
// each other. It gives up with ctx.
func (l *locks) lock(ctx context.Context, names ...string) (unlock func(), err error) {
	slices.Sort(names)
	names = slices.Compact(names)
	taken := 0
	unlock = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, name := range names[:taken] {
			close(l.named[name])
			delete(l.named, name)
		}
	}
	for taken < len(names) {
		name := names[taken]
		l.mu.Lock()
		free, busy := l.named[name]
		if !busy {
			if l.named == nil {
				l.named = map[string]chan struct{}{}
			}
			l.named[name] = make(chan struct{})
			l.mu.Unlock()
			taken++
			continue
		}
		l.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			unlock()
			return nil, ctx.Err()
		}
	}
	return unlock, nil
}
