package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	"github.com/containerd/containerd/api/types"
)

func SandboxToProto(s object.Sandbox) *types.Sandbox {
	return &types.Sandbox{
		SandboxID: s.ID,
		Runtime: &types.Sandbox_Runtime{
			Name:    s.Runtime.Name,
			Options: wire.AnyToProto(s.Runtime.Options),
		},
		Spec:       wire.AnyToProto(s.Spec),
		Labels:     s.Labels,
		CreatedAt:  wire.TimeToProto(s.CreatedAt),
		UpdatedAt:  wire.TimeToProto(s.UpdatedAt),
		Extensions: AnysToProto(s.Extensions),
		Sandboxer:  s.Sandboxer,
	}
}

func SandboxesToProto(ss []object.Sandbox) []*types.Sandbox { return all(ss, SandboxToProto) }

func SandboxFromProto(s *types.Sandbox) object.Sandbox {
	return object.Sandbox{
		ID:     s.GetSandboxID(),
		Labels: s.GetLabels(),
		Runtime: object.Runtime{
			Name:    s.GetRuntime().GetName(),
			Options: wire.AnyFromProto(s.GetRuntime().GetOptions()),
		},
		Spec:       wire.AnyFromProto(s.GetSpec()),
		Sandboxer:  s.GetSandboxer(),
		Extensions: AnysFromProto(s.GetExtensions()),
		CreatedAt:  wire.TimeFromProto(s.GetCreatedAt()),
		UpdatedAt:  wire.TimeFromProto(s.GetUpdatedAt()),
	}
}
