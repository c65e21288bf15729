package grpcapi

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"berth/internal/wire"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// interceptors surround every call: the scope from the metadata, a panic
// turned into an error, errors mapped to statuses, and the log.
type interceptors struct {
	log *slog.Logger
	// stopping ends when the server stops.
	stopping context.Context
	// calls counts those under way that do not only wait; activity is told when
	// the first of them begins and the last has ended.
	calls    *atomic.Int64
	activity func(busy bool)
}

func (i interceptors) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	begin := time.Now()
	scope, err := scopeFromMetadata(ctx, info.FullMethod)
	if err == nil {
		resp, err = i.call(ctx, info.FullMethod, func(ctx context.Context) (any, error) {
			return handler(withScope(ctx, scope), req)
		})
	}
	i.done(ctx, info.FullMethod, scope, begin, err)
	if err != nil {
		return nil, wire.ToStatus(err)
	}
	return resp, nil
}

func (i interceptors) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begin := time.Now()
	ctx := ss.Context()
	scope, err := scopeFromMetadata(ctx, info.FullMethod)
	if err == nil {
		_, err = i.call(ctx, info.FullMethod, func(ctx context.Context) (any, error) {
			return nil, handler(srv, scopedStream{ss, withScope(ctx, scope)})
		})
	}
	i.done(ctx, info.FullMethod, scope, begin, err)
	return wire.ToStatus(err)
}

// call turns a panic of a method into an error: one bad request must not take
// the daemon, and all that others do with it, along.
func (i interceptors) call(ctx context.Context, method string, fn func(context.Context) (any, error)) (resp any, err error) {
	if waits(method) {
		c, cancel := i.untilStop(ctx)
		defer cancel()
		defer func() { err = stopped(c, err) }()
		ctx = c
	} else {
		if i.calls.Add(1) == 1 {
			i.activity(true)
		}
		defer func() {
			if i.calls.Add(-1) == 0 {
				i.activity(false)
			}
		}()
	}
	defer func() {
		if p := recover(); p != nil {
			i.log.Error("panic in a call", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			resp, err = nil, status.Errorf(codes.Internal, "%s failed by a fault of the daemon; its log has the details", method)
		}
	}()
	return fn(ctx)
}

func (i interceptors) done(ctx context.Context, method string, scope Scope, begin time.Time, err error) {
	if !i.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", time.Since(begin))}
	if scope.Namespace != "" {
		attrs = append(attrs, slog.String("namespace", scope.Namespace))
	}
	if scope.Lease != "" {
		attrs = append(attrs, slog.String("lease", scope.Lease))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	i.log.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
}

// scopedStream is a stream whose context has the scope.
type scopedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s scopedStream) Context() context.Context { return s.ctx }
