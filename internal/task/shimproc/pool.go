package shimproc

import (
	"log/slog"
	"sync"
	"time"
)

// Options of a Pool.
type Options struct {
	// Address of the daemon is part of what shims show as their command line.
	Address string
	// Env is added to the daemon's environment for shims.
	Env []string
	Log *slog.Logger
}

// Pool holds the spares that wait, so that a create need not wait for an exec.
// There is none before the first container: an idle daemon has no children.
//
// One is started in advance; more there are only after that many tasks at the
// same time, and not for long. Methods may be called at the same time.
type Pool struct {
	opts Options
	// polite tells whether spares may start at a lower priority.
	polite func() bool
	// starting counts those that Replenish starts.
	starting sync.WaitGroup

	mu      sync.Mutex
	waiting []*Spare
	// filling is true while one is being started.
	filling bool
	closed  bool
	trim    *time.Timer
}

// NewPool makes an empty one. The caller closes it.
func NewPool(opts Options) *Pool {
	return &Pool{opts: opts, polite: sync.OnceValue(priorityReturns)}
}

// Get returns a spare of the edition: one that waits, or one that is started now.
func (p *Pool) Get(e Edition) (*Spare, error) {
	if sp := p.take(e); sp != nil {
		return sp, nil
	}
	return p.launch(e)
}

const (
	// maxSpares wait at most, of those whose tasks have ended.
	maxSpares = 16
	// trimAfter is how long after the last of them all but one are ended.
	trimAfter = 5 * time.Second
)

// take returns a spare of the edition, or nil: the one that became one last,
// which has its memory at hand.
func (p *Pool) take(e Edition) *Spare {
	for {
		p.mu.Lock()
		last := len(p.waiting) - 1
		if last < 0 {
			p.mu.Unlock()
			return nil
		}
		sp := p.waiting[last]
		p.waiting = p.waiting[:last]
		p.mu.Unlock()
		if sp.edition == e && !sp.Process.HasExited() {
			return sp
		}
		go sp.Dismiss() // who wants one need not wait for it to end
	}
}

// Peek returns the spare that Get would return next, or nil.
func (p *Pool) Peek() *Spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		return nil
	}
	return p.waiting[len(p.waiting)-1]
}

// Put adds one whose assignment is over, or ends it when there are enough.
func (p *Pool) Put(sp *Spare) {
	if !p.keep(sp) {
		sp.Dismiss()
	}
}

// keep tells whether there is room for one more.
func (p *Pool) keep(sp *Spare) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.waiting) >= maxSpares {
		return false
	}
	p.waiting = append(p.waiting, sp)
	switch {
	case len(p.waiting) == 1:
	case p.trim == nil:
		p.trim = time.AfterFunc(trimAfter, p.cut)
	default:
		p.trim.Reset(trimAfter)
	}
	return true
}

// cut ends all but the one that became a spare last.
func (p *Pool) cut() {
	p.mu.Lock()
	var surplus []*Spare
	if n := len(p.waiting) - 1; n > 0 {
		surplus, p.waiting = p.waiting[:n:n], p.waiting[n:]
	}
	p.mu.Unlock()
	dismiss(surplus)
}

// dismiss is not called with the lock held: a process that is slow to end must
// not keep others from starting.
func dismiss(list []*Spare) {
	for _, sp := range list {
		sp.Dismiss()
	}
}

// Replenish starts a spare of the binary in the background if none waits.
func (p *Pool) Replenish(binary string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.filling || len(p.waiting) > 0 {
		return
	}
	p.filling = true
	p.starting.Go(func() {
		e, err := EditionOf(binary)
		var sp *Spare
		if err == nil {
			sp, err = p.launch(e)
		}
		if sp != nil && p.polite() {
			sp.prioritise(politeness)
			sp.polite = true
		}
		if err != nil {
			p.opts.Log.Warn("no spare shim", "error", err)
		}
		p.mu.Lock()
		p.filling = false
		p.mu.Unlock()
		if sp != nil {
			p.Put(sp)
		}
	})
}

// Close ends those that wait, and takes no more.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	if p.trim != nil {
		p.trim.Stop()
	}
	rest := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	dismiss(rest)
	p.starting.Wait()
}
