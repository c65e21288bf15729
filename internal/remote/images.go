package remote

import (
	"context"

	"berth/internal/object"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Images are the image records behind a connection; a transfer.Images.
type Images struct{ client api.ImagesClient }

// NewImages makes image records of a connection; see Scope.
func NewImages(conn grpc.ClientConnInterface) *Images {
	return &Images{api.NewImagesClient(conn)}
}

func (i *Images) Get(ctx context.Context, name string) (object.Image, error) {
	resp, err := i.client.Get(ctx, &api.GetImageRequest{Name: name})
	if err != nil {
		return object.Image{}, wire.FromStatus(err)
	}
	return records.ImageFromProto(resp.Image), nil
}

func (i *Images) List(ctx context.Context, filters ...string) ([]object.Image, error) {
	resp, err := i.client.List(ctx, &api.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, wire.FromStatus(err)
	}
	return records.ImagesFromProto(resp.Images), nil
}

func (i *Images) Create(ctx context.Context, img object.Image) (object.Image, error) {
	resp, err := i.client.Create(ctx, &api.CreateImageRequest{Image: records.ImageToProto(img)})
	if err != nil {
		return object.Image{}, wire.FromStatus(err)
	}
	return records.ImageFromProto(resp.Image), nil
}

func (i *Images) Update(ctx context.Context, img object.Image, fieldpaths ...string) (object.Image, error) {
	req := &api.UpdateImageRequest{Image: records.ImageToProto(img)}
	if len(fieldpaths) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fieldpaths}
	}
	resp, err := i.client.Update(ctx, req)
	if err != nil {
		return object.Image{}, wire.FromStatus(err)
	}
	return records.ImageFromProto(resp.Image), nil
}
