package remote

import (
	"context"
	"time"

	"berth/internal/object"
	"berth/internal/sandbox"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// Sandboxes is a sandbox.Controller behind a connection. The task API of a
// sandbox is not behind it: Instance.Address tells where that is.
type Sandboxes struct {
	conn grpc.ClientConnInterface
	name string
}

// NewSandboxes makes a controller of a connection; name is what the server
// calls it. Its methods give the connection their namespace.
func NewSandboxes(conn grpc.ClientConnInterface, name string) *Sandboxes {
	return &Sandboxes{conn, name}
}

func (s *Sandboxes) in(namespace string) api.ControllerClient {
	return api.NewControllerClient(Scope(s.conn, namespace, ""))
}

func (s *Sandboxes) Create(ctx context.Context, namespace string, sb object.Sandbox, opts sandbox.CreateOptions) error {
	_, err := s.in(namespace).Create(ctx, &api.ControllerCreateRequest{
		SandboxID: sb.ID, Sandboxer: s.name, Sandbox: records.SandboxToProto(sb),
		Rootfs: wire.MountsToProto(opts.Rootfs), Options: wire.AnyToProto(opts.Options),
		NetnsPath: opts.NetNS, Annotations: opts.Annotations,
	})
	return wire.FromStatus(err)
}

func (s *Sandboxes) Start(ctx context.Context, namespace, id string) (sandbox.Instance, error) {
	resp, err := s.in(namespace).Start(ctx, &api.ControllerStartRequest{SandboxID: id, Sandboxer: s.name})
	if err != nil {
		return sandbox.Instance{}, wire.FromStatus(err)
	}
	return sandbox.Instance{
		ID: resp.SandboxID, PID: resp.Pid, CreatedAt: wire.TimeFromProto(resp.CreatedAt), Labels: resp.Labels,
		Address: resp.Address, Version: resp.Version, Spec: wire.AnyFromProto(resp.Spec),
	}, nil
}

func (s *Sandboxes) Platform(ctx context.Context, namespace, id string) (ispec.Platform, error) {
	resp, err := s.in(namespace).Platform(ctx, &api.ControllerPlatformRequest{SandboxID: id, Sandboxer: s.name})
	if err != nil {
		return ispec.Platform{}, wire.FromStatus(err)
	}
	return wire.PlatformFromProto(resp.Platform), nil
}

// Stop rounds the timeout up to whole seconds, which is what the API has.
func (s *Sandboxes) Stop(ctx context.Context, namespace, id string, timeout time.Duration) error {
	seconds := (timeout + time.Second - 1) / time.Second
	_, err := s.in(namespace).Stop(ctx, &api.ControllerStopRequest{SandboxID: id, Sandboxer: s.name, TimeoutSecs: uint32(seconds)})
	return wire.FromStatus(err)
}

func (s *Sandboxes) Wait(ctx context.Context, namespace, id string) (object.Exit, error) {
	resp, err := s.in(namespace).Wait(ctx, &api.ControllerWaitRequest{SandboxID: id, Sandboxer: s.name})
	if err != nil {
		return object.Exit{}, wire.FromStatus(err)
	}
	return object.Exit{Status: resp.ExitStatus, At: wire.TimeFromProto(resp.ExitedAt)}, nil
}

func (s *Sandboxes) Status(ctx context.Context, namespace, id string, verbose bool) (sandbox.Status, error) {
	resp, err := s.in(namespace).Status(ctx, &api.ControllerStatusRequest{SandboxID: id, Sandboxer: s.name, Verbose: verbose})
	if err != nil {
		return sandbox.Status{}, wire.FromStatus(err)
	}
	return sandbox.Status{
		ID: resp.SandboxID, PID: resp.Pid, State: resp.State, Info: resp.Info,
		CreatedAt: wire.TimeFromProto(resp.CreatedAt), ExitedAt: wire.TimeFromProto(resp.ExitedAt),
		Extra: wire.AnyFromProto(resp.Extra), Address: resp.Address, Version: resp.Version,
	}, nil
}

func (s *Sandboxes) Shutdown(ctx context.Context, namespace, id string) error {
	_, err := s.in(namespace).Shutdown(ctx, &api.ControllerShutdownRequest{SandboxID: id, Sandboxer: s.name})
	return wire.FromStatus(err)
}

func (s *Sandboxes) Metrics(ctx context.Context, namespace, id string) (sandbox.Metric, error) {
	resp, err := s.in(namespace).Metrics(ctx, &api.ControllerMetricsRequest{SandboxID: id, Sandboxer: s.name})
	if err != nil {
		return sandbox.Metric{}, wire.FromStatus(err)
	}
	m := resp.GetMetrics()
	return sandbox.Metric{At: wire.TimeFromProto(m.GetTimestamp()), ID: m.GetID(), Data: wire.AnyFromProto(m.GetData())}, nil
}

func (s *Sandboxes) Update(ctx context.Context, namespace, id string, sb object.Sandbox, fields ...string) error {
	_, err := s.in(namespace).Update(ctx, &api.ControllerUpdateRequest{
		SandboxID: id, Sandboxer: s.name, Sandbox: records.SandboxToProto(sb), Fields: fields,
	})
	return wire.FromStatus(err)
}
