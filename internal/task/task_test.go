package task

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"berth/internal/events"
	"berth/internal/object"
	"berth/internal/task/shimconn"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

type testManager struct{ *Manager }

// newManager makes a manager with directories of its own, closed at the end of
// the test. The function tells which events it published until now.
func newManager(t testing.TB) (*testManager, func() []object.Event) {
	t.Helper()
	// Short, for the sake of sockets' paths.
	dir, err := os.MkdirTemp("", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return openManager(t, dir)
}

func openManager(t testing.TB, dir string) (*testManager, func() []object.Event) {
	t.Helper()
	x := events.New()
	m, err := New(Options{
		Root: dir + "/root", State: dir + "/run",
		Address: dir + "/c.sock", TTRPCAddress: dir + "/c.sock.ttrpc",
		Events: x,
		Log:    slog.New(slog.NewTextHandler(logWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	serveEvents(t, m.opts.TTRPCAddress)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ch, _ := x.Subscribe(ctx)
	var seen []object.Event
	t.Cleanup(func() { m.Close() })
	return &testManager{m}, func() []object.Event {
		// The mark comes after all that was published until now.
		x.Publish(context.Background(), "mark", events.TaskExit("mark", "", object.Exit{}))
		for e := range ch {
			if e.Namespace == "mark" {
				break
			}
			seen = append(seen, e)
		}
		return seen
	}
}

// serveEvents takes the events of shims, as the daemon does: they do not end
// before they got rid of them.
func serveEvents(t testing.TB, path string) {
	t.Helper()
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, anyEvents{})
	go server.Serve(context.Background(), l)
	t.Cleanup(func() { server.Close() })
}

type anyEvents struct{}

func (anyEvents) Forward(context.Context, *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

type logWriter struct{ testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// testLog logs into w, and tells got of every line.
func testLog(w io.Writer, got chan<- struct{}) *slog.Logger {
	return slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		got <- struct{}{}
		return n, err
	}), nil))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A shim at whose address nobody listened when it was to be adopted has never had
// a connection: a call that comes meanwhile is told that it has died.
func TestCallToShimNeverConnected(t *testing.T) {
	m, _ := newManager(t)
	s := m.newShim("unix:///nowhere", "ttrpc", "", shimconn.NewestVersion)
	m.shims[s.address] = s
	m.fail(s, errdefs.ErrUnavailable)
	tk := m.newTask(key{"ns", "c"}, recovering, false)
	tk.shim = s
	if _, err := tk.state(t.Context(), ""); !errdefs.IsNotFound(err) {
		t.Errorf("state: %v, want NotFound", err)
	}
}
