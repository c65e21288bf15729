package grpcapi

import (
	"context"

	"berth/internal/meta"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

type namespaces struct {
	api.UnimplementedNamespacesServer
	db *meta.DB
}

func (s *namespaces) Get(ctx context.Context, req *api.GetNamespaceRequest) (*api.GetNamespaceResponse, error) {
	ns, err := s.db.Namespaces().Get(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return &api.GetNamespaceResponse{Namespace: records.NamespaceToProto(ns)}, nil
}

// List ignores the request's filter, as containerd does.
func (s *namespaces) List(ctx context.Context, _ *api.ListNamespacesRequest) (*api.ListNamespacesResponse, error) {
	list, err := s.db.Namespaces().List(ctx)
	if err != nil {
		return nil, err
	}
	return &api.ListNamespacesResponse{Namespaces: records.NamespacesToProto(list)}, nil
}

func (s *namespaces) Create(ctx context.Context, req *api.CreateNamespaceRequest) (*api.CreateNamespaceResponse, error) {
	ns := records.NamespaceFromProto(req.Namespace)
	if err := s.db.Namespaces().Create(ctx, ns); err != nil {
		return nil, err
	}
	return &api.CreateNamespaceResponse{Namespace: records.NamespaceToProto(ns)}, nil
}

// Update answers without the namespace, as containerd does.
func (s *namespaces) Update(ctx context.Context, req *api.UpdateNamespaceRequest) (*api.UpdateNamespaceResponse, error) {
	if _, err := s.db.Namespaces().Update(ctx, records.NamespaceFromProto(req.Namespace), req.UpdateMask.GetPaths()...); err != nil {
		return nil, err
	}
	return &api.UpdateNamespaceResponse{}, nil
}

func (s *namespaces) Delete(ctx context.Context, req *api.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	return empty(s.db.Namespaces().Delete(ctx, req.Name))
}
