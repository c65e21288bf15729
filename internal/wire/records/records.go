// Package records turns the records of the gRPC services into objects and
// back: one file per noun, named after it.
//
// Messages come from clients and may lack any part: a conversion from a nil
// message gives the zero object, which the engines refuse by name.
package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	"google.golang.org/protobuf/types/known/anypb"
)

// AnysToProto is the reverse of AnysFromProto; an empty map is nil.
func AnysToProto(m map[string]object.Any) map[string]*anypb.Any {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]*anypb.Any, len(m))
	for k, v := range m {
		out[k] = wire.AnyToProto(&v)
	}
	return out
}

// AnysFromProto keeps entries without a value as zero values; none is nil.
func AnysFromProto(m map[string]*anypb.Any) map[string]object.Any {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]object.Any, len(m))
	for k, v := range m {
		out[k] = object.Any{TypeURL: v.GetTypeUrl(), Value: v.GetValue()}
	}
	return out
}

// all converts a list; an empty list is nil, as lists without entries are on
// the wire.
func all[From, To any](from []From, convert func(From) To) []To {
	if len(from) == 0 {
		return nil
	}
	to := make([]To, len(from))
	for i, f := range from {
		to[i] = convert(f)
	}
	return to
}
