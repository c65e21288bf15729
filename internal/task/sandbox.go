package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/internal/events"
	"berth/internal/object"
	"berth/internal/sandbox"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
)

// sandboxAPI is the service by which a shim says that it is a sandbox.
const sandboxAPI = "containerd.runtime.sandbox.v1.Sandbox"

// Sandboxes is the sandbox.Controller over shims: a sandbox is a shim with the
// sandbox API, and a bundle in which it is found by the next daemon. It ends with
// its shim. The tasks of containers with its ID as SandboxID are given to that shim.
type Sandboxes struct{ m *Manager }

var _ sandbox.Controller = Sandboxes{}

// Sandboxes is the controller of this manager's sandboxes.
func (m *Manager) Sandboxes() Sandboxes { return Sandboxes{m} }

// call makes a call of the sandbox API.
func (s Sandboxes) call(ctx context.Context, namespace, id, method string, req, resp proto.Message) error {
	t, err := s.m.find(ctx, key{namespace, id}, true)
	if err != nil {
		return err
	}
	return t.callSandbox(ctx, method, req, resp)
}

func (t *task) callSandbox(ctx context.Context, method string, req, resp proto.Message) error {
	if t.shim == nil {
		return fmt.Errorf("the shim of sandbox %q has died: %w", t.id, errdefs.ErrNotFound)
	}
	return t.shim.try(ctx, t.key, method, func(c *link) error {
		return c.Invoke(ctx, sandboxAPI, t.namespace, method, req, resp)
	})
}

func (s Sandboxes) Create(ctx context.Context, namespace string, sb object.Sandbox, opts sandbox.CreateOptions) error {
	if err := errors.Join(identifier("namespace", namespace), identifier("sandbox ID", sb.ID)); err != nil {
		return err
	}
	// A plan as for a container whose shim has the name of the sandbox.
	p, err := s.m.plan(object.Container{ID: sb.ID, Runtime: sb.Runtime, Spec: sb.Spec}, CreateOptions{})
	if err != nil {
		return fmt.Errorf("create sandbox %q: %w", sb.ID, err)
	}
	t, err := s.m.reserve(ctx, key{namespace, sb.ID}, true)
	if err != nil {
		return err
	}
	sh, err := s.create(ctx, t, p, opts)
	if err != nil {
		s.m.forget(t, object.Exit{})
		return fmt.Errorf("create sandbox %q: %w", sb.ID, err)
	}
	s.m.settle(t, sh, 0)
	s.m.opts.Events.Publish(ctx, namespace, events.SandboxCreate(sb.ID))
	return nil
}

func (s Sandboxes) create(ctx context.Context, t *task, p plan, opts sandbox.CreateOptions) (*shim, error) {
	if err := t.bundle.create(p.spec, p.rootGID); err != nil {
		return nil, err
	}
	sh, err := s.m.provide(ctx, t, p)
	if err != nil {
		s.m.discard(t)
		return nil, err
	}
	t.shim = sh
	err = t.callSandbox(ctx, "CreateSandbox", &api.CreateSandboxRequest{
		SandboxID:   t.id,
		BundlePath:  t.bundle.path,
		Rootfs:      wire.MountsToProto(opts.Rootfs),
		Options:     wire.AnyToProto(opts.Options),
		NetnsPath:   opts.NetNS,
		Annotations: opts.Annotations,
	}, &api.CreateSandboxResponse{})
	if err != nil {
		s.undo(t)
		return nil, err
	}
	return sh, nil
}

// undo takes back what a failed create or start has left. It is bounded and
// independent of the caller.
func (s Sandboxes) undo(t *task) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.m.life), cleanupTimeout)
	defer cancel()
	call, cancelCall := context.WithTimeout(ctx, loadTimeout)
	err := t.callSandbox(call, "ShutdownSandbox", &api.ShutdownSandboxRequest{SandboxID: t.id}, &api.ShutdownSandboxResponse{})
	cancelCall()
	s.release(ctx, t, err)
	s.m.discard(t)
}

