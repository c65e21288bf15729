package grpcapi

import (
	"context"

	"berth/internal/meta"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

type images struct {
	api.UnimplementedImagesServer
	db *meta.DB
}

func (s *images) store(ctx context.Context) meta.Images {
	scope := ScopeOf(ctx)
	return s.db.Scope(scope.Namespace, scope.Lease).Images()
}

func (s *images) Get(ctx context.Context, req *api.GetImageRequest) (*api.GetImageResponse, error) {
	img, err := s.store(ctx).Get(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return &api.GetImageResponse{Image: records.ImageToProto(img)}, nil
}

func (s *images) List(ctx context.Context, req *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	list, err := s.store(ctx).List(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	return &api.ListImagesResponse{Images: records.ImagesToProto(list)}, nil
}

func (s *images) Create(ctx context.Context, req *api.CreateImageRequest) (*api.CreateImageResponse, error) {
	if req.Image.GetName() == "" {
		return nil, required("Image.Name")
	}
	img, err := s.store(ctx).Create(ctx, records.ImageFromProto(req.Image))
	if err != nil {
		return nil, err
	}
	return &api.CreateImageResponse{Image: records.ImageToProto(img)}, nil
}

func (s *images) Update(ctx context.Context, req *api.UpdateImageRequest) (*api.UpdateImageResponse, error) {
	if req.Image.GetName() == "" {
		return nil, required("Image.Name")
	}
	img, err := s.store(ctx).Update(ctx, records.ImageFromProto(req.Image), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateImageResponse{Image: records.ImageToProto(img)}, nil
}

func (s *images) Delete(ctx context.Context, req *api.DeleteImageRequest) (*emptypb.Empty, error) {
	return empty(s.store(ctx).Delete(ctx, req.Name, meta.ImageDelete{
		Sync:   req.Sync,
		Target: req.Target.GetDigest(),
	}))
}
