package grpcapi

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"berth/internal/object"
	"berth/internal/sandbox"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

// sandboxControllers is the controllers of the daemon by their names; each
// request names one.
type sandboxControllers struct {
	api.UnimplementedControllerServer
	named map[string]sandbox.Controller
}

func (s *sandboxControllers) controller(name string) (sandbox.Controller, error) {
	if name == "" {
		return nil, fmt.Errorf("sandbox controller name can not be empty: %w", errdefs.ErrInvalidArgument)
	}
	if c, ok := s.named[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("sandbox controller %q: %w", name, errdefs.ErrNotFound)
}

func (s *sandboxControllers) Create(ctx context.Context, req *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	record := object.Sandbox{ID: req.SandboxID}
	if req.Sandbox != nil {
		record = records.SandboxFromProto(req.Sandbox)
	}
	err = c.Create(ctx, ScopeOf(ctx).Namespace, record, sandbox.CreateOptions{
		Rootfs:      wire.MountsFromProto(req.Rootfs),
		Options:     wire.AnyFromProto(req.Options),
		NetNS:       req.NetnsPath,
		Annotations: req.Annotations,
	})
	if err != nil {
		return nil, err
	}
	return &api.ControllerCreateResponse{SandboxID: cmp.Or(req.SandboxID, record.ID)}, nil
}

// Start answers with the address of the task API as well.
//
// Differs from containerd: its service leaves that and the spec out, so that they
// do not arrive at the client of a controller in another process.
func (s *sandboxControllers) Start(ctx context.Context, req *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	inst, err := c.Start(ctx, ScopeOf(ctx).Namespace, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return &api.ControllerStartResponse{
		SandboxID: inst.ID,
		Pid:       inst.PID,
		CreatedAt: wire.TimeToProto(inst.CreatedAt),
		Labels:    inst.Labels,
		Address:   inst.Address,
		Version:   inst.Version,
		Spec:      wire.AnyToProto(inst.Spec),
	}, nil
}

// Platform of a sandbox's containers.
//
// Differs from containerd: its service does not have the method.
func (s *sandboxControllers) Platform(ctx context.Context, req *api.ControllerPlatformRequest) (*api.ControllerPlatformResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	p, err := c.Platform(ctx, ScopeOf(ctx).Namespace, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return &api.ControllerPlatformResponse{Platform: wire.PlatformToProto(p)}, nil
}

func (s *sandboxControllers) Stop(ctx context.Context, req *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err == nil {
		err = c.Stop(ctx, ScopeOf(ctx).Namespace, req.SandboxID, time.Duration(req.TimeoutSecs)*time.Second)
	}
	if err != nil {
		return nil, err
	}
	return &api.ControllerStopResponse{}, nil
}

func (s *sandboxControllers) Wait(ctx context.Context, req *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	exit, err := c.Wait(ctx, ScopeOf(ctx).Namespace, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return &api.ControllerWaitResponse{ExitStatus: exit.Status, ExitedAt: wire.TimeToProto(exit.At)}, nil
}

func (s *sandboxControllers) Status(ctx context.Context, req *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	st, err := c.Status(ctx, ScopeOf(ctx).Namespace, req.SandboxID, req.Verbose)
	if err != nil {
		return nil, err
	}
	return &api.ControllerStatusResponse{
		SandboxID: st.ID,
		Pid:       st.PID,
		State:     st.State,
		Info:      st.Info,
		CreatedAt: wire.TimeToProto(st.CreatedAt),
		ExitedAt:  wire.TimeToProto(st.ExitedAt),
		Extra:     wire.AnyToProto(cmp.Or(st.Extra, &object.Any{})),
		Address:   st.Address,
		Version:   st.Version,
	}, nil
}

func (s *sandboxControllers) Shutdown(ctx context.Context, req *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err == nil {
		err = c.Shutdown(ctx, ScopeOf(ctx).Namespace, req.SandboxID)
	}
	if err != nil {
		return nil, err
	}
	return &api.ControllerShutdownResponse{}, nil
}

func (s *sandboxControllers) Metrics(ctx context.Context, req *api.ControllerMetricsRequest) (*api.ControllerMetricsResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	m, err := c.Metrics(ctx, ScopeOf(ctx).Namespace, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return &api.ControllerMetricsResponse{Metrics: &types.Metric{
		Timestamp: wire.TimeToProto(m.At), ID: m.ID, Data: wire.AnyToProto(m.Data),
	}}, nil
}

func (s *sandboxControllers) Update(ctx context.Context, req *api.ControllerUpdateRequest) (*api.ControllerUpdateResponse, error) {
	c, err := s.controller(req.Sandboxer)
	if err != nil {
		return nil, err
	}
	if req.Sandbox == nil {
		return nil, required("sandbox")
	}
	if err := c.Update(ctx, ScopeOf(ctx).Namespace, req.SandboxID, records.SandboxFromProto(req.Sandbox), req.Fields...); err != nil {
		return nil, err
	}
	return &api.ControllerUpdateResponse{}, nil
}
