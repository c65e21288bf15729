package grpcapi

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Shutdown takes no further calls, ends those that only wait for something to
// happen, lets the others finish until ctx ends, and then cuts off what is left.
func (s *Server) Shutdown(ctx context.Context) {
	s.stop(errStopping)
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-ctx.Done():
		s.Stop()
		<-graceful
	}
}

// errStopping is what calls get that wait for something when the daemon stops.
var errStopping = fmt.Errorf("the daemon is shutting down: %w", errdefs.ErrUnavailable)

// waits tells the methods that return when something happens from those that
// do something. (A stream ends by itself when no transfer has taken it.)
func waits(method string) bool {
	switch method {
	case "/containerd.services.tasks.v1.Tasks/Wait",
		"/containerd.services.events.v1.Events/Subscribe",
		"/containerd.services.sandbox.v1.Controller/Wait",
		"/grpc.health.v1.Health/Watch":
		return true
	}
	return false
}

// untilStop ends ctx when the server stops.
func (i interceptors) untilStop(ctx context.Context) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	undo := context.AfterFunc(i.stopping, func() { end(errStopping) })
	return ctx, func() {
		undo()
		end(context.Canceled)
	}
}

// stopped gives the reason for the end of a call that the server has ended.
func stopped(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStopping) {
		return cause
	}
	return err
}
