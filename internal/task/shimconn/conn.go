// Package shimconn is how a shim is reached: the forms in which shims tell where
// they listen (bootstrap.go), addresses and sockets (socket.go), and one
// connection with the task API, by ttrpc or gRPC (this file).
//
// It holds no state but that of a connection, and makes no decision about the
// shim: package task does.
package shimconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"berth/internal/trace"
	"berth/internal/wire"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Conn is one connection to a shim, by either protocol. The messages of task
// API versions 2 and 3 are the same to the byte: only the service's name
// differs, so that those of version 3 serve for both.
type Conn struct {
	ttrpc *ttrpc.Client
	grpc  *grpc.ClientConn
	lost  chan struct{}
	once  sync.Once
}

// Lost makes a connection that has ended: a stand-in for one that could not be
// made.
func Lost() *Conn {
	c := newConn()
	c.markLost()
	return c
}

func newConn() *Conn { return &Conn{lost: make(chan struct{})} }

// Connect dials the shim. The caller closes the connection.
func Connect(ctx context.Context, protocol, address string) (*Conn, error) {
	if protocol == "grpc" && strings.HasPrefix(address, "/") {
		// Compat: shims tell the bare path where gRPC is spoken; without a scheme
		// an address is an abstract socket elsewhere.
		address = "unix://" + address
	}
	raw, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to shim at %s: %w", address, err)
	}
	c := newConn()
	if protocol == "ttrpc" {
		c.ttrpc = ttrpc.NewClient(stallGuard{raw}, ttrpc.WithOnClose(c.markLost))
		return c, nil
	}
	// gRPC would dial again by itself; here a connection is this one only, so
	// that its end is seen.
	first := make(chan net.Conn, 1)
	first <- closeHook{raw, c.markLost}
	c.grpc, err = grpc.NewClient("passthrough:///shim",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case conn := <-first:
				return conn, nil
			default:
				return nil, fmt.Errorf("the connection to the shim has ended: %w", errdefs.ErrUnavailable)
			}
		}))
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect to shim at %s: %w", address, err)
	}
	c.grpc.Connect()
	return c, nil
}

// Done is closed when the connection has ended for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.lost }

func (c *Conn) markLost() { c.once.Do(func() { close(c.lost) }) }

// IsLost tells whether the connection has ended.
func (c *Conn) IsLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

// Close ends the connection; calls under way get ErrLost.
func (c *Conn) Close() {
	if c.ttrpc != nil {
		c.ttrpc.Close()
		return
	}
	if c.grpc != nil {
		c.grpc.Close()
	}
	c.markLost()
}

type closeHook struct {
	net.Conn
	hook func()
}

func (c closeHook) Close() error {
	err := c.Conn.Close()
	c.hook()
	return err
}

// ErrLost says that the connection ended before the answer came; whether the
// call was carried out is not known.
var ErrLost = fmt.Errorf("the connection to the shim was lost: %w", errdefs.ErrUnavailable)

// Call makes one call of the task API. Errors of the shim keep their errdefs kind; ErrLost when
// the connection has ended; the context's error when that has.
func (c *Conn) Call(ctx context.Context, version int32, namespace, method string, req, resp proto.Message) error {
	service := "containerd.task.v3.Task"
	if version == 2 {
		service = "containerd.task.v2.Task"
	}
	return c.Invoke(ctx, service, namespace, method, req, resp)
}

// Invoke is Call for a service that is named in full.
func (c *Conn) Invoke(ctx context.Context, service, namespace, method string, req, resp proto.Message) error {
	if c.IsLost() {
		return ErrLost
	}
	var err error
	if c.ttrpc != nil {
		md := ttrpc.MD{"containerd-namespace-ttrpc": {namespace}}
		if span := trace.FromContext(ctx); span != nil {
			md.Set("traceparent", span.Header()) // for shims that trace
		}
		ctx := ttrpc.WithMetadata(ctx, md)
		err = c.ttrpc.Call(ctx, service, method, req, resp)
	} else {
		ctx := metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
		err = c.grpc.Invoke(ctx, "/"+service+"/"+method, req, resp)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ttrpc.ErrClosed), c.IsLost():
		return ErrLost
	}
	return wire.FromStatus(err)
}
