package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/trace"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// closeTimeout bounds how long the last spans hold up the end of the daemon.
	closeTimeout = 2 * time.Second
	// maxPause bounds the wait before a batch is sent once more.
	maxPause = 5 * time.Second
	method   = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
)

// Exporter sends spans to a collector.
type Exporter struct {
	settings *Settings
	log      *slog.Logger
	send     func(context.Context, []byte) error
	conn     io.Closer

	queue   chan *trace.Span
	dropped atomic.Int64
	life    context.Context
	end     context.CancelFunc
	last    context.Context // ends when Close waits no longer
	cut     context.CancelFunc
	worker  sync.WaitGroup
}

// New starts an exporter; Close ends it. It does not wait for the collector.
func New(s *Settings, log *slog.Logger) (*Exporter, error) {
	e := &Exporter{settings: s, log: log, queue: make(chan *trace.Span, s.queue)}
	if s.grpc {
		conn, err := dial(s)
		if err != nil {
			return nil, err
		}
		e.conn, e.send = conn, s.byGRPC(conn)
	} else {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 1}}
		e.send = s.byHTTP(client)
	}
	e.life, e.end = context.WithCancel(context.Background())
	e.last, e.cut = context.WithCancel(context.Background())
	e.worker.Go(e.run)
	return e, nil
}

// Tracer makes spans for the exporter.
func (e *Exporter) Tracer() *trace.Tracer {
	return &trace.Tracer{Sample: e.settings.sample, Ended: func(s *trace.Span) {
		select {
		case e.queue <- s:
		default:
			e.dropped.Add(1)
		}
	}}
}

// Close sends what is queued, for two seconds at most.
func (e *Exporter) Close() error {
	defer time.AfterFunc(closeTimeout, e.cut).Stop()
	defer e.cut()
	e.end()
	e.worker.Wait()
	if e.conn != nil {
		return e.conn.Close()
	}
	return nil
}

func (e *Exporter) run() {
	failing := false
	for {
		batch, more := e.gather()
		if len(batch) > 0 {
			err := e.export(batch)
			if err != nil && !failing {
				e.log.Warn("spans are lost: the collector does not take them", "endpoint", e.settings.endpoint.Redacted(), "spans", len(batch), "error", err)
			} else if err == nil && failing {
				e.log.Info("the collector takes spans again", "endpoint", e.settings.endpoint.Redacted())
			}
			failing = err != nil
			if n := e.dropped.Swap(0); n > 0 {
				e.log.Warn("spans are lost: more have ended than could be sent", "spans", n)
			}
		}
		if !more {
			return
		}
	}
}

// gather waits for spans: for the first as long as it takes, then until the
// batch is full or old enough. More is false when the daemon ends and nothing
// is left.
func (e *Exporter) gather() (batch []*trace.Span, more bool) {
	select {
	case s := <-e.queue:
		batch = append(batch, s)
	case <-e.life.Done():
	}
	timer := time.NewTimer(e.settings.delay)
	defer timer.Stop()
	for len(batch) < e.settings.batch {
		if e.life.Err() != nil {
			select {
			case s := <-e.queue:
				batch = append(batch, s)
				continue
			default:
				return batch, false
			}
		}
		select {
		case s := <-e.queue:
			batch = append(batch, s)
		case <-timer.C:
			return batch, true
		case <-e.life.Done():
		}
	}
	return batch, true
}

// export sends a batch, again when the collector is busy, within the timeout.
func (e *Exporter) export(batch []*trace.Span) error {
	ctx, cancel := context.WithTimeout(e.last, e.settings.timeout)
	defer cancel()
	data := encode(e.settings.resource, batch)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, maxPause) {
		err := e.send(ctx, data)
		busy, ok := errors.AsType[*busyError](err)
		if !ok {
			return err
		}
		select {
		case <-time.After(max(pause, min(busy.after, maxPause))):
		case <-ctx.Done():
			return err
		}
	}
}

// busyError is an answer after which the same may be sent again.
type busyError struct {
	answer string
	after  time.Duration
}

func (e *busyError) Error() string { return e.answer }

func (s *Settings) byHTTP(client *http.Client) func(context.Context, []byte) error {
	return func(ctx context.Context, data []byte) error {
		if s.gzip {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(data); err != nil {
				return err
			}
			if err := z.Close(); err != nil {
				return err
			}
			data = b.Bytes()
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint.String(), bytes.NewReader(data))
		if err != nil {
			return err
		}
		for key, value := range s.headers {
			req.Header.Set(key, value)
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		if s.gzip {
			req.Header.Set("Content-Encoding", "gzip")
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
		switch resp.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			return &busyError{resp.Status, time.Duration(seconds) * time.Second}
		}
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("the collector answers %s", resp.Status)
		}
		return nil
	}
}

func dial(s *Settings) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if s.endpoint.Scheme == "https" {
		creds = credentials.NewTLS(s.tls)
	}
	return grpc.NewClient(s.endpoint.Host, grpc.WithTransportCredentials(creds))
}

func (s *Settings) byGRPC(conn *grpc.ClientConn) func(context.Context, []byte) error {
	opts := []grpc.CallOption{grpc.ForceCodec(raw{})}
	if s.gzip {
		opts = append(opts, grpc.UseCompressor(grpcgzip.Name))
	}
	return func(ctx context.Context, data []byte) error {
		for key, value := range s.headers {
			ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(key), value)
		}
		var answer []byte
		err := conn.Invoke(ctx, method, &data, &answer, opts...)
		switch status.Code(err) {
		case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
			return &busyError{err.Error(), 0}
		}
		return err
	}
}

// raw is the codec of messages that are encoded already.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
}

func (raw) Name() string { return "proto" }
