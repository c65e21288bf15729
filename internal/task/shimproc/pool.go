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
func NewPool(opts Options) *Pool { return &Pool{opts: opts} }

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
		sp.Dismiss()
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
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.waiting) >= maxSpares {
		sp.Dismiss()
		return
	}
	p.waiting = append(p.waiting, sp)
	if len(p.waiting) == 1 {
		return
	}
	if p.trim == nil {
		p.trim = time.AfterFunc(trimAfter, p.cut)
	} else {
		p.trim.Reset(trimAfter)
	}
}

// cut ends all but the one that became a spare last.
func (p *Pool) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for len(p.waiting) > 1 {
		p.waiting[0].Dismiss()
		p.waiting = p.waiting[1:]
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
		if sp != nil {
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
	for _, sp := range p.waiting {
		sp.Dismiss()
	}
	p.waiting = nil
	p.mu.Unlock()
	p.starting.Wait()
}
