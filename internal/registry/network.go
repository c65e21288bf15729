package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
)

// Network is what the remotes of one process know together: which hosts do not
// answer, and how much memory may hold what was fetched ahead. It is safe for
// concurrent use.
//
// A host that others can stand in for is probed before its first use, for
// probeTime at most. One that does not answer is passed over from then on; when
// its time is up it is probed in the background, at somebody's next use, so that
// nobody ever waits for it again.
type Network struct {
	mu     sync.Mutex
	hosts  map[string]*health // by scheme and host
	ahead  *semaphore.Weighted
	budget int64
	spare  sync.Pool // *[defaultPiece]byte
}

const (
	// probeTime is how long a host with alternatives may take to show a sign of life.
	probeTime = 700 * time.Millisecond
	// A host that did not answer is left alone for firstRest, then twice as
	// long each time, up to maxRest.
	firstRest = 10 * time.Second
	maxRest   = 5 * time.Minute
	// aheadBudget bounds what all remotes of a network hold of blobs that are
	// fetched ahead of their readers.
	aheadBudget = 24 << 20
)

// NewNetwork makes a network that knows nothing yet.
func NewNetwork() *Network {
	return &Network{hosts: map[string]*health{}, ahead: semaphore.NewWeighted(aheadBudget), budget: aheadBudget}
}

// piece returns memory for n bytes that are fetched ahead, nil when what there
// is for that is in use.
func (n *Network) piece(size int64) []byte {
	if !n.ahead.TryAcquire(size) {
		return nil
	}
	if size > defaultPiece {
		return make([]byte, size)
	}
	b, ok := n.spare.Get().(*[defaultPiece]byte)
	if !ok {
		b = new([defaultPiece]byte)
	}
	return b[:size]
}

// release takes memory of piece back.
func (n *Network) release(b []byte) {
	n.ahead.Release(int64(len(b)))
	if cap(b) == defaultPiece {
		n.spare.Put((*[defaultPiece]byte)(b[:defaultPiece]))
	}
}

// health is what is known of a host.
type health struct {
	state   condition
	rest    time.Duration // how long it is left alone, while silent
	until   time.Time     // when it may be probed again, while silent
	probing chan struct{} // closed when the probe under way has ended, nil when there is none
}

type condition int

const (
	unknown condition = iota
	answering
	silent
)

// ready tells whether a host is worth asking before its alternatives.
func (n *Network) ready(ctx context.Context, h *host) bool {
	n.mu.Lock()
	s := n.state(h)
	switch {
	case s.state == answering:
		n.mu.Unlock()
		return true
	case s.state == silent:
		if s.probing == nil && time.Now().After(s.until) {
			n.begin(s, h)
		}
		n.mu.Unlock()
		return false
	case s.probing == nil:
		n.begin(s, h)
	}
	done := s.probing
	n.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return s.state == answering
}

// state is called with n.mu held.
func (n *Network) state(h *host) *health {
	key := h.scheme + "://" + h.name
	s := n.hosts[key]
	if s == nil {
		s = &health{}
		n.hosts[key] = s
	}
	return s
}

// begin starts a probe; n.mu is held. It outlives the request that wants it:
// what it finds out is of use to the next.
func (n *Network) begin(s *health, h *host) {
	done := make(chan struct{})
	s.probing = done
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		defer cancel()
		resp, err := h.send(ctx, &call{doing: "probe it", method: http.MethodGet, path: "/"})
		if err == nil {
			resp.Body.Close()
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		s.probing = nil
		if err == nil || !unreachable(err) {
			s.state, s.rest = answering, 0
			return
		}
		s.state = silent
		s.rest = min(max(2*s.rest, firstRest), maxRest)
		s.until = time.Now().Add(s.rest)
	}()
}

// doubt notes that a host failed to answer: it is probed before its next use.
func (n *Network) doubt(h *host, err error) {
	if !unreachable(err) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.state(h); s.state == answering {
		s.state = unknown
	}
}

// unreachable tells a host that gives no answer from one that gives a bad one.
func unreachable(err error) bool {
	var dns *net.DNSError
	var timeout net.Error
	return errors.Is(err, errStalled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.As(err, &dns) || errors.As(err, &timeout) && timeout.Timeout()
}
