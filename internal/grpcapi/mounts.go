package grpcapi

import (
	"context"
	"fmt"

	"berth/internal/mount"
	"berth/internal/mount/activation"
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

type mounts struct {
	api.UnimplementedMountsServer
	table *activation.Table
}

func (s *mounts) Activate(ctx context.Context, req *api.ActivateRequest) (*api.ActivateResponse, error) {
	scope := ScopeOf(ctx)
	info, err := s.table.Activate(ctx, scope.Namespace, req.Name, wire.MountsFromProto(req.Mounts), activation.Options{
		ActivateOptions: mount.ActivateOptions{Temporary: req.Temporary},
		Labels:          req.Labels,
		Lease:           scope.Lease,
	})
	if err != nil {
		return nil, err
	}
	return &api.ActivateResponse{Info: activationToProto(info)}, nil
}

func (s *mounts) Deactivate(ctx context.Context, req *api.DeactivateRequest) (*emptypb.Empty, error) {
	return empty(s.table.Deactivate(ctx, ScopeOf(ctx).Namespace, req.Name))
}

func (s *mounts) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	info, err := s.table.Info(ctx, ScopeOf(ctx).Namespace, req.Name)
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: activationToProto(info)}, nil
}

// Update is not implemented, as in containerd: nothing of an activation can change.
func (s *mounts) Update(context.Context, *api.UpdateRequest) (*api.UpdateResponse, error) {
	return nil, fmt.Errorf("an activation cannot be changed: %w", errdefs.ErrNotImplemented)
}

// List ignores the request's filters, as containerd does.
func (s *mounts) List(_ *api.ListRequest, stream api.Mounts_ListServer) error {
	all, err := s.table.List(stream.Context(), ScopeOf(stream.Context()).Namespace)
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := stream.Send(&api.ListMessage{Info: activationToProto(info)}); err != nil {
			return err
		}
	}
	return nil
}

func activationToProto(i activation.Info) *types.ActivationInfo {
	m := &types.ActivationInfo{Name: i.Name, System: wire.MountsToProto(i.System), Labels: i.Labels}
	for _, a := range i.Active {
		m.Active = append(m.Active, &types.ActiveMount{
			Mount:      wire.MountsToProto([]object.Mount{a.Mount})[0],
			MountedAt:  wire.TimeToProto(a.MountedAt),
			MountPoint: a.MountPoint,
			Data:       a.Data,
		})
	}
	return m
}
