package task

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"berth/internal/events"
	"berth/internal/object"
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
	var mu sync.Mutex
	var seen []object.Event
	ch, _ := x.Subscribe(t.Context())
	go func() {
		for e := range ch {
			mu.Lock()
			seen = append(seen, e)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { m.Close() })
	return &testManager{m}, func() []object.Event {
		mu.Lock()
		defer mu.Unlock()
		return append([]object.Event(nil), seen...)
	}
}

type logWriter struct{ testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
