package grpcapi

import (
	"context"
	"fmt"

	"berth/internal/meta"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

type containers struct {
	api.UnimplementedContainersServer
	db *meta.DB
}

func (s *containers) store(ctx context.Context) meta.Containers {
	scope := ScopeOf(ctx)
	return s.db.Scope(scope.Namespace, scope.Lease).Containers()
}

func (s *containers) Get(ctx context.Context, req *api.GetContainerRequest) (*api.GetContainerResponse, error) {
	c, err := s.store(ctx).Get(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &api.GetContainerResponse{Container: records.ContainerToProto(c)}, nil
}

func (s *containers) List(ctx context.Context, req *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	list, err := s.store(ctx).List(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	return &api.ListContainersResponse{Containers: records.ContainersToProto(list)}, nil
}

func (s *containers) ListStream(req *api.ListContainersRequest, stream api.Containers_ListStreamServer) error {
	list, err := s.store(stream.Context()).List(stream.Context(), req.Filters...)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := stream.Send(&api.ListContainerMessage{Container: records.ContainerToProto(c)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *containers) Create(ctx context.Context, req *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	c, err := s.store(ctx).Create(ctx, records.ContainerFromProto(req.Container))
	if err != nil {
		return nil, err
	}
	return &api.CreateContainerResponse{Container: records.ContainerToProto(c)}, nil
}

func (s *containers) Update(ctx context.Context, req *api.UpdateContainerRequest) (*api.UpdateContainerResponse, error) {
	if req.Container.GetID() == "" {
		return nil, required("Container.ID")
	}
	c, err := s.store(ctx).Update(ctx, records.ContainerFromProto(req.Container), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateContainerResponse{Container: records.ContainerToProto(c)}, nil
}

func (s *containers) Delete(ctx context.Context, req *api.DeleteContainerRequest) (*emptypb.Empty, error) {
	return empty(s.store(ctx).Delete(ctx, req.ID))
}

// empty is the result of a method that returns nothing but an error.
func empty(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// required is the error for a request that lacks a field.
func required(field string) error {
	return fmt.Errorf("%s required: %w", field, errdefs.ErrInvalidArgument)
}
