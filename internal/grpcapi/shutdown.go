package grpcapi

import (
	"context"
	"sync"
)

// Shutdown takes no further calls, lets those under way finish until ctx ends,
// and then cuts off what is left. Calls that only wait for something to happen
// are not waited for.
func (s *Server) Shutdown(ctx context.Context) {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-s.calls.idle():
	case <-ctx.Done():
	}
	s.Stop()
	<-graceful
}

// waits tells the methods that return when something happens from those that
// do something.
func waits(method string) bool {
	switch method {
	case "/containerd.services.tasks.v1.Tasks/Wait",
		"/containerd.services.events.v1.Events/Subscribe",
		"/containerd.services.streaming.v1.Streaming/Stream",
		"/containerd.services.sandbox.v1.Controller/Wait",
		"/grpc.health.v1.Health/Watch":
		return true
	}
	return false
}

// inflight counts the calls that are under way.
type inflight struct {
	mu      sync.Mutex
	n       int
	waiting []chan struct{} // closed when n reaches 0
}

func newInflight() *inflight { return &inflight{} }

func (f *inflight) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
}

func (f *inflight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	if f.n == 0 {
		for _, w := range f.waiting {
			close(w)
		}
		f.waiting = nil
	}
}

// idle is closed once no call is under way.
func (f *inflight) idle() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := make(chan struct{})
	if f.n == 0 {
		close(w)
		return w
	}
	f.waiting = append(f.waiting, w)
	return w
}
