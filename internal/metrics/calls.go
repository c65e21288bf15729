package metrics

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const statuses = int(codes.Unauthenticated) + 1

// Calls counts the calls of a gRPC server; it is a stats.Handler. Serve tells
// it the server's methods, others are not counted.
type Calls struct {
	timed   bool
	methods atomic.Pointer[map[string]*method]
}

type method struct {
	service, name, kind     string
	started, received, sent atomic.Uint64
	handled                 [statuses]atomic.Uint64
	took                    Durations
}

// NewCalls counts calls, and how long they take when timed is set.
func NewCalls(timed bool) *Calls { return &Calls{timed: timed} }

// Serve names the methods of the server that is counted; it is called before
// the server serves.
func (c *Calls) Serve(s *grpc.Server) {
	all := make(map[string]*method)
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			kind := "unary"
			switch {
			case m.IsClientStream && m.IsServerStream:
				kind = "bidi_stream"
			case m.IsClientStream:
				kind = "client_stream"
			case m.IsServerStream:
				kind = "server_stream"
			}
			all["/"+service+"/"+m.Name] = &method{service: service, name: m.Name, kind: kind}
		}
	}
	c.methods.Store(&all)
}

type methodKey struct{}

// TagRPC finds the method of a call.
func (c *Calls) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	all := c.methods.Load()
	if all == nil {
		return ctx
	}
	m := (*all)[info.FullMethodName]
	if m == nil {
		return ctx
	}
	m.started.Add(1)
	return context.WithValue(ctx, methodKey{}, m)
}

// HandleRPC counts what happens in a call.
func (c *Calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	m, ok := ctx.Value(methodKey{}).(*method)
	if !ok {
		return
	}
	switch s := s.(type) {
	case *stats.InPayload:
		m.received.Add(1)
	case *stats.OutPayload:
		m.sent.Add(1)
	case *stats.End:
		code := status.Code(s.Error)
		if int(code) >= statuses {
			code = codes.Unknown
		}
		m.handled[code].Add(1)
		if c.timed {
			m.took.Observe(s.EndTime.Sub(s.BeginTime))
		}
	}
}

// TagConn does nothing.
func (c *Calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (c *Calls) HandleConn(context.Context, stats.ConnStats) {}

// Collect writes the counters of all methods, those that nobody has called too.
func (c *Calls) Collect(_ context.Context, w *Writer) {
	all := c.methods.Load()
	if all == nil {
		return
	}
	methods := slices.SortedFunc(maps.Values(*all), func(a, b *method) int {
		if a.name != b.name {
			return strings.Compare(a.name, b.name)
		}
		return strings.Compare(a.service, b.service)
	})
	const (
		handled  = "grpc_server_handled_total"
		handling = "grpc_server_handling_seconds"
	)
	w.Family(handled, counter, "Total number of RPCs completed on the server, regardless of success or failure.")
	for code := range statuses {
		for _, m := range methods {
			w.Sample(handled, float64(m.handled[code].Load()), append([]string{"grpc_code", codeName(codes.Code(code))}, m.labels()...)...)
		}
	}
	if c.timed {
		w.Family(handling, histogram, "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.")
		for _, m := range methods {
			m.took.write(w, handling, m.labels()...)
		}
	}
	for _, f := range []struct {
		name, help string
		value      func(*method) uint64
	}{
		{"grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", func(m *method) uint64 { return m.received.Load() }},
		{"grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", func(m *method) uint64 { return m.sent.Load() }},
		{"grpc_server_started_total", "Total number of RPCs started on the server.", func(m *method) uint64 { return m.started.Load() }},
	} {
		w.Family(f.name, counter, f.help)
		for _, m := range methods {
			w.Sample(f.name, float64(f.value(m)), m.labels()...)
		}
	}
}

func (m *method) labels() []string {
	return []string{"grpc_method", m.name, "grpc_service", m.service, "grpc_type", m.kind}
}

func codeName(c codes.Code) string {
	name := c.String()
	if strings.HasPrefix(name, "Code(") {
		return strconv.Itoa(int(c))
	}
	return name
}
