package remote

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// proxied is a snapshotter process whose Stat the test decides.
type proxied struct {
	api.UnimplementedSnapshotsServer
	stat func(ctx context.Context) error
}

func (s *proxied) Stat(ctx context.Context, _ *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	return &api.StatSnapshotResponse{}, s.stat(ctx)
}

func serve(t *testing.T, socket string, s *proxied) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	api.RegisterSnapshotsServer(g, s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	stop = sync.OnceFunc(func() { g.Stop(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func newProxy(t *testing.T, socket string) *Snapshots {
	t.Helper()
	p, err := NewProxy("mine", "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return NewSnapshots(p, Snapshotter{Name: "mine"})
}

func unavailable(t *testing.T, err error, socket string) {
	t.Helper()
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), `"mine"`) {
		t.Errorf("error %v, want one that is unavailable and names %s", err, socket)
	}
}

// One that is not there yet, there, gone and there again.
func TestProxyComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s := newProxy(t, socket)
	ok := &proxied{stat: func(context.Context) error { return nil }}
	for range 3 {
		start := time.Now()
		for range 5 {
			_, err := s.Stat(t.Context(), "x")
			unavailable(t, err, socket)
		}
		if d := time.Since(start); d > probeTimeout {
			t.Errorf("5 calls to nobody took %v", d)
		}
		stop := serve(t, socket, ok)
		if _, err := s.Stat(t.Context(), "x"); err != nil {
			t.Errorf("the first call after it is back: %v", err)
		}
		stop()
		if err := os.RemoveAll(socket); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that takes connections and never answers costs a probe each, and
// no more than the caller's time.
func TestProxyHangs(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newProxy(t, socket)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Stat(ctx, "x"); !errdefs.IsDeadlineExceeded(err) && !errdefs.IsUnavailable(err) {
		t.Errorf("the caller's time is over: %v", err)
	}
	start := time.Now()
	_, err = s.Stat(t.Context(), "x")
	unavailable(t, err, socket)
	if d := time.Since(start); d > 3*probeTimeout {
		t.Errorf("it took %v", d)
	}
}

// A method that never answers is not the fault of the ones that do.
func TestProxyMethodHangs(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, &proxied{stat: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	s := newProxy(t, socket)
	start := time.Now()
	_, err := s.Stat(t.Context(), "x")
	unavailable(t, err, socket)
	if d := time.Since(start); d > 3*probeTimeout {
		t.Errorf("it took %v", d)
	}
}

func TestProxyPassesScopeAndErrors(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	got := make(chan metadata.MD, 1)
	serve(t, socket, &proxied{stat: func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		got <- md
		return errdefs.ErrUnknown
	}})
	s := newProxy(t, socket)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(namespaceKey, "ns", leaseKey, "l", "other", "x"))
	if _, err := s.Stat(ctx, "x"); err == nil || errdefs.IsUnavailable(err) {
		t.Errorf("error %v", err)
	}
	md := <-got
	if strings.Join(md.Get(namespaceKey), ",") != "ns" || strings.Join(md.Get(leaseKey), ",") != "l" || len(md.Get("other")) > 0 {
		t.Errorf("metadata %v", md)
	}
	if _, err := s.Stat(t.Context(), "x"); err == nil {
		t.Error("no error")
	}
	if md := <-got; len(md.Get(namespaceKey)) > 0 {
		t.Errorf("metadata %v", md)
	}
}

func TestProxyAddress(t *testing.T) {
	for _, address := range []string{"", "relative", "tcp://1.2.3.4:5", "unix://x"} {
		if _, err := NewProxy("p", address); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", address, err)
		}
	}
}
