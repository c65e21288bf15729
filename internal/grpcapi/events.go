package grpcapi

import (
	"context"
	"fmt"
	"time"

	"berth/internal/events"
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/events/v1"
	ttrpcapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type eventService struct {
	api.UnimplementedEventsServer
	exchange *events.Exchange
}

func (s *eventService) Publish(ctx context.Context, req *api.PublishRequest) (*emptypb.Empty, error) {
	if req.Event == nil {
		return nil, required("event")
	}
	return empty(s.exchange.Forward(ctx, object.Event{
		Timestamp: time.Now().UTC(),
		Namespace: ScopeOf(ctx).Namespace,
		Topic:     req.Topic,
		Body:      *wire.AnyFromProto(req.Event),
	}))
}

func (s *eventService) Forward(ctx context.Context, req *api.ForwardRequest) (*emptypb.Empty, error) {
	return empty(forward(ctx, s.exchange, req.Envelope))
}

func (s *eventService) Subscribe(req *api.SubscribeRequest, stream api.Events_SubscribeServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	queue, failed := s.exchange.Subscribe(ctx, req.Filters...)
	// Headers tell the client that it misses nothing from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for queue != nil {
		select {
		case e, ok := <-queue:
			if !ok {
				queue = nil
				continue
			}
			if err := stream.Send(wire.EventToProto(e)); err != nil {
				return fmt.Errorf("send an event to its subscriber: %w", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
	if err := <-failed; err != nil && ctx.Err() == nil {
		return fmt.Errorf("subscription ended: %w", err)
	}
	return nil
}

// ttrpcEvents is the events service on the ttrpc socket, for shims.
type ttrpcEvents struct {
	exchange *events.Exchange
}

var _ ttrpcapi.TTRPCEventsService = ttrpcEvents{}

func (s ttrpcEvents) Forward(ctx context.Context, req *ttrpcapi.ForwardRequest) (*emptypb.Empty, error) {
	resp, err := empty(forward(ctx, s.exchange, req.Envelope))
	return resp, wire.ToStatus(err)
}

func forward(ctx context.Context, x *events.Exchange, envelope *types.Envelope) error {
	if envelope == nil {
		return fmt.Errorf("envelope required: %w", errdefs.ErrInvalidArgument)
	}
	if envelope.Timestamp == nil {
		// Compat: without a time it counts as of 1970.
		envelope.Timestamp = &timestamppb.Timestamp{}
	}
	return x.Forward(ctx, wire.EventFromProto(envelope))
}
