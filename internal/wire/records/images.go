package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/images/v1"
)

func ImageToProto(i object.Image) *api.Image {
	return &api.Image{
		Name:      i.Name,
		Labels:    i.Labels,
		Target:    wire.DescriptorToProto(i.Target),
		CreatedAt: wire.TimeToProto(i.CreatedAt),
		UpdatedAt: wire.TimeToProto(i.UpdatedAt),
	}
}

func ImagesToProto(is []object.Image) []*api.Image { return all(is, ImageToProto) }

func ImageFromProto(i *api.Image) object.Image {
	return object.Image{
		Name:      i.GetName(),
		Labels:    i.GetLabels(),
		Target:    wire.DescriptorFromProto(i.GetTarget()),
		CreatedAt: wire.TimeFromProto(i.GetCreatedAt()),
		UpdatedAt: wire.TimeFromProto(i.GetUpdatedAt()),
	}
}

func ImagesFromProto(is []*api.Image) []object.Image { return all(is, ImageFromProto) }
