package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
)

func BlobInfoToProto(i object.BlobInfo) *api.Info {
	return &api.Info{
		Digest:    i.Digest.String(),
		Size:      i.Size,
		CreatedAt: wire.TimeToProto(i.CreatedAt),
		UpdatedAt: wire.TimeToProto(i.UpdatedAt),
		Labels:    i.Labels,
	}
}

// BlobInfoFromProto does not check the digest.
func BlobInfoFromProto(i *api.Info) object.BlobInfo {
	return object.BlobInfo{
		Digest:    digest.Digest(i.GetDigest()),
		Size:      i.GetSize(),
		CreatedAt: wire.TimeFromProto(i.GetCreatedAt()),
		UpdatedAt: wire.TimeFromProto(i.GetUpdatedAt()),
		Labels:    i.GetLabels(),
	}
}

func IngestStatusToProto(s object.IngestStatus) *api.Status {
	return &api.Status{
		StartedAt: wire.TimeToProto(s.StartedAt),
		UpdatedAt: wire.TimeToProto(s.UpdatedAt),
		Ref:       s.Ref,
		Offset:    s.Offset,
		Total:     s.Total,
		Expected:  s.Expected.String(),
	}
}

func IngestStatusesToProto(ss []object.IngestStatus) []*api.Status {
	return all(ss, IngestStatusToProto)
}

// IngestStatusFromProto does not check the digest.
func IngestStatusFromProto(s *api.Status) object.IngestStatus {
	return object.IngestStatus{
		Ref:       s.GetRef(),
		Offset:    s.GetOffset(),
		Total:     s.GetTotal(),
		Expected:  digest.Digest(s.GetExpected()),
		StartedAt: wire.TimeFromProto(s.GetStartedAt()),
		UpdatedAt: wire.TimeFromProto(s.GetUpdatedAt()),
	}
}

func IngestStatusesFromProto(ss []*api.Status) []object.IngestStatus {
	return all(ss, IngestStatusFromProto)
}