// release takes the sandbox from its shim, which must end if nothing else is in it.
func (s Sandboxes) release(ctx context.Context, t *task, refused error) {
	if !s.m.detach(t, t.shim) {
		return
	}
	if refused != nil && s.m.shutdown(ctx, t.shim, t.key) != nil {
		t.shim.kill(t.bundle)
	}
	for range 2 {
		select {
		case <-t.shim.dead:
			return
		case <-time.After(shutdownTimeout):
			t.shim.kill(t.bundle)
		}
	}
	s.m.log.Warn("shim of a sandbox does not end", "namespace", t.namespace, "id", t.id)
}

func (s Sandboxes) Start(ctx context.Context, namespace, id string) (sandbox.Instance, error) {
	t, err := s.m.find(ctx, key{namespace, id}, true)
	if err != nil {
		return sandbox.Instance{}, err
	}
	var resp api.StartSandboxResponse
	if err := t.callSandbox(ctx, "StartSandbox", &api.StartSandboxRequest{SandboxID: id}, &resp); err != nil {
		if s.claimEnd(t) {
			s.undo(t)
			s.m.forget(t, object.Exit{})
		}
		return sandbox.Instance{}, fmt.Errorf("start sandbox %q: %w", id, err)
	}
	s.m.mu.Lock()
	t.pid = resp.GetPid()
	s.m.mu.Unlock()
	s.m.opts.Events.Publish(ctx, namespace, events.SandboxStart(id))
	s.m.watchSandbox(t)
	return sandbox.Instance{
		ID:        id,
		PID:       resp.GetPid(),
		CreatedAt: wire.TimeFromProto(resp.GetCreatedAt()),
		Address:   t.shim.protocol + "+" + t.shim.address,
		Version:   uint32(t.shim.version.Load()),
		Spec:      wire.AnyFromProto(resp.GetSpec()),
	}, nil
}

// claimEnd makes the caller the one who takes the sandbox away.
func (s Sandboxes) claimEnd(t *task) bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if t.phase != alive {
		return false
	}
	t.phase = ending
	return true
}

// watchSandbox publishes the end of a sandbox while its shim lives on.
//
// Differs from containerd: the event comes once, whether anybody waits or not; there
// each call of Wait publishes one.
func (m *Manager) watchSandbox(t *task) {
	m.background.Go(func() {
		var resp api.WaitSandboxResponse
		err := t.callSandbox(m.life, "WaitSandbox", &api.WaitSandboxRequest{SandboxID: t.id}, &resp)
		if err == nil {
			m.opts.Events.Publish(m.life, t.namespace, events.SandboxExit(t.id, object.Exit{
				Status: resp.GetExitStatus(), At: wire.TimeFromProto(resp.GetExitedAt()),
			}))
		}
	})
}

func (s Sandboxes) Platform(ctx context.Context, namespace, id string) (ispec.Platform, error) {
	var resp api.PlatformResponse
	if err := s.call(ctx, namespace, id, "Platform", &api.PlatformRequest{SandboxID: id}, &resp); err != nil {
		return ispec.Platform{}, err
	}
	return wire.PlatformFromProto(resp.GetPlatform()), nil
}

func (s Sandboxes) Stop(ctx context.Context, namespace, id string, timeout time.Duration) error {
	req := &api.StopSandboxRequest{SandboxID: id, TimeoutSecs: uint32(timeout / time.Second)}
	err := s.call(ctx, namespace, id, "StopSandbox", req, &api.StopSandboxResponse{})
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}

func (s Sandboxes) Wait(ctx context.Context, namespace, id string) (object.Exit, error) {
	t, err := s.m.find(ctx, key{namespace, id}, true)
	if err != nil {
		return object.Exit{}, err
	}
	var resp api.WaitSandboxResponse
	err = t.callSandbox(ctx, "WaitSandbox", &api.WaitSandboxRequest{SandboxID: id}, &resp)
	if err == nil {
		return object.Exit{Status: resp.GetExitStatus(), At: wire.TimeFromProto(resp.GetExitedAt())}, nil
	}
	if t.shim != nil && !t.shim.isDead() {
		return object.Exit{}, err
	}
	return t.awaitEnd(ctx) // the sandbox has ended with its shim
}

