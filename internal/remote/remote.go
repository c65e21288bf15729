// Package remote makes clients of the gRPC API into the engines' own
// interfaces: a content store, a snapshotter, a differ, image records and
// leases behind a socket. Proxy plugins are used through them, and so is a
// daemon by ctr --local.
//
// A client is made of a connection. Scope gives a connection its namespace and
// lease; the connection of a proxy plugin has interceptors that do.
//
// Errors are the errdefs kinds that the server sent. Nothing here keeps state
// between calls, but for the readers and writers of Content; there are no locks
// to order.
package remote

import (
	"context"
	"errors"
	"io"

	"berth/internal/wire"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// The names under which a call's namespace and lease travel.
const (
	namespaceKey = "containerd-namespace"
	leaseKey     = "containerd-lease"
)

// Scope returns the connection whose calls are made in a namespace and, unless
// it is empty, under a lease. It replaces what the context of a call may say of
// either.
func Scope(conn grpc.ClientConnInterface, namespace, lease string) grpc.ClientConnInterface {
	return scoped{conn, namespace, lease}
}

type scoped struct {
	grpc.ClientConnInterface
	namespace, lease string
}

func (s scoped) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return s.ClientConnInterface.Invoke(s.outgoing(ctx), method, args, reply, opts...)
}

func (s scoped) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return s.ClientConnInterface.NewStream(s.outgoing(ctx), desc, method, opts...)
}

func (s scoped) outgoing(ctx context.Context) context.Context {
	md, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		md = metadata.MD{}
	}
	md.Set(namespaceKey, s.namespace)
	md.Delete(leaseKey)
	if s.lease != "" {
		md.Set(leaseKey, s.lease)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// receive hands on the messages of a stream until its end, or until each fails.
func receive[M any](next func() (M, error), each func(M) error) error {
	for {
		msg, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.FromStatus(err)
		}
		if err := each(msg); err != nil {
			return err
		}
	}
}
