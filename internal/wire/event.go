package wire

import (
	"berth/internal/object"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"
)

func EventToProto(e object.Event) *types.Envelope {
	return &types.Envelope{
		Timestamp: TimeToProto(e.Timestamp),
		Namespace: e.Namespace,
		Topic:     e.Topic,
		Event:     &anypb.Any{TypeUrl: e.Body.TypeURL, Value: e.Body.Value},
	}
}

// EventFromProto of nil is the zero event, which no exchange accepts.
func EventFromProto(e *types.Envelope) object.Event {
	return object.Event{
		Timestamp: TimeFromProto(e.GetTimestamp()),
		Namespace: e.GetNamespace(),
		Topic:     e.GetTopic(),
		Body:      object.Any{TypeURL: e.GetEvent().GetTypeUrl(), Value: e.GetEvent().GetValue()},
	}
}
