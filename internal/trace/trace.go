// Package trace is spans: what a call did and how long each part took. A span
// lives in a context; Start makes a child of the one that is there, and costs a
// look-up when there is none, as when nobody has asked for traces. Package
// trace/otlp asks: it makes the Tracer, and sends what has ended to a collector.
//
// Names are those of OpenTelemetry; identity travels between processes in the
// form of W3C Trace Context.
package trace

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Kinds of spans, in OTLP's numbers.
const (
	Internal = 1
	Server   = 2
	Client   = 3
)

// Attr describes a span. Value is a string, bool, int64 or float64.
type Attr struct {
	Key   string
	Value any
}

// String is an attribute.
func String(key, value string) Attr { return Attr{key, value} }

// Int is an attribute.
func Int[N int | int32 | int64 | uint32](key string, value N) Attr { return Attr{key, int64(value)} }

// Identity of a span, as it travels.
type Identity struct {
	Trace   [16]byte
	Span    [8]byte
	Sampled bool
	// State is the header tracestate, passed on as it came.
	State string
}

// Valid tells whether there is an identity at all.
func (id Identity) Valid() bool { return id.Trace != [16]byte{} && id.Span != [8]byte{} }

// Header is the value of traceparent.
func (id Identity) Header() string {
	flags := "00"
	if id.Sampled {
		flags = "01"
	}
	return "00-" + hex.EncodeToString(id.Trace[:]) + "-" + hex.EncodeToString(id.Span[:]) + "-" + flags
}

// ParseHeader reads a traceparent; the identity is not valid when it is none.
func ParseHeader(s string) Identity {
	var id Identity
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return Identity{}
	}
	var version, flags [1]byte
	for _, part := range []struct {
		to  []byte
		hex string
	}{{version[:], s[:2]}, {id.Trace[:], s[3:35]}, {id.Span[:], s[36:52]}, {flags[:], s[53:55]}} {
		for _, c := range part.hex {
			if c >= 'A' && c <= 'F' {
				return Identity{} // the specification wants small letters
			}
		}
		if _, err := hex.Decode(part.to, []byte(part.hex)); err != nil {
			return Identity{}
		}
	}
	id.Sampled = flags[0]&1 != 0
	return id
}

// Tracer makes spans and hands on what has ended.
type Tracer struct {
	// Sample decides about a span; the parent is not valid for the first of a
	// trace.
	Sample func(parent Identity, trace [16]byte) bool
	// Ended takes spans that have ended and were sampled. It must not wait.
	Ended func(*Span)
}

// Span is a part of what was done; all methods may be called on nil.
type Span struct {
	tracer *Tracer
	Identity
	Parent [8]byte
	Name   string
	Kind   int
	Begin  time.Time

	mu    sync.Mutex
	Until time.Time
	Attrs []Attr
	// Error is why what was done has failed; empty when it has not.
	Error string
}

type spanKey struct{}
type tracerKey struct{}

// With makes the spans that begin in ctx, without a parent, those of t.
func With(ctx context.Context, t *Tracer) context.Context {
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, tracerKey{}, t)
}

// FromContext is the span of ctx, nil when there is none.
func FromContext(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// Start begins a span below that of ctx. Where nobody traces it is nil.
func Start(ctx context.Context, name string, attrs ...Attr) (context.Context, *Span) {
	if parent := FromContext(ctx); parent != nil {
		return parent.tracer.Start(ctx, name, Internal, parent.Identity, attrs...)
	}
	if t, ok := ctx.Value(tracerKey{}).(*Tracer); ok {
		return t.Start(ctx, name, Internal, Identity{}, attrs...)
	}
	return ctx, nil
}

// Start begins a span of a kind below a parent, which may be another process's
// or not valid.
func (t *Tracer) Start(ctx context.Context, name string, kind int, parent Identity, attrs ...Attr) (context.Context, *Span) {
	s := &Span{tracer: t, Name: name, Kind: kind, Identity: Identity{Trace: parent.Trace, State: parent.State}, Attrs: attrs}
	if parent.Valid() {
		s.Parent = parent.Span
	} else {
		random(s.Trace[:])
	}
	random(s.Identity.Span[:])
	if s.Sampled = t.Sample(parent, s.Trace); s.Sampled {
		s.Begin = time.Now()
	}
	return context.WithValue(ctx, spanKey{}, s), s
}

// random fills identities, whose lengths are multiples of 8; they are never zero.
func random(to []byte) {
	for i := 0; i < len(to); i += 8 {
		binary.BigEndian.PutUint64(to[i:], rand.Uint64N(math.MaxUint64)+1)
	}
}

// Set describes the span further.
func (s *Span) Set(attrs ...Attr) {
	if s == nil || !s.Sampled {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Attrs = append(s.Attrs, attrs...)
}

// End ends the span; err, when it is not nil, is why it failed. Only the first
// End counts.
func (s *Span) End(err error) {
	if s == nil || !s.Sampled {
		return
	}
	s.mu.Lock()
	ended := !s.Until.IsZero()
	if !ended {
		s.Until = time.Now()
		if err != nil {
			s.Error = fmt.Sprint(err)
		}
	}
	s.mu.Unlock()
	if !ended {
		s.tracer.Ended(s)
	}
}
