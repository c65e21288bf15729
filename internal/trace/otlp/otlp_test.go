package otlp

import (
	"compress/gzip"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/trace"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// parsed is a protobuf message without its schema.
type parsed map[protowire.Number][]any

func parse(t *testing.T, b []byte) parsed {
	t.Helper()
	m := parsed{}
	for len(b) > 0 {
		n, kind, k := protowire.ConsumeTag(b)
		if k < 0 {
			t.Fatalf("no protobuf: %v", protowire.ParseError(k))
		}
		b = b[k:]
		switch kind {
		case protowire.BytesType:
			v, k := protowire.ConsumeBytes(b)
			m[n], b = append(m[n], v), b[max(k, 0):]
		case protowire.VarintType:
			v, k := protowire.ConsumeVarint(b)
			m[n], b = append(m[n], v), b[max(k, 0):]
		case protowire.Fixed64Type:
			v, k := protowire.ConsumeFixed64(b)
			m[n], b = append(m[n], v), b[max(k, 0):]
		default:
			t.Fatalf("wire type %d", kind)
		}
	}
	return m
}

func (m parsed) sub(t *testing.T, n protowire.Number, i int) parsed {
	t.Helper()
	if len(m[n]) <= i {
		t.Fatalf("field %d has %d values", n, len(m[n]))
	}
	return parse(t, m[n][i].([]byte))
}

func (m parsed) attrs(t *testing.T, n protowire.Number) map[string]any {
	t.Helper()
	out := map[string]any{}
	for i := range m[n] {
		kv := m.sub(t, n, i)
		for _, v := range kv.sub(t, 2, 0) {
			if b, ok := v[0].([]byte); ok {
				v[0] = string(b)
			}
			out[string(kv[1][0].([]byte))] = v[0]
		}
	}
	return out
}

// collector receives requests, as HTTP and as gRPC.
type collector struct {
	requests chan []byte
	headers  chan http.Header
}

func newCollector() *collector {
	return &collector{make(chan []byte, 10), make(chan http.Header, 10)}
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		body = z
	}
	data, err := io.ReadAll(body)
	if err != nil || r.URL.Path != "/v1/traces" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.headers <- r.Header
	c.requests <- data
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		if i := slices.Index(pairs, name); i >= 0 && i%2 == 0 {
			return pairs[i+1]
		}
		return ""
	}
}

