package grpcapi

import (
	"context"

	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

type namespaces struct {
	api.UnimplementedNamespacesServer
	db *meta.DB
}

func (s *namespaces) Get(ctx context.Context, req *api.GetNamespaceRequest) (*api.GetNamespaceResponse, error) {
	ns, err := s.db.Namespaces().Get(ctx, req.Name)
	if errdefs.IsNotFound(err) {
		// Compat: a namespace comes into being with what is made in it, and clients
		// ask for the labels of one before.
		ns, err = object.Namespace{Name: req.Name}, nil
	}
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

// Update answers with the namespace as it is now.
//
// Differs from containerd: its answer is always without a namespace.
func (s *namespaces) Update(ctx context.Context, req *api.UpdateNamespaceRequest) (*api.UpdateNamespaceResponse, error) {
	ns, err := s.db.Namespaces().Update(ctx, records.NamespaceFromProto(req.Namespace), req.UpdateMask.GetPaths()...)
	if errdefs.IsNotFound(err) {
		// Compat: labelling a namespace makes it.
		err = s.db.Namespaces().Create(ctx, object.Namespace{Name: req.Namespace.GetName()})
		if err == nil || errdefs.IsAlreadyExists(err) {
			ns, err = s.db.Namespaces().Update(ctx, records.NamespaceFromProto(req.Namespace), req.UpdateMask.GetPaths()...)
		}
	}
	if err != nil {
		return nil, err
	}
	return &api.UpdateNamespaceResponse{Namespace: records.NamespaceToProto(ns)}, nil
}

func (s *namespaces) Delete(ctx context.Context, req *api.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	return empty(s.db.Namespaces().Delete(ctx, req.Name))
}
