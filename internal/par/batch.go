package par

import "sync"

// Batch runs one function for many callers: an expensive step, such as an
// fsync, that serves everyone who asked before it began. At most one run is
// under way; whoever asks meanwhile shares the next one.
type Batch struct {
	run func() error

	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done chan struct{} // closed when err is set
	err  error
}

// NewBatch makes a batch of run, which must not panic.
func NewBatch(run func() error) *Batch { return &Batch{run: run} }

// Do returns the result of a run that began after Do was called. The first
// caller runs it itself: a lone caller pays for no goroutine.
func (b *Batch) Do() error {
	b.mu.Lock()
	if b.running {
		if b.next == nil {
			b.next = &round{done: make(chan struct{})}
		}
		r := b.next
		b.mu.Unlock()
		<-r.done
		return r.err
	}
	b.running = true
	b.mu.Unlock()
	err := b.run()

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.running = false
	} else {
		go b.serve()
	}
	return err
}

// serve runs rounds until nobody waits.
func (b *Batch) serve() {
	for {
		b.mu.Lock()
		r := b.next
		b.next = nil
		if r == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		r.err = b.run()
		close(r.done)
	}
}
