package grpcapi

import (
	"sync"
	"time"

	"berth/internal/transfer"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/types/transfer"
)

// flushTimeout bounds how long the end of a transfer waits for a client to
// take the last reports.
const flushTimeout = 5 * time.Second

// reporter sends the progress of a transfer to its client without making the
// transfer wait for it: of reports that come faster than the client takes
// them, the latest of each object and event is kept.
type reporter struct {
	stream *stream
	wake   chan struct{} // capacity 1: there are reports, or no more will come
	done   chan struct{} // closed when the sender has ended

	mu     sync.Mutex
	queue  []transfer.Progress // not sent yet, in order; protected by mu
	place  map[reportOf]int    // where in queue; protected by mu
	closed bool                // no more will come; protected by mu
	spare  []transfer.Progress // the queue before, for reuse; the sender's
}

// reportOf is what a later report replaces.
type reportOf struct{ name, event string }

func newReporter(st *stream) *reporter {
	r := &reporter{
		stream: st,
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		place:  make(map[reportOf]int),
	}
	go r.send()
	return r
}

// report is a transfer.ProgressFunc.
func (r *reporter) report(p transfer.Progress) {
	r.mu.Lock()
	key := reportOf{p.Name, p.Event}
	if i, ok := r.place[key]; ok {
		r.queue[i] = p
	} else {
		r.place[key] = len(r.queue)
		r.queue = append(r.queue, p)
	}
	r.mu.Unlock()
	r.signal()
}

// close waits until the client has taken all reports, or too long for it.
func (r *reporter) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.signal()
	timer := time.NewTimer(flushTimeout)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
	}
}

func (r *reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// send ends after close, or when the client is gone: what is reported then is
// of interest to nobody.
func (r *reporter) send() {
	defer close(r.done)
	for range r.wake {
		r.mu.Lock()
		batch, closed := r.queue, r.closed
		r.queue, r.spare = r.spare[:0], batch
		clear(r.place)
		r.mu.Unlock()
		for _, p := range batch {
			if r.stream.Send(progressToProto(p)) != nil {
				return
			}
		}
		if closed {
			return
		}
	}
}

func progressToProto(p transfer.Progress) *api.Progress {
	m := &api.Progress{Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total}
	if p.Desc != nil {
		m.Desc = wire.DescriptorToProto(*p.Desc)
	}
	return m
}
