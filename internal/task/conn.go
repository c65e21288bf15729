package task

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"berth/internal/wire"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// conn is one connection to a shim, by either protocol. The messages of task
// API versions 2 and 3 are the same to the byte: only the service's name
// differs, so that those of version 3 serve for both.
type conn struct {
	ttrpc *ttrpc.Client
	grpc  *grpc.ClientConn
	// lost is closed when the connection has ended for whatever reason.
	lost chan struct{}
	once sync.Once
	// resolved is closed when it is known after the loss whether the shim lives.
	resolved chan struct{}
}

// newConn is a connection that is yet to be made.
func newConn() *conn {
	return &conn{lost: make(chan struct{}), resolved: make(chan struct{})}
}

// connect dials the shim. The caller closes the connection.
func connect(ctx context.Context, protocol, address string) (*conn, error) {
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

func (c *conn) markLost() { c.once.Do(func() { close(c.lost) }) }

func (c *conn) isLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

func (c *conn) close() {
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

// errLost says that the connection ended before the answer came; whether the
// call was carried out is not known.
var errLost = fmt.Errorf("the connection to the shim was lost: %w", errdefs.ErrUnavailable)

// call makes one call. Errors of the shim keep their errdefs kind; errLost when
// the connection has ended; the context's error when that has.
func (c *conn) call(ctx context.Context, version int32, namespace, method string, req, resp proto.Message) error {
	service := "containerd.task.v3.Task"
	if version == 2 {
		service = "containerd.task.v2.Task"
	}
	if c.isLost() {
		return errLost
	}
	var err error
	if c.ttrpc != nil {
		ctx := ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": {namespace}})
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
	case errors.Is(err, ttrpc.ErrClosed), c.isLost():
		return errLost
	}
	return wire.FromStatus(err)
}
