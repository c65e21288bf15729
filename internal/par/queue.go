// Package par runs work in parallel: a bounded number at a time (Queue), one run
// for everyone who asked before it began (Batch), and locks by key (Locks).
//
// The types hold no goroutine while they have nothing to do. No lock of
// theirs is held while a caller's function runs, but the ones of Locks, which
// is what they are for.
package par

import "sync"

// Queue runs functions in the order they were added, a bounded number at a
// time, each in a goroutine that lives as long as there is work.
type Queue struct {
	limit int

	mu      sync.Mutex
	running int
	backlog []func()
	idle    chan struct{} // closed when nothing runs; nil when nobody asked
}

// NewQueue makes a queue that runs up to limit functions at once.
func NewQueue(limit int) *Queue {
	return &Queue{limit: max(limit, 1)}
}

// Add has fn run, now or when there is room. It does not wait.
func (q *Queue) Add(fn func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running == q.limit {
		q.backlog = append(q.backlog, fn)
		return
	}
	q.running++
	go q.work(fn)
}

func (q *Queue) work(fn func()) {
	for fn != nil {
		fn()
		fn = q.next()
	}
}

func (q *Queue) next() func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.backlog) > 0 {
		fn := q.backlog[0]
		q.backlog[0] = nil
		q.backlog = q.backlog[1:]
		return fn
	}
	q.running--
	if q.running == 0 && q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
	return nil
}

// Idle returns a channel that is closed as soon as nothing runs or waits.
func (q *Queue) Idle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running == 0 {
		now := make(chan struct{})
		close(now)
		return now
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	return q.idle
}
