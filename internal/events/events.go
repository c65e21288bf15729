// Package events carries what happened from the packages that did it to those
// who subscribed: clients, CRI, the restart monitor.
//
// It owns the exchange (this file), the subscriptions (subscribe.go) and one
// constructor for every event that containerd publishes (records.go, tasks.go),
// so that the packages that cause events never see a protobuf. It links no
// gRPC: the shim publishes through it as well.
//
// Order and loss: a subscriber receives every event that is published after
// Subscribe has returned and matches its filters, in the order in which they
// were published. Publishing never waits for a subscriber: each has a queue of
// its own, and one that falls too far behind is ended with an error rather
// than allowed to hold events (and memory) for ever or to miss some silently.
//
// Lock order: Exchange.mu before subscription.mu. Neither is held while an
// event is handed over.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

// Event is a topic with its body, made by the constructors of this package.
type Event struct {
	Topic string
	body  proto.Message
}

// Envelope is e as it goes over the wire: what a shim, which has no exchange,
// sends to its daemon.
func (e Event) Envelope(namespace string, at time.Time) (object.Event, error) {
	if e.body == nil {
		return object.Event{}, fmt.Errorf("event without a body, topic %q: %w", e.Topic, errdefs.ErrInvalidArgument)
	}
	url, err := typeurl.TypeURL(e.body)
	if err != nil {
		return object.Event{}, fmt.Errorf("type of event %s: %w", e.Topic, err)
	}
	value, err := proto.Marshal(e.body)
	if err != nil {
		return object.Event{}, fmt.Errorf("encode event %s: %w", e.Topic, err)
	}
	env := object.Event{
		Timestamp: at.UTC(),
		Namespace: namespace,
		Topic:     e.Topic,
		Body:      object.Any{TypeURL: url, Value: value},
	}
	return env, validate(env)
}

// Exchange hands events from publishers to subscribers.
type Exchange struct {
	// Log is told of events that Publish could not send; slog.Default when nil.
	// Set before the first use.
	Log *slog.Logger

	mu   sync.Mutex
	subs []*subscription // in the order of Subscribe
}

// New makes an exchange that is ready for use.
func New() *Exchange { return &Exchange{} }

// Publish sends e in the namespace with the present time. It is called after
// the change was committed and so cannot fail; what is wrong is logged.
func (x *Exchange) Publish(ctx context.Context, namespace string, e Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.subs) == 0 {
		return
	}
	// Stamped under the lock: the order of the timestamps is the order of delivery.
	env, err := e.Envelope(namespace, time.Now())
	if err != nil {
		x.log().WarnContext(ctx, "event not published", "topic", e.Topic, "namespace", namespace, "error", err)
		return
	}
	x.deliver(env, e.body)
}

// Forward sends an event of another process (a shim) as it is.
// errdefs.ErrInvalidArgument when topic, namespace or time are not valid.
func (x *Exchange) Forward(ctx context.Context, e object.Event) error {
	if err := validate(e); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deliver(e, nil)
	return nil
}

// deliver queues the event for everyone whose filter matches; x.mu is held.
// body is the decoded event where the publisher had it.
func (x *Exchange) deliver(e object.Event, body proto.Message) {
	fields := &fields{event: e, body: body}
	live := x.subs[:0]
	for _, s := range x.subs {
		if s.filter != nil && !s.filter.Match(fields) || s.push(e) {
			live = append(live, s)
		}
	}
	clear(x.subs[len(live):])
	x.subs = live
}

func (x *Exchange) add(s *subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.subs = append(x.subs, s)
}

func (x *Exchange) remove(s *subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, other := range x.subs {
		if other == s {
			x.subs = append(x.subs[:i], x.subs[i+1:]...)
			return
		}
	}
}

func (x *Exchange) log() *slog.Logger {
	if x.Log != nil {
		return x.Log
	}
	return slog.Default()
}

func validate(e object.Event) error {
	if err := identifier(e.Namespace); err != nil {
		return fmt.Errorf("namespace of event %q: %w", e.Topic, err)
	}
	parts, ok := strings.CutPrefix(e.Topic, "/")
	if !ok {
		return fmt.Errorf("event topic %q does not start with a slash: %w", e.Topic, errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(parts, "/") {
		if err := identifier(part); err != nil {
			return fmt.Errorf("event topic %q: %w", e.Topic, err)
		}
	}
	if e.Timestamp.IsZero() {
		return fmt.Errorf("event %s has no timestamp: %w", e.Topic, errdefs.ErrInvalidArgument)
	}
	return nil
}

// identifier checks a namespace or a part of a topic by containerd's rule for
// names: 1 to 76 letters and digits, with single dots, dashes and underscores
// between them.
func identifier(s string) error {
	if s == "" || len(s) > 76 {
		return fmt.Errorf("%q must have 1 to 76 characters: %w", s, errdefs.ErrInvalidArgument)
	}
	between := false // a letter or digit precedes, so that a separator may follow
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			between = true
		case between && (c == '.' || c == '-' || c == '_'):
			between = false
		default:
			return fmt.Errorf("%q has %q where a letter or digit is needed: %w", s, c, errdefs.ErrInvalidArgument)
		}
	}
	if !between {
		return fmt.Errorf("%q ends in a separator: %w", s, errdefs.ErrInvalidArgument)
	}
	return nil
}
