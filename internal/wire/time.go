package wire

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// TimeToProto never returns nil: as in containerd's messages, the zero time is
// a timestamp in the year 1.
func TimeToProto(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }

// TimeFromProto of nil is the zero time.
func TimeFromProto(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