func start(t *testing.T, pairs ...string) *Exporter {
	t.Helper()
	s, err := FromEnv(env(pairs...), "v1.2.3")
	if err != nil || s == nil {
		t.Fatalf("settings: %v, %v", s, err)
	}
	e, err := New(s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestHTTP(t *testing.T) {
	c := newCollector()
	server := httptest.NewServer(c)
	defer server.Close()
	e := start(t, "OTEL_EXPORTER_OTLP_ENDPOINT", server.URL, "OTEL_EXPORTER_OTLP_COMPRESSION", "gzip",
		"OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b", "OTEL_RESOURCE_ATTRIBUTES", "host.name=h")
	ctx := trace.With(t.Context(), e.Tracer())
	ctx, outer := trace.Start(ctx, "outer", trace.String("image", "x\xff"), trace.Int("layers", 3))
	_, inner := trace.Start(ctx, "inner")
	inner.End(errors.New("no space"))
	outer.Set(trace.Attr{Key: "whole", Value: true})
	outer.End(nil)
	outer.End(errors.New("counts no more"))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if h := <-c.headers; h.Get("X-Key") != "a b" || h.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("headers %v", h)
	}
	all := parse(t, <-c.requests).sub(t, 1, 0)
	resource := all.sub(t, 1, 0).attrs(t, 1)
	if resource["service.name"] != "containerd" || resource["service.version"] != "v1.2.3" || resource["host.name"] != "h" {
		t.Errorf("resource %v", resource)
	}
	spans := all.sub(t, 2, 0)
	in, out := spans.sub(t, 2, 0), spans.sub(t, 2, 1)
	if string(in[5][0].([]byte)) != "inner" || string(out[5][0].([]byte)) != "outer" {
		t.Fatalf("spans %v, %v", in, out)
	}
	if string(in[1][0].([]byte)) != string(out[1][0].([]byte)) || string(in[4][0].([]byte)) != string(out[2][0].([]byte)) {
		t.Error("the inner span is not below the outer")
	}
	if out[4] != nil || len(out[1][0].([]byte)) != 16 || len(out[2][0].([]byte)) != 8 || out[6][0] != uint64(trace.Internal) {
		t.Errorf("outer %v", out)
	}
	if in[7][0].(uint64) < out[7][0].(uint64) || in[8][0].(uint64) > out[8][0].(uint64) {
		t.Error("the times do not nest")
	}
	if status := in.sub(t, 15, 0); string(status[2][0].([]byte)) != "no space" || status[3][0] != uint64(2) {
		t.Errorf("status %v", status)
	}
	if a := out.attrs(t, 9); a["layers"] != uint64(3) || a["image"] != "x\uFFFD" || a["whole"] != uint64(1) || out[15] != nil {
		t.Errorf("attributes %v", a)
	}
}

// TestGRPC: a call of a client that is traced becomes a span below the
// client's, sent by gRPC.
func TestGRPC(t *testing.T) {
	c := newCollector()
	collecting := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var data []byte
		if err := s.RecvMsg(&data); err != nil {
			return err
		}
		m, _ := grpc.MethodFromServerStream(s)
		md, _ := metadata.FromIncomingContext(s.Context())
		c.headers <- http.Header{"Method": {m}, "Key": md.Get("key")}
		c.requests <- slices.Clone(data)
		return s.SendMsg(new([]byte))
	}))
	l := listen(t)
	go func() { _ = collecting.Serve(l) }()
	defer collecting.Stop()
	e := start(t, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"+l.Addr().String(), "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_HEADERS", "Key=v")

	traced := grpc.NewServer(grpc.StatsHandler(Calls{e.Tracer()}))
	healthapi.RegisterHealthServer(traced, healthapi.UnimplementedHealthServer{})
	tl := listen(t)
	go func() { _ = traced.Serve(tl) }()
	defer traced.Stop()
	conn, err := grpc.NewClient(tl.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := trace.Identity{Trace: [16]byte{1, 2}, Span: [8]byte{3}, Sampled: true}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", client.Header(), "tracestate", "a=b")
	if _, err := healthapi.NewHealthClient(conn).Check(ctx, nil); err == nil {
		t.Fatal("nobody implements it")
	}
	traced.GracefulStop()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if h := <-c.headers; h["Method"][0] != method || h["Key"][0] != "v" {
		t.Errorf("called %v", h)
	}
	span := parse(t, <-c.requests).sub(t, 1, 0).sub(t, 2, 0).sub(t, 2, 0)
	if string(span[1][0].([]byte)) != string(client.Trace[:]) || string(span[4][0].([]byte)) != string(client.Span[:]) || string(span[3][0].([]byte)) != "a=b" {
		t.Errorf("not below the client's span: %v", span)
	}
	if string(span[5][0].([]byte)) != "grpc.health.v1.Health/Check" || span[6][0] != uint64(trace.Server) || span.attrs(t, 9)["rpc.grpc.status_code"] != uint64(12) {
		t.Errorf("span %v %v", span, span.attrs(t, 9))
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestBusy: a collector that is busy gets the batch again; one that is gone
// holds nobody up.
func TestBusy(t *testing.T) {
	c := newCollector()
	var tries atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		c.ServeHTTP(w, r)
	}))
	e := start(t, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.URL+"/v1/traces", "OTEL_BSP_SCHEDULE_DELAY", "1", "OTEL_BSP_MAX_QUEUE_SIZE", "2")
	_, s := trace.Start(trace.With(t.Context(), e.Tracer()), "x")
	s.End(nil)
	<-c.requests
	server.Close()
	begin := time.Now()
	for range 1000 {
		_, s := trace.Start(trace.With(t.Context(), e.Tracer()), "x")
		s.End(nil)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > closeTimeout+5*time.Second {
		t.Errorf("a collector that is gone holds the end up for %s", took)
	}
}

func TestSettings(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, tc := range map[string]struct {
		env []string
		on  bool
		err error
	}{
		"nothing":        {nil, false, nil},
		"endpoint":       {[]string{endpoint, "http://x:4318"}, true, nil},
		"disabled":       {[]string{endpoint, "http://x:4318", "OTEL_SDK_DISABLED", "true"}, false, nil},
		"no exporter":    {[]string{endpoint, "http://x:4318", "OTEL_TRACES_EXPORTER", "none"}, false, nil},
		"not a boolean":  {[]string{endpoint, "http://x:4318", "OTEL_SDK_DISABLED", "perhaps"}, false, errdefs.ErrInvalidArgument},
		"other exporter": {[]string{endpoint, "http://x:4318", "OTEL_TRACES_EXPORTER", "zipkin"}, false, errdefs.ErrInvalidArgument},
		"json":           {[]string{endpoint, "http://x:4318", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"}, false, errdefs.ErrNotImplemented},
		"grpc":           {[]string{endpoint, "x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_INSECURE", "true"}, true, nil},
		"no URL":         {[]string{endpoint, "http://"}, false, errdefs.ErrInvalidArgument},
		"sampler":        {[]string{endpoint, "http://x", "OTEL_TRACES_SAMPLER", "sometimes"}, false, errdefs.ErrInvalidArgument},
		"ratio":          {[]string{endpoint, "http://x", "OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "2"}, false, errdefs.ErrInvalidArgument},
		"headers":        {[]string{endpoint, "http://x", "OTEL_EXPORTER_OTLP_HEADERS", "nothing"}, false, errdefs.ErrInvalidArgument},
		"delay":          {[]string{endpoint, "http://x", "OTEL_BSP_SCHEDULE_DELAY", "-1"}, false, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := FromEnv(env(tc.env...), "")
			if !errors.Is(err, tc.err) || tc.err == nil && (err != nil || (s != nil) != tc.on) {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
}

func TestSampler(t *testing.T) {
	parent := trace.Identity{Trace: [16]byte{1}, Span: [8]byte{1}}
	sampled := parent
	sampled.Sampled = true
	for _, tc := range []struct {
		name, arg   string
		parent      trace.Identity
		low, common bool // of an ID that any ratio takes, and of one that none but 1 takes
	}{
		{"", "", trace.Identity{}, true, true},
		{"", "", parent, false, false},
		{"always_on", "", parent, true, true},
		{"always_off", "", sampled, false, false},
		{"parentbased_always_off", "", sampled, true, true},
		{"traceidratio", "0.5", sampled, true, false},
		{"parentbased_traceidratio", "0.5", trace.Identity{}, true, false},
		{"parentbased_traceidratio", "0.5", sampled, true, true},
		{"traceidratio", "", trace.Identity{}, true, true},
	} {
		f, err := sampler(tc.name, tc.arg)
		if err != nil {
			t.Fatal(err)
		}
		high := [16]byte{8: 0xff, 9: 0xff}
		if got := f(tc.parent, [16]byte{15: 1}); got != tc.low {
			t.Errorf("%+v: %v", tc, got)
		}
		if got := f(tc.parent, high); got != tc.common {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestHangingCollector: the end takes two seconds, however many batches wait.
func TestHangingCollector(t *testing.T) {
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-done
	}))
	defer server.Close()
	defer close(done)
	e := start(t, "OTEL_EXPORTER_OTLP_ENDPOINT", server.URL, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
	for range 8 {
		_, s := trace.Start(trace.With(t.Context(), e.Tracer()), "x")
		s.End(nil)
	}
	begin := time.Now()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 4*closeTimeout {
		t.Errorf("a collector that hangs holds the end up for %s", took)
	}
}
