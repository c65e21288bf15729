package grpcapi

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/remote"
	"berth/internal/sandbox"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// cells is a controller whose sandboxes are records that can end.
type cells struct {
	mu      sync.Mutex
	created map[string]sandbox.CreateOptions
	record  map[string]object.Sandbox
	ended   map[string]chan struct{}
	stopped map[string]time.Duration
	fields  []string
}

var moment = time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC)

func (c *cells) get(ns, id string) (string, error) {
	if key := ns + "/" + id; c.ended[key] != nil {
		return key, nil
	}
	return "", fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
}

func (c *cells) Create(_ context.Context, ns string, s object.Sandbox, opts sandbox.CreateOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := ns + "/" + s.ID
	if c.ended[key] != nil {
		return fmt.Errorf("sandbox %q: %w", s.ID, errdefs.ErrAlreadyExists)
	}
	c.created[key], c.record[key], c.ended[key] = opts, s, make(chan struct{})
	return nil
}

func (c *cells) Start(_ context.Context, ns, id string) (sandbox.Instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.get(ns, id)
	return sandbox.Instance{
		ID: id, PID: 12, CreatedAt: moment, Labels: map[string]string{"l": "v"},
		Address: "ttrpc+unix:///x", Version: 3, Spec: &object.Any{TypeURL: "t", Value: []byte("s")},
	}, err
}

func (c *cells) Platform(_ context.Context, ns, id string) (ispec.Platform, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.get(ns, id)
	return ispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, err
}

func (c *cells) Stop(_ context.Context, ns, id string, timeout time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if key, err := c.get(ns, id); err == nil {
		c.stopped[key] = timeout
		close(c.ended[key])
	}
	return nil
}

func (c *cells) Wait(ctx context.Context, ns, id string) (object.Exit, error) {
	c.mu.Lock()
	key, err := c.get(ns, id)
	ended := c.ended[key]
	c.mu.Unlock()
	if err != nil {
		return object.Exit{}, err
	}
	select {
	case <-ended:
		return object.Exit{Status: 137, At: moment}, nil
	case <-ctx.Done():
		return object.Exit{}, ctx.Err()
	}
}

func (c *cells) Status(_ context.Context, ns, id string, verbose bool) (sandbox.Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.get(ns, id)
	st := sandbox.Status{ID: id, PID: 12, State: "ready", CreatedAt: moment, ExitedAt: moment, Extra: &object.Any{TypeURL: "t", Value: []byte("e")}, Address: "a", Version: 2}
	if verbose {
		st.Info = map[string]string{"k": "v"}
	}
	return st, err
}

func (c *cells) Shutdown(_ context.Context, ns, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, err := c.get(ns, id)
	delete(c.ended, key)
	return err
}

func (c *cells) Metrics(_ context.Context, ns, id string) (sandbox.Metric, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.get(ns, id)
	return sandbox.Metric{At: moment, ID: id, Data: &object.Any{TypeURL: "t", Value: []byte("m")}}, err
}

func (c *cells) Update(_ context.Context, ns, id string, s object.Sandbox, fields ...string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, err := c.get(ns, id)
	c.record[key], c.fields = s, fields
	return err
}

// A controller is the same across the socket of a proxy plugin.
func TestSandboxesOfProxy(t *testing.T) {
	local := &cells{
		created: map[string]sandbox.CreateOptions{}, record: map[string]object.Sandbox{}, ended: map[string]chan struct{}{}, stopped: map[string]time.Duration{},
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(Options{Log: slog.New(slog.DiscardHandler), Sandboxers: map[string]sandbox.Controller{"mine": local}})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Stop()
	conn, err := remote.NewProxy("mine", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var far sandbox.Controller = remote.NewSandboxes(conn, "mine")
	testSandboxes(t, local, far)

	if err := remote.NewSandboxes(conn, "other").Shutdown(t.Context(), "ns", "x"); !errdefs.IsNotFound(err) {
		t.Errorf("a controller of an unknown name: %v", err)
	}
}

func testSandboxes(t *testing.T, local *cells, far sandbox.Controller) {
	ctx := t.Context()
	record := object.Sandbox{ID: "a", Labels: map[string]string{"x": "y"}, Sandboxer: "mine", Spec: &object.Any{TypeURL: "t", Value: []byte("1")}}
	opts := sandbox.CreateOptions{
		Rootfs:  []object.Mount{{Type: "bind", Source: "/s", Options: []string{"ro"}}},
		Options: &object.Any{TypeURL: "t", Value: []byte("o")}, NetNS: "/run/netns/x", Annotations: map[string]string{"n": "v"},
	}
	if err := far.Create(ctx, "ns", record, opts); err != nil {
		t.Fatal(err)
	}
	if got := local.record["ns/a"]; !reflect.DeepEqual(local.created["ns/a"], opts) || got.ID != "a" || got.Labels["x"] != "y" {
		t.Errorf("created %+v %+v", got, local.created["ns/a"])
	}
	if err := far.Create(ctx, "ns", record, opts); !errdefs.IsAlreadyExists(err) {
		t.Errorf("once more: %v", err)
	}
	same(t, "start", local.Start, far.Start)
	same(t, "platform", local.Platform, far.Platform)
	same(t, "metrics", local.Metrics, far.Metrics)
	for _, verbose := range []bool{false, true} {
		want, _ := local.Status(ctx, "ns", "a", verbose)
		if got, err := far.Status(ctx, "ns", "a", verbose); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("status %+v %v, want %+v", got, err, want)
		}
	}
	record.Labels = map[string]string{"z": "1"}
	if err := far.Update(ctx, "ns", "a", record, "labels", "spec"); err != nil || local.record["ns/a"].Labels["z"] != "1" || !slices.Equal(local.fields, []string{"labels", "spec"}) {
		t.Errorf("update: %v, %+v %v", err, local.record["ns/a"], local.fields)
	}
	waited := make(chan error, 1)
	go func() {
		exit, err := far.Wait(ctx, "ns", "a")
		if err == nil && (exit.Status != 137 || !exit.At.Equal(moment)) {
			err = fmt.Errorf("exit %+v", exit)
		}
		waited <- err
	}()
	if err := far.Stop(ctx, "ns", "a", 1500*time.Millisecond); err != nil || local.stopped["ns/a"] != 2*time.Second {
		t.Errorf("stop: %v, %v", err, local.stopped["ns/a"])
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := far.Shutdown(ctx, "ns", "a"); err != nil {
		t.Error(err)
	}
	if _, err := far.Wait(ctx, "ns", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("wait for nothing: %v", err)
	}
}

func same[T any](t *testing.T, what string, local, far func(context.Context, string, string) (T, error)) {
	t.Helper()
	want, _ := local(t.Context(), "ns", "a")
	got, err := far(t.Context(), "ns", "a")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v %v, want %+v", what, got, err, want)
	}
	if _, err := far(t.Context(), "other", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("%s in another namespace: %v", what, err)
	}
}
