package grpcapi

import (
	"context"
	"fmt"
	"sync/atomic"

	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

type containers struct {
	api.UnimplementedContainersServer
	db *meta.DB
	// size of the last list of everything: the next is likely to be as long.
	size atomic.Int64
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

// listedContainers is the field of ListContainersResponse, and the container that
// of ListContainerMessage.
const listedContainers = 1

// List passes the records on as they are stored: the response carries their
// encoding as fields that it need not know, which is what it looks like on the
// wire when it knows them.
func (s *containers) List(ctx context.Context, req *api.ListContainersRequest) (*api.ListContainersResponse, error) {
	encoded := make([]byte, 0, s.size.Load())
	if err := s.store(ctx).Each(ctx, func(c *object.StoredContainer) {
		encoded = records.AppendContainer(encoded, listedContainers, c)
	}, req.Filters...); err != nil {
		return nil, err
	}
	if len(req.Filters) == 0 {
		s.size.Store(int64(len(encoded)) + 4096)
	}
	resp := &api.ListContainersResponse{}
	resp.ProtoReflect().SetUnknown(encoded)
	return resp, nil
}

// ListStream sends a consistent list, however slowly the client takes it.
func (s *containers) ListStream(req *api.ListContainersRequest, stream api.Containers_ListStreamServer) error {
	var encoded []byte
	var ends []int
	if err := s.store(stream.Context()).Each(stream.Context(), func(c *object.StoredContainer) {
		encoded = records.AppendContainer(encoded, listedContainers, c)
		ends = append(ends, len(encoded))
	}, req.Filters...); err != nil {
		return err
	}
	start := 0
	for _, end := range ends {
		m := &api.ListContainerMessage{}
		m.ProtoReflect().SetUnknown(encoded[start:end])
		if err := stream.Send(m); err != nil {
			return err
		}
		start = end
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
