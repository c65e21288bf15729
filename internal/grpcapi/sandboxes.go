package grpcapi

import (
	"context"

	"berth/internal/meta"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
)

// sandboxes is the store of sandbox records.
type sandboxes struct {
	api.UnimplementedStoreServer
	db *meta.DB
}

func (s *sandboxes) store(ctx context.Context) meta.Sandboxes {
	scope := ScopeOf(ctx)
	return s.db.Scope(scope.Namespace, scope.Lease).Sandboxes()
}

func (s *sandboxes) Create(ctx context.Context, req *api.StoreCreateRequest) (*api.StoreCreateResponse, error) {
	sb, err := s.store(ctx).Create(ctx, records.SandboxFromProto(req.Sandbox))
	if err != nil {
		return nil, err
	}
	return &api.StoreCreateResponse{Sandbox: records.SandboxToProto(sb)}, nil
}

func (s *sandboxes) Update(ctx context.Context, req *api.StoreUpdateRequest) (*api.StoreUpdateResponse, error) {
	sb, err := s.store(ctx).Update(ctx, records.SandboxFromProto(req.Sandbox), req.Fields...)
	if err != nil {
		return nil, err
	}
	return &api.StoreUpdateResponse{Sandbox: records.SandboxToProto(sb)}, nil
}

func (s *sandboxes) List(ctx context.Context, req *api.StoreListRequest) (*api.StoreListResponse, error) {
	list, err := s.store(ctx).List(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	return &api.StoreListResponse{List: records.SandboxesToProto(list)}, nil
}

func (s *sandboxes) Get(ctx context.Context, req *api.StoreGetRequest) (*api.StoreGetResponse, error) {
	sb, err := s.store(ctx).Get(ctx, req.SandboxID)
	if err != nil {
		return nil, err
	}
	return &api.StoreGetResponse{Sandbox: records.SandboxToProto(sb)}, nil
}

func (s *sandboxes) Delete(ctx context.Context, req *api.StoreDeleteRequest) (*api.StoreDeleteResponse, error) {
	if err := s.store(ctx).Delete(ctx, req.SandboxID); err != nil {
		return nil, err
	}
	return &api.StoreDeleteResponse{}, nil
}
