package meta

import (
	"sync"
	"time"
)

// GCOptions says when garbage is collected; the names and meanings are those
// of containerd's configuration (plugin io.containerd.gc.v1.scheduler).
type GCOptions struct {
	// PauseThreshold is the largest share of the time that scheduled
	// collections may take, 0 to 0.5; 0 means no limit.
	PauseThreshold float64
	// DeletionThreshold, when not 0, is how many deletions cause a collection
	// without regard to PauseThreshold.
	DeletionThreshold int
	// MutationThreshold is after how many changes a collection is worth while
	// although nothing was deleted; 0 means never.
	MutationThreshold int
	// ScheduleDelay is between the cause and the collection.
	ScheduleDelay time.Duration
	// StartupDelay is between Open and the first collection, which finds what a
	// crash left behind.
	StartupDelay time.Duration
}

// DefaultGC are containerd's defaults.
func DefaultGC() GCOptions {
	return GCOptions{PauseThreshold: 0.02, MutationThreshold: 100, StartupDelay: 100 * time.Millisecond}
}

// minCollection is how long a collection counts at least for PauseThreshold.
const minCollection = 5 * time.Millisecond

// retryAfter a collection failed, the next is tried.
const retryAfter = 10 * time.Second

// farOff is no sooner than any timer needs to fire. What expires in the year 9999
// is further away than a time.Duration reaches, which must not be added to.
const farOff = 100 * 365 * 24 * time.Hour

// scheduler decides when to collect. Nothing polls: changes count, and the
// one that gives cause sets the timer; so does the earliest expiry. Without a
// cause no timer runs.
type scheduler struct {
	opts GCOptions
	now  func() time.Time
	run  func() (ok bool) // one collection, in the timer's goroutine

	mu        sync.Mutex
	deletions int
	mutations int
	running   bool
	closed    bool
	timer     *time.Timer
	at        time.Time // when the timer fires; zero when it does not
	expiry    time.Time // earliest known, by now's clock
	total     time.Duration
	runs      int
	earliest  time.Time // PauseThreshold allows no scheduled collection before
}

func newScheduler(opts GCOptions, now func() time.Time, run func() bool) *scheduler {
	opts.PauseThreshold = min(max(opts.PauseThreshold, 0), 0.5)
	return &scheduler{opts: opts, now: now, run: run}
}

// SetGC changes when garbage is collected, from the next cause on.
func (db *DB) SetGC(opts GCOptions) { db.sched.set(opts) }

func (s *scheduler) set(opts GCOptions) {
	opts.PauseThreshold = min(max(opts.PauseThreshold, 0), 0.5)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opts = opts
	s.plan()
}

// start schedules the first collection.
func (s *scheduler) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schedule(time.Now().Add(max(0, s.opts.StartupDelay)))
}

// mutated counts a committed change.
func (s *scheduler) mutated(removal bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mutations++
	if removal {
		s.deletions++
	}
	s.plan()
}

// expireAt says that something may be garbage from t on.
func (s *scheduler) expireAt(t time.Time) {
	if t.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiry.IsZero() || t.Before(s.expiry) {
		s.expiry = t
		s.plan()
	}
}

// plan sets the timer as the counters demand; s.mu is held.
func (s *scheduler) plan() {
	if s.running || s.runs == 0 {
		return // planned again afterwards; the first collection is scheduled anyway
	}
	now := time.Now()
	soon := now.Add(max(0, s.opts.ScheduleDelay))
	switch {
	case s.opts.DeletionThreshold > 0 && s.deletions >= s.opts.DeletionThreshold:
		s.schedule(soon)
	case s.deletions > 0, s.opts.MutationThreshold > 0 && s.mutations >= s.opts.MutationThreshold:
		s.schedule(latest(soon, s.earliest))
	}
	if !s.expiry.IsZero() {
		// A moment later: what expires at t is garbage after t.
		in := min(max(0, s.expiry.Sub(s.now())), farOff) + time.Millisecond
		s.schedule(latest(now.Add(in), s.earliest))
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// schedule makes the timer fire at t, unless it will earlier; s.mu is held.
func (s *scheduler) schedule(t time.Time) {
	if s.closed || !s.at.IsZero() && !t.Before(s.at) {
		return
	}
	s.at = t
	if s.timer == nil {
		s.timer = time.AfterFunc(time.Until(t), s.fire)
	} else {
		s.timer.Reset(time.Until(t))
	}
}

func (s *scheduler) fire() {
	s.mu.Lock()
	if s.closed || s.running {
		s.mu.Unlock()
		return
	}
	s.at = time.Time{}
	s.running = true
	// What happens from now on may be missed by this collection: it counts
	// towards the next.
	s.deletions, s.mutations, s.expiry = 0, 0, time.Time{}
	s.mu.Unlock()
	start := time.Now()
	ok := s.run()
	took := time.Since(start)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
	s.runs++
	s.total += max(took, minCollection)
	if s.opts.PauseThreshold > 0 {
		average := float64(s.total) / float64(s.runs)
		s.earliest = time.Now().Add(time.Duration(average/s.opts.PauseThreshold - average))
	}
	if !ok {
		s.deletions++
		s.earliest = latest(s.earliest, time.Now().Add(retryAfter))
	}
	s.plan()
}

// close ends scheduling; a collection that runs is not waited for.
func (s *scheduler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}
