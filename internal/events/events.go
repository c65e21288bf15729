// Package events carries what happened from the packages that did it to those
// who subscribed: clients, CRI, the restart monitor.
//
// Order and loss: a subscriber receives every event that is published after
// Subscribe has returned and matches its filters, in the order in which they
// were published. Publishing never waits for a subscriber: each has a queue of
// its own, and one that falls too far behind is ended with an error rather
// than allowed to hold events (and memory) for ever or to miss some silently.
package events

import (
	"context"

	"berth/internal/object"
)

// Event is a topic with its body, made by the constructors of this package.
type Event struct {
	Topic string
	body  object.Any
}

// Exchange hands events from publishers to subscribers.
type Exchange struct{}

// New makes an exchange that is ready for use.
func New() *Exchange { return &Exchange{} }

// Publish sends e in the namespace with the present time. It is called after
// the change was committed and so cannot fail; what is wrong is logged.
func (x *Exchange) Publish(ctx context.Context, namespace string, e Event) {}

// Forward sends an event of another process (a shim) as it is.
// errdefs.ErrInvalidArgument when topic, namespace or time are not valid.
func (x *Exchange) Forward(ctx context.Context, e object.Event) error { return nil }

// Subscribe returns the events that match any of the filters (all when there
// are none) until ctx ends. The error channel then yields at most one error
// and both are closed.
func (x *Exchange) Subscribe(ctx context.Context, filters ...string) (<-chan object.Event, <-chan error) {
	return nil, nil
}
