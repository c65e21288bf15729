package otlp

import (
	"context"
	"strings"

	"berth/internal/trace"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Calls makes a span of every call of a gRPC server, below the client's when
// the call brings one (traceparent). It is a stats.Handler.
type Calls struct{ Tracer *trace.Tracer }

// TagRPC begins the span.
func (c Calls) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	var parent trace.Identity
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if v := md.Get("traceparent"); len(v) > 0 {
			if parent = trace.ParseHeader(v[0]); parent.Valid() {
				parent.State = strings.Join(md.Get("tracestate"), ",")
			}
		}
	}
	name := strings.TrimPrefix(info.FullMethodName, "/")
	service, method, _ := strings.Cut(name, "/")
	ctx, _ = c.Tracer.Start(ctx, name, trace.Server, parent,
		trace.String("rpc.system", "grpc"), trace.String("rpc.service", service), trace.String("rpc.method", method))
	return ctx
}

// HandleRPC ends it.
func (c Calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	span := trace.FromContext(ctx)
	span.Set(trace.Int("rpc.grpc.status_code", uint32(status.Code(end.Error))))
	span.End(end.Error)
}

// TagConn does nothing.
func (c Calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (c Calls) HandleConn(context.Context, stats.ConnStats) {}
