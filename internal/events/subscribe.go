package events

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

const (
	// queueLimit is how many events a subscriber may be behind: some seconds of
	// the busiest node, a few megabytes.
	queueLimit = 16384
	// queueBytes bounds their bodies together: what clients publish may be large.
	queueBytes = 32 << 20
)

var errBehind = fmt.Errorf("subscriber is more than %d events or %d MiB behind, the subscription ends: %w", queueLimit, queueBytes>>20, errdefs.ErrResourceExhausted)

// Subscribe returns the events that match any of the filters (all when there
// are none) until ctx ends. The error channel then yields at most one error
// and both are closed: errdefs.ErrInvalidArgument for a filter that is
// malformed, errdefs.ErrResourceExhausted for a subscriber that fell too far
// behind, context.DeadlineExceeded; none when ctx was cancelled.
//
// Filters know the fields topic, namespace and, of events whose type this
// process has, event.<field>.
func (x *Exchange) Subscribe(ctx context.Context, filters ...string) (<-chan object.Event, <-chan error) {
	out, errs := make(chan object.Event), make(chan error, 1)
	s := &subscription{wake: make(chan struct{}, 1), overrun: make(chan struct{})}
	if len(filters) > 0 {
		f, err := filter.ParseAll(filters...)
		if err != nil {
			errs <- fmt.Errorf("subscribe to events: %w", err)
			close(out)
			close(errs)
			return out, errs
		}
		s.filter = f
	}
	x.add(s)
	go func() {
		defer close(errs)
		defer close(out)
		defer x.remove(s)
		if err := s.pump(ctx, out); err != nil {
			errs <- err
		}
	}()
	return out, errs
}

// subscription is the queue of one subscriber. Publishers append, one
// goroutine hands over.
type subscription struct {
	filter  filter.Filter // nil matches everything
	wake    chan struct{} // capacity 1: the queue is no longer empty
	overrun chan struct{} // closed when the queue has grown over its limit

	mu    sync.Mutex
	queue []object.Event
	bytes int  // of the bodies in the queue
	ended bool // overrun is closed
}

// push queues e; false when the subscriber is too far behind to go on.
func (s *subscription) push(e object.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.bytes += len(e.Body.Value)
	if len(s.queue) >= queueLimit || len(s.queue) > 0 && s.bytes > queueBytes {
		s.ended = true
		s.queue = nil
		close(s.overrun)
		return false
	}
	s.queue = append(s.queue, e)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// next takes the oldest event from the queue. What it returns still counts as
// one more than the limit: the pump holds it.
func (s *subscription) next() (object.Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.queue = nil // drop the array that the slice has crept through
		return object.Event{}, false
	}
	e := s.queue[0]
	s.bytes -= len(e.Body.Value)
	s.queue[0] = object.Event{}
	s.queue = s.queue[1:]
	return e, true
}

func (s *subscription) pump(ctx context.Context, out chan<- object.Event) error {
	for {
		for e, ok := s.next(); ok; e, ok = s.next() {
			select {
			case out <- e:
			case <-s.overrun:
				return errBehind
			case <-ctx.Done():
				return ended(ctx)
			}
		}
		select {
		case <-s.wake:
		case <-s.overrun:
			return errBehind
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

func ended(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// fields is an event as filters see it. The body of a forwarded event is
// decoded once, and only when a filter asks for it.
type fields struct {
	event   object.Event
	body    proto.Message
	decoded bool
}

func (f *fields) Field(path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "namespace":
		return f.event.Namespace, f.event.Namespace != ""
	case "topic":
		return f.event.Topic, f.event.Topic != ""
	case "event":
		if body, ok := f.message().(interface {
			Field([]string) (string, bool)
		}); ok {
			return body.Field(path[1:])
		}
	}
	return "", false
}

func (f *fields) message() proto.Message {
	if f.body == nil && !f.decoded {
		f.decoded = true
		if v, err := typeurl.UnmarshalByTypeURL(f.event.Body.TypeURL, f.event.Body.Value); err == nil {
			f.body, _ = v.(proto.Message)
		}
	}
	return f.body
}
