// Package wire turns protobuf messages into objects and back, once for each
// noun, and error kinds into statuses.
//
// This package holds what the shim protocol shares with the API (mounts, Any,
// descriptors, processes, errors) and links no gRPC, for the shim's sake. The
// records of the gRPC services are in package wire/records.
package wire

import (
	"berth/internal/object"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"
)

func MountToProto(m object.Mount) *types.Mount {
	return &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
}

func MountsToProto(mounts []object.Mount) []*types.Mount {
	out := make([]*types.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = MountToProto(m)
	}
	return out
}

func MountsFromProto(mounts []*types.Mount) []object.Mount {
	out := make([]object.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = object.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()}
	}
	return out
}

// AnyToProto of nil is nil.
func AnyToProto(a *object.Any) *anypb.Any {
	if a == nil {
		return nil
	}
	return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
}

// AnyFromProto of nil is nil.
func AnyFromProto(a *anypb.Any) *object.Any {
	if a == nil {
		return nil
	}
	return &object.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}
