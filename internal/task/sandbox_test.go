package task

import (
	"context"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/sandbox"
	"berth/internal/task/procfs"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fakeSandbox is the sandbox API of a fake shim.
type fakeSandbox struct {
	api.UnimplementedSandboxServer
	how map[string]string

	mu    sync.Mutex
	state string
	ended chan struct{}
}

func (f *fakeSandbox) CreateSandbox(_ context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	if err := misbehave(f.how, "create"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = "created " + r.NetnsPath
	return &api.CreateSandboxResponse{}, nil
}

func (f *fakeSandbox) StartSandbox(context.Context, *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	if err := misbehave(f.how, "run"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = "ready"
	return &api.StartSandboxResponse{Pid: 77, CreatedAt: timestamppb.Now()}, nil
}

func (f *fakeSandbox) Platform(context.Context, *api.PlatformRequest) (*api.PlatformResponse, error) {
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: "vm64"}}, nil
}

func (f *fakeSandbox) StopSandbox(_ context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != "ended" {
		f.state = "ended"
		close(f.ended)
	}
	return &api.StopSandboxResponse{}, nil
}

func (f *fakeSandbox) WaitSandbox(ctx context.Context, _ *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	select {
	case <-f.ended:
		return &api.WaitSandboxResponse{ExitStatus: 3, ExitedAt: timestamppb.Now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeSandbox) SandboxStatus(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == "" {
		return nil, status.Errorf(codes.NotFound, "no sandbox")
	}
	return &api.SandboxStatusResponse{SandboxID: r.SandboxID, Pid: 77, State: f.state, Info: map[string]string{"shim": "fake"}}, nil
}

func (f *fakeSandbox) ShutdownSandbox(context.Context, *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	if err := misbehave(f.how, "shutdown"); err != nil {
		return nil, err
	}
	if f.how["shutdown"] != "stay" {
		time.AfterFunc(time.Millisecond, func() { os.Exit(0) })
	}
	return &api.ShutdownSandboxResponse{}, nil
}

func (f *fakeSandbox) SandboxMetrics(context.Context, *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{ID: "m"}}, nil
}

func fakeSandboxRecord(t *testing.T, annotations ...string) object.Sandbox {
	c := fake("pod", foreignShim, annotations...)
	return object.Sandbox{ID: c.ID, Runtime: object.Runtime{Name: fakeBinary(t, foreignShim)}, Spec: c.Spec}
}

func topics(events []object.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Topic)
	}
	return out
}

func TestSandbox(t *testing.T) {
	for _, protocol := range []string{"ttrpc", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			how := []string{"sandbox", "yes"}
			if protocol == "grpc" {
				how = append(how, "grpc", "yes")
			}
			testSandbox(t, fakeSandboxRecord(t, how...))
		})
	}
}

