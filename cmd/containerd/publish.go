package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"berth/internal/config"
	"berth/internal/wire"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// publishTimeout bounds how long a shim waits for a daemon that is away.
	publishTimeout = 10 * time.Second
	// maxEvent bounds what is read from stdin, in bytes.
	maxEvent = 16 << 20
)

const publishUsage = `containerd publish - publish an event

USAGE:
   containerd [--address SOCKET] publish --namespace NAMESPACE --topic TOPIC <EVENT

The event is a serialised google.protobuf.Any on standard input. Shims that do
not speak ttrpc publish so.

OPTIONS:
   --namespace NAMESPACE   namespace of the event
   --topic TOPIC           such as /tasks/exit
`

// publish sends an event, a serialised google.protobuf.Any on stdin, to the
// daemon: shims that do not speak ttrpc call it.
func publish(ctx context.Context, f flags, args []string, stdin io.Reader) error {
	set := newFlagSet(&f)
	namespace := set.String("namespace", "", "")
	topic := set.String("topic", "", "")
	if err := set.Parse(args); err != nil {
		return fmt.Errorf("publish: %w; it takes --namespace, --topic and the event on stdin", err)
	}
	if *topic == "" {
		return fmt.Errorf("publish: the event needs a --topic")
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxEvent+1))
	if err != nil {
		return fmt.Errorf("publish: read the event: %w", err)
	}
	if len(data) > maxEvent {
		return fmt.Errorf("publish: the event has more than %d bytes", maxEvent)
	}
	var event anypb.Any
	if err := proto.Unmarshal(data, &event); err != nil {
		return fmt.Errorf("publish: the event on stdin is no google.protobuf.Any: %w", err)
	}
	address := f.address
	if address == "" {
		address = config.DefaultAddress
	}
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", *namespace)
	_, err = eventsapi.NewEventsClient(conn).Publish(ctx, &eventsapi.PublishRequest{Topic: *topic, Event: &event}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("publish to %s: %w", address, wire.FromStatus(err))
	}
	return nil
}
