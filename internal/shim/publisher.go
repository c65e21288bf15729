package shim

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"berth/internal/shim/api"

	"github.com/containerd/ttrpc"
)

// publisher sends events to the daemon in the order in which they were published.
// An event leaves the queue when the daemon has acknowledged it: one that is
// away or fails gets it again. Publishing never waits.
type publisher struct {
	address string
	log     *slog.Logger

	mu        sync.Mutex
	namespace string
	queue     []*api.Envelope
	keep      []bool // parallel to queue: may not be dropped
	wake      chan struct{}
	seen      chan struct{} // see daemonSeen
	// emptied is closed when the queue becomes empty; nil while nobody waits.
	emptied chan struct{}
}

const (
	// maxQueued events wait for a daemon that is away; of more, the oldest that
	// may be dropped are.
	maxQueued = 4096
	// sendTimeout is for one attempt.
	sendTimeout = 5 * time.Second
	// idleTimeout is how long the connection stays open for the next event.
	idleTimeout = 5 * time.Second
	// retryMin and retryMax bound the pause after a failure, which doubles.
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

func newPublisher(address string, log *slog.Logger) *publisher {
	p := &publisher{address: address, log: log, wake: make(chan struct{}, 1), seen: make(chan struct{}, 1)}
	go p.run()
	return p
}

// publish queues an event.
func (p *publisher) publish(e event) {
	if e.at.IsZero() {
		e.at = time.Now()
	}
	env := &api.Envelope{
		Timestamp: api.Time(e.at),
		Topic:     e.topic,
		Event:     &api.Any{TypeUrl: e.body.Name(), Value: api.Marshal(e.body)},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	env.Namespace = p.namespace
	if len(p.queue) >= maxQueued {
		p.dropOldest()
	}
	p.queue = append(p.queue, env)
	p.keep = append(p.keep, e.keep)
	p.poke()
}

func (p *publisher) dropOldest() {
	for i, keep := range p.keep {
		// The first may be on its way: it is left.
		if !keep && i > 0 {
			p.log.Warn("the daemon is away and too many events wait: one is dropped", "topic", p.queue[i].Topic)
			p.queue = append(p.queue[:i], p.queue[i+1:]...)
			p.keep = append(p.keep[:i], p.keep[i+1:]...)
			return
		}
	}
}

func (p *publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// enter makes namespace that of the events to come.
func (p *publisher) enter(namespace string) {
	p.mu.Lock()
	p.namespace = namespace
	p.mu.Unlock()
}

// Flush returns when every event was sent (true), or ctx has ended.
func (p *publisher) Flush(ctx context.Context) bool {
	p.mu.Lock()
	if len(p.queue) == 0 {
		p.mu.Unlock()
		return true
	}
	if p.emptied == nil {
		p.emptied = make(chan struct{})
	}
	emptied := p.emptied
	p.mu.Unlock()
	select {
	case <-emptied:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *publisher) run() {
	var client *ttrpc.Client
	disconnect := func() {
		if client != nil {
			client.Close()
			client = nil
		}
	}
	retry := retryMin
	for {
		p.mu.Lock()
		var next *api.Envelope
		if len(p.queue) > 0 {
			next = p.queue[0]
		}
		p.mu.Unlock()
		if next == nil {
			if client == nil {
				<-p.wake
				continue
			}
			idle := time.NewTimer(idleTimeout)
			select {
			case <-p.wake:
				idle.Stop()
			case <-idle.C:
				disconnect()
			}
			continue
		}
		if client == nil {
			conn, err := net.Dial("unix", strings.TrimPrefix(p.address, "unix://"))
			if err != nil {
				retry = p.pause(retry)
				continue
			}
			client = ttrpc.NewClient(conn)
		}
		if err := forward(client, next); err != nil {
			p.log.Debug("an event could not be delivered", "topic", next.Topic, "error", err)
			disconnect()
			retry = p.pause(retry)
			continue
		}
		retry = retryMin
		p.mu.Lock()
		p.queue[0] = nil
		p.queue, p.keep = p.queue[1:], p.keep[1:]
		if len(p.queue) == 0 {
			p.queue, p.keep = nil, nil
			if p.emptied != nil {
				close(p.emptied)
				p.emptied = nil
			}
		}
		p.mu.Unlock()
	}
}

// pause waits, until a daemon shows itself at the latest, and returns the next
// time's length.
func (p *publisher) pause(d time.Duration) time.Duration {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return min(2*d, retryMax)
	case <-p.seen:
		return retryMin
	}
}

// daemonSeen tells that somebody has connected to the shim: a daemon that is back
// gets what waits for it at once.
func (p *publisher) daemonSeen() {
	select {
	case p.seen <- struct{}{}:
	default:
	}
}

func forward(client *ttrpc.Client, env *api.Envelope) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	return client.Call(ctx, "containerd.services.events.ttrpc.v1.Events", "Forward", &api.ForwardRequest{Envelope: env}, &api.Empty{})
}
