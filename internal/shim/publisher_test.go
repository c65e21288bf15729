package shim

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth/internal/object/live"
	"berth/internal/shim/api"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// sink receives events; it refuses the first refuse of them.
type sink struct {
	mu     sync.Mutex
	topics []string
	refuse int
	got    chan string
}

func (s *sink) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return nil, errors.New("not now")
	}
	s.got <- r.Envelope.Topic
	return &emptypb.Empty{}, nil
}

func (s *sink) serve(t *testing.T, address string) {
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, s)
	go server.Serve(context.Background(), l)
	t.Cleanup(func() { server.Close() })
}

func next(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("no event came in 20 s")
		return ""
	}
}

func TestPublisherWaitsForDaemon(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	p := newPublisher(address, slog.New(slog.DiscardHandler))
	p.publish(event{topic: "/tasks/create", body: &api.TaskCreate{}})
	p.publish(event{topic: "/tasks/start", body: &api.TaskStart{}})
	p.publish(exitEvent("c", "", live.Exit{}))
	s := &sink{refuse: 2, got: make(chan string, 10)}
	s.serve(t, address)
	for _, want := range []string{"/tasks/create", "/tasks/start", "/tasks/exit"} {
		if got := next(t, s.got); got != want {
			t.Fatalf("%s came, want %s", got, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !p.Flush(ctx) {
		t.Error("events are left that have arrived")
	}
}

func TestPublisherKeepsExits(t *testing.T) {
	p := &publisher{namespace: "ns", log: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1)}
	p.publish(exitEvent("first", "", live.Exit{}))
	for range maxQueued + 10 {
		p.publish(event{topic: "/tasks/start", body: &api.TaskStart{}})
	}
	p.publish(exitEvent("last", "", live.Exit{}))
	if len(p.queue) != maxQueued || len(p.keep) != maxQueued {
		t.Errorf("%d events are queued, want %d", len(p.queue), maxQueued)
	}
	exits := 0
	for i, e := range p.queue {
		if e.Topic == "/tasks/exit" {
			exits++
			if !p.keep[i] {
				t.Error("an exit may be dropped")
			}
		}
	}
	if exits != 2 {
		t.Errorf("%d exits are queued, want 2", exits)
	}
}

func TestPublisherWithNothingToSend(t *testing.T) {
	p := newPublisher(filepath.Join(t.TempDir(), "s"), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !p.Flush(ctx) {
		t.Error("a publisher with nothing to send waits for the daemon")
	}
}
