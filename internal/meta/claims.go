package meta

import (
	"context"
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
	// watches are those of the collector's cleaners that are at work.
	watches map[*watch]struct{}
}

// watch has what was held when it began, or has been since. Belongs to the mutex
// of claims.
type watch map[string]struct{}

// watch begins a watch, which the caller ends.
func (c *claims) watch() (w *watch, end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w = &watch{}
	for key := range c.held {
		(*w)[key] = struct{}{}
	}
	if c.watches == nil {
		c.watches = map[*watch]struct{}{}
	}
	c.watches[w] = struct{}{}
	return w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watches, w)
	}
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
			for w := range c.watches {
				(*w)[key] = struct{}{}
			}
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

// doom reserves the object for deletion; false when somebody holds it, or has
// since the watch began.
func (c *claims) doom(key string, since *watch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, held := (*since)[key]; held || c.held[key] > 0 || c.doomed[key] != nil {
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
