package metrics

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// TestText: every line is one that Prometheus reads, and no family comes twice.
func TestText(t *testing.T) {
	s := grpc.NewServer()
	healthapi.RegisterHealthServer(s, healthapi.UnimplementedHealthServer{})
	calls := NewCalls(true)
	calls.Serve(s)
	ctx := calls.TagRPC(t.Context(), &stats.RPCTagInfo{FullMethodName: "/grpc.health.v1.Health/Check"})
	begin := time.Now()
	calls.HandleRPC(ctx, &stats.InPayload{})
	calls.HandleRPC(ctx, &stats.End{BeginTime: begin, EndTime: begin.Add(300 * time.Millisecond), Error: status.Error(codes.NotFound, "x")})
	calls.HandleRPC(calls.TagRPC(t.Context(), &stats.RPCTagInfo{FullMethodName: "/unknown/Method"}), &stats.End{})
	var gc Collections
	gc.Done(time.Second, nil)
	gc.Done(time.Second, errors.New("x"))
	odd := func(_ context.Context, w *Writer) {
		w.Family("odd", gauge, "with\nlines and \\")
		w.Sample("odd", 1e300, "a", "q\"b\\n\n", "b", "\xff")
	}

	h := NewHandler(Build("v1", "abc"), calls.Collect, gc.Collect, GoRuntime, Process, odd)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/v1/metrics", nil))
	out := rec.Body.String()
	line := regexp.MustCompile(`^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z_]+="([^"\\\n]|\\["\\n])*"(,[a-z_]+="([^"\\\n]|\\["\\n])*")*\})? ([-+0-9.e]+|\+Inf|NaN))$`)
	seen := map[string]bool{}
	for l := range strings.Lines(out) {
		l = strings.TrimSuffix(l, "\n")
		if !line.MatchString(l) {
			t.Errorf("cannot be read: %q", l)
		}
		if seen[l] {
			t.Errorf("comes twice: %q", l)
		}
		seen[l] = true
	}
	for _, want := range []string{
		`containerd_build_info_total{revision="abc",version="v1"} 1`,
		`grpc_server_started_total{grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="NotFound",grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"} 0`,
		`grpc_server_handling_seconds_bucket{grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary",le="0.25"} 0`,
		`grpc_server_handling_seconds_bucket{grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary",le="0.5"} 1`,
		`containerd_gc_collections_total{status="success"} 1`,
		`containerd_gc_collections_total{status="fail"} 1`,
		`containerd_gc_gc_seconds_count 1`,
	} {
		if !seen[want] {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(out, "unknown") {
		t.Error("a method that the server does not have is counted")
	}
	var zipped bytes.Buffer
	req := httptest.NewRequest("GET", "/v1/metrics", nil)
	req.Header.Set("Accept-Encoding", "gzip")
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if _, err := zipped.ReadFrom(rec.Body); err != nil || !bytes.HasPrefix(zipped.Bytes(), []byte{0x1f, 0x8b}) {
		t.Error("not compressed")
	}
}

// BenchmarkCall is what counting adds to a call.
func BenchmarkCall(b *testing.B) {
	s := grpc.NewServer()
	healthapi.RegisterHealthServer(s, healthapi.UnimplementedHealthServer{})
	calls := NewCalls(true)
	calls.Serve(s)
	info, end := &stats.RPCTagInfo{FullMethodName: "/grpc.health.v1.Health/Check"}, &stats.End{EndTime: time.Now()}
	for b.Loop() {
		ctx := calls.TagRPC(context.Background(), info)
		calls.HandleRPC(ctx, &stats.InPayload{})
		calls.HandleRPC(ctx, &stats.OutPayload{})
		calls.HandleRPC(ctx, end)
	}
}
