package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/containers/v1"
)

func ContainerToProto(c object.Container) *api.Container {
	return &api.Container{
		ID:     c.ID,
		Labels: c.Labels,
		Image:  c.Image,
		Runtime: &api.Container_Runtime{
			Name:    c.Runtime.Name,
			Options: wire.AnyToProto(c.Runtime.Options),
		},
		Spec:        wire.AnyToProto(c.Spec),
		Snapshotter: c.Snapshotter,
		SnapshotKey: c.SnapshotKey,
		CreatedAt:   wire.TimeToProto(c.CreatedAt),
		UpdatedAt:   wire.TimeToProto(c.UpdatedAt),
		Extensions:  AnysToProto(c.Extensions),
		Sandbox:     c.SandboxID,
	}
}

// ContainerFromProto leaves the times zero: the store sets them.
func ContainerFromProto(c *api.Container) object.Container {
	return object.Container{
		ID:     c.GetID(),
		Labels: c.GetLabels(),
		Image:  c.GetImage(),
		Runtime: object.Runtime{
			Name:    c.GetRuntime().GetName(),
			Options: wire.AnyFromProto(c.GetRuntime().GetOptions()),
		},
		Spec:        wire.AnyFromProto(c.GetSpec()),
		Snapshotter: c.GetSnapshotter(),
		SnapshotKey: c.GetSnapshotKey(),
		SandboxID:   c.GetSandbox(),
		Extensions:  AnysFromProto(c.GetExtensions()),
	}
}