func (s Sandboxes) Status(ctx context.Context, namespace, id string, verbose bool) (sandbox.Status, error) {
	t, err := s.m.find(ctx, key{namespace, id}, true)
	if errdefs.IsNotFound(err) {
		return sandbox.Status{ID: id, ExitedAt: time.Now()}, nil
	}
	if err != nil {
		return sandbox.Status{}, err
	}
	var resp api.SandboxStatusResponse
	if err := t.callSandbox(ctx, "SandboxStatus", &api.SandboxStatusRequest{SandboxID: id, Verbose: verbose}, &resp); err != nil {
		return sandbox.Status{}, fmt.Errorf("status of sandbox %q: %w", id, err)
	}
	return sandbox.Status{
		ID:        resp.GetSandboxID(),
		PID:       resp.GetPid(),
		State:     resp.GetState(),
		Info:      resp.GetInfo(),
		CreatedAt: wire.TimeFromProto(resp.GetCreatedAt()),
		ExitedAt:  wire.TimeFromProto(resp.GetExitedAt()),
		Extra:     wire.AnyFromProto(resp.GetExtra()),
		Address:   t.shim.protocol + "+" + t.shim.address,
		Version:   uint32(t.shim.version.Load()),
	}, nil
}

func (s Sandboxes) Shutdown(ctx context.Context, namespace, id string) error {
	t, err := s.m.find(ctx, key{namespace, id}, true)
	if err != nil {
		return err
	}
	if t.shim == nil || t.shim.isDead() {
		_, err := t.awaitEnd(ctx)
		return err
	}
	if err := t.callSandbox(ctx, "ShutdownSandbox", &api.ShutdownSandboxRequest{SandboxID: id}, &api.ShutdownSandboxResponse{}); err != nil {
		if !t.shim.isDead() {
			return fmt.Errorf("shut down sandbox %q: %w", id, err)
		}
	}
	if !s.claimEnd(t) { // its shim has ended already, and is being buried
		_, err := t.awaitEnd(ctx)
		return err
	}
	s.release(context.WithoutCancel(ctx), t, nil)
	s.m.discard(t)
	s.m.forget(t, object.Exit{At: time.Now()})
	return nil
}

func (s Sandboxes) Metrics(ctx context.Context, namespace, id string) (sandbox.Metric, error) {
	var resp api.SandboxMetricsResponse
	if err := s.call(ctx, namespace, id, "SandboxMetrics", &api.SandboxMetricsRequest{SandboxID: id}, &resp); err != nil {
		return sandbox.Metric{}, err
	}
	m := resp.GetMetrics()
	return sandbox.Metric{At: wire.TimeFromProto(m.GetTimestamp()), ID: m.GetID(), Data: wire.AnyFromProto(m.GetData())}, nil
}

func (s Sandboxes) Update(ctx context.Context, namespace, id string, sb object.Sandbox, fields ...string) error {
	req := &api.UpdateSandboxRequest{SandboxID: id, Fields: fields, Sandbox: records.SandboxToProto(sb)}
	return s.call(ctx, namespace, id, "UpdateSandbox", req, &api.UpdateSandboxResponse{})
}

// inspectSandbox settles a sandbox whose shim was adopted. One that says that it
// has no such sandbox is what a crash in the middle of Create has left.
func (m *Manager) inspectSandbox(ctx context.Context, t *task, s *shim) {
	var resp api.SandboxStatusResponse
	err := t.callSandbox(ctx, "SandboxStatus", &api.SandboxStatusRequest{SandboxID: t.id}, &resp)
	switch {
	case s.isDead():
		m.bury(t)
	case errdefs.IsNotFound(err), errdefs.IsNotImplemented(err):
		Sandboxes{m}.undo(t)
		m.forget(t, object.Exit{})
	default:
		if err != nil {
			m.log.Warn("sandbox does not answer, it is kept", "namespace", t.namespace, "id", t.id, "error", err)
		}
		m.settle(t, s, resp.GetPid())
		m.watchSandbox(t)
	}
}

// endSandbox reports the end of a sandbox whose shim has died and whose bundle is gone.
func (m *Manager) endSandbox(ctx context.Context, t *task, exit object.Exit) {
	m.opts.Events.Publish(ctx, t.namespace, events.SandboxExit(t.id, exit))
	m.forget(t, exit)
}