func testSandbox(t *testing.T, record object.Sandbox) {
	m, seen := newManager(t)
	ctx := within(t, 20*time.Second)
	s := m.Sandboxes()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	try(s.Create(ctx, "ns", record, sandbox.CreateOptions{NetNS: "/net"}))
	if err := s.Create(ctx, "ns", record, sandbox.CreateOptions{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second of the name: %v", err)
	}
	if st, err := s.Status(ctx, "ns", "pod", true); err != nil || st.State != "created /net" || st.Info["shim"] != "fake" {
		t.Errorf("status: %+v, %v", st, err)
	}
	inst, err := s.Start(ctx, "ns", "pod")
	if err != nil || inst.PID != 77 || inst.Version != 3 || inst.Address == "" {
		t.Fatalf("start: %+v, %v", inst, err)
	}
	if p, err := s.Platform(ctx, "ns", "pod"); err != nil || p.Architecture != "vm64" {
		t.Errorf("platform: %+v, %v", p, err)
	}
	if x, err := s.Metrics(ctx, "ns", "pod"); err != nil || x.ID != "m" {
		t.Errorf("metrics: %+v, %v", x, err)
	}
	if err := s.Update(ctx, "ns", "pod", record, "labels"); !errdefs.IsNotImplemented(err) {
		t.Errorf("update of a shim that has none: %v", err)
	}
	// Its containers are in the same shim.
	c := fake("c", record.Runtime.Name)
	c.SandboxID = "pod"
	if _, err := m.Create(ctx, "ns", c, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	same := m.tasks[key{"ns", "c"}].shim == m.sandboxes[key{"ns", "pod"}].shim
	m.mu.Unlock()
	if !same {
		t.Error("the container has a shim of its own")
	}
	if list, err := m.List(ctx, "ns"); err != nil || len(list) != 1 {
		t.Errorf("tasks: %v, %v", list, err)
	}

	m, seen2 := m.reopen(t)
	s = m.Sandboxes()
	try(m.Recover(ctx, []string{"ns"}))
	if st, err := s.Status(ctx, "ns", "pod", false); err != nil || st.State != "ready" || st.PID != 77 {
		t.Errorf("status after a restart: %+v, %v", st, err)
	}
	if _, err := m.Delete(ctx, "ns", "c", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Status(ctx, "ns", "pod", false); err != nil {
		t.Errorf("the sandbox went with its container: %v", err)
	}
	try(s.Stop(ctx, "ns", "pod", 0))
	if e, err := s.Wait(ctx, "ns", "pod"); err != nil || e.Status != 3 {
		t.Errorf("wait: %+v, %v", e, err)
	}
	try(s.Shutdown(ctx, "ns", "pod"))
	if err := s.Shutdown(ctx, "ns", "pod"); !errdefs.IsNotFound(err) {
		t.Errorf("a second shutdown: %v", err)
	}
	if _, err := s.Wait(ctx, "ns", "pod"); !errdefs.IsNotFound(err) {
		t.Errorf("wait after the shutdown: %v", err)
	}
	try(s.Stop(ctx, "ns", "pod", 0))
	m.quiet(t)
	m.wantNoShims(t)
	all := append(topics(seen()), topics(seen2())...)
	want := []string{"/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"}
	if got := slices.DeleteFunc(all, func(s string) bool { return !slices.Contains(want, s) }); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// Failures leave nothing, neither shims nor bundles.
func TestSandboxFailures(t *testing.T) {
	for name, how := range map[string][]string{
		"no sandbox API": nil,
		"create fails":   {"sandbox", "yes", "create", "fail"},
		"create dies":    {"sandbox", "yes", "create", "die"},
		"start fails":    {"sandbox", "yes", "run", "fail"},
		"start dies":     {"sandbox", "yes", "run", "die"},
		"stays":          {"sandbox", "yes", "run", "fail", "shutdown", "stay"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := newManager(t)
			ctx := within(t, 20*time.Second)
			s := m.Sandboxes()
			err := s.Create(ctx, "ns", fakeSandboxRecord(t, how...), sandbox.CreateOptions{})
			if err == nil {
				_, err = s.Start(ctx, "ns", "pod")
			}
			if err == nil {
				t.Fatal("no failure")
			}
			if name == "no sandbox API" && !errdefs.IsNotImplemented(err) {
				t.Errorf("%v, want NotImplemented", err)
			}
			s.m.Close() // waits for what goes on behind
			m.wantNoShims(t)
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.sandboxes) > 0 || len(m.shims) > 0 {
				t.Errorf("%d sandboxes and %d shims are left", len(m.sandboxes), len(m.shims))
			}
			if left, _ := os.ReadDir(m.opts.State + "/" + sandboxesDir + "/ns"); len(left) > 0 {
				t.Errorf("%s is left", left[0].Name())
			}
		})
	}
}

// A sandbox whose shim dies has ended.
func TestSandboxDeath(t *testing.T) {
	m, seen := newManager(t)
	ctx := within(t, 20*time.Second)
	s := m.Sandboxes()
	if err := s.Create(ctx, "ns", fakeSandboxRecord(t, "sandbox", "yes"), sandbox.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx, "ns", "pod"); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := s.Wait(ctx, "ns", "pod")
		waited <- err
	}()
	for _, pid := range procfs.Workers(m.bundleOf(key{"ns", "pod"}, true).path) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := <-waited; err != nil {
		t.Errorf("wait: %v", err)
	}
	if st, err := s.Status(ctx, "ns", "pod", false); err != nil || st.ExitedAt.IsZero() {
		t.Errorf("status: %+v, %v", st, err)
	}
	m.quiet(t)
	if got := topics(seen()); !slices.Contains(got, "/sandboxes/exit") || slices.Contains(got, "/tasks/exit") {
		t.Errorf("events %v", got)
	}
}
