package grpcapi

import (
	"context"

	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

type leases struct {
	api.UnimplementedLeasesServer
	db *meta.DB
}

// store does not pass the call's lease on: a lease is not held by a lease.
func (s *leases) store(ctx context.Context) meta.Leases {
	return s.db.Scope(ScopeOf(ctx).Namespace, "").Leases()
}

func (s *leases) Create(ctx context.Context, req *api.CreateRequest) (*api.CreateResponse, error) {
	l, err := s.store(ctx).Create(ctx, object.Lease{ID: req.ID, Labels: req.Labels})
	if err != nil {
		return nil, err
	}
	return &api.CreateResponse{Lease: records.LeaseToProto(l)}, nil
}

func (s *leases) Delete(ctx context.Context, req *api.DeleteRequest) (*emptypb.Empty, error) {
	return empty(s.store(ctx).Delete(ctx, req.ID, req.Sync))
}

func (s *leases) List(ctx context.Context, req *api.ListRequest) (*api.ListResponse, error) {
	list, err := s.store(ctx).List(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	return &api.ListResponse{Leases: records.LeasesToProto(list)}, nil
}

func (s *leases) AddResource(ctx context.Context, req *api.AddResourceRequest) (*emptypb.Empty, error) {
	return empty(s.store(ctx).AddResource(ctx, req.ID, records.ResourceFromProto(req.Resource)))
}

func (s *leases) DeleteResource(ctx context.Context, req *api.DeleteResourceRequest) (*emptypb.Empty, error) {
	return empty(s.store(ctx).DeleteResource(ctx, req.ID, records.ResourceFromProto(req.Resource)))
}

func (s *leases) ListResources(ctx context.Context, req *api.ListResourcesRequest) (*api.ListResourcesResponse, error) {
	list, err := s.store(ctx).ListResources(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &api.ListResourcesResponse{Resources: records.ResourcesToProto(list)}, nil
}
