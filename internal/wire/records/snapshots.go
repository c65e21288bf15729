package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
)

// The numbers of kinds on the wire are not those of the objects.

func snapshotKindToProto(k object.SnapshotKind) api.Kind {
	switch k {
	case object.SnapshotView:
		return api.Kind_VIEW
	case object.SnapshotActive:
		return api.Kind_ACTIVE
	case object.SnapshotCommitted:
		return api.Kind_COMMITTED
	default:
		return api.Kind_UNKNOWN
	}
}

func snapshotKindFromProto(k api.Kind) object.SnapshotKind {
	switch k {
	case api.Kind_VIEW:
		return object.SnapshotView
	case api.Kind_ACTIVE:
		return object.SnapshotActive
	case api.Kind_COMMITTED:
		return object.SnapshotCommitted
	default:
		return object.SnapshotUnknown
	}
}

func SnapshotToProto(i object.SnapshotInfo) *api.Info {
	return &api.Info{
		Name:      i.Name,
		Parent:    i.Parent,
		Kind:      snapshotKindToProto(i.Kind),
		CreatedAt: wire.TimeToProto(i.Created),
		UpdatedAt: wire.TimeToProto(i.Updated),
		Labels:    i.Labels,
	}
}

func SnapshotFromProto(i *api.Info) object.SnapshotInfo {
	return object.SnapshotInfo{
		Kind:    snapshotKindFromProto(i.GetKind()),
		Name:    i.GetName(),
		Parent:  i.GetParent(),
		Labels:  i.GetLabels(),
		Created: wire.TimeFromProto(i.GetCreatedAt()),
		Updated: wire.TimeFromProto(i.GetUpdatedAt()),
	}
}

func SnapshotUsageToProto(u object.SnapshotUsage) *api.UsageResponse {
	return &api.UsageResponse{Size: u.Size, Inodes: u.Inodes}
}

func SnapshotUsageFromProto(u *api.UsageResponse) object.SnapshotUsage {
	return object.SnapshotUsage{Size: u.GetSize(), Inodes: u.GetInodes()}
}
