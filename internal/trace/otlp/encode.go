package otlp

import (
	"math"
	"strings"

	"berth/internal/trace"

	"google.golang.org/protobuf/encoding/protowire"
)

// scope names who made the spans.
const scope = "berth"

// maxText bounds names, messages and values in bytes.
const maxText = 4096

// encode makes an ExportTraceServiceRequest
// (opentelemetry/proto/collector/trace/v1/trace_service.proto).
func encode(resource []trace.Attr, spans []*trace.Span) []byte {
	var r, ss []byte
	for _, a := range resource {
		r = message(r, 1, attribute(a))
	}
	ss = message(ss, 1, text(nil, 1, scope))
	for _, s := range spans {
		ss = message(ss, 2, span(s))
	}
	all := message(nil, 1, r) // ResourceSpans: resource, scope_spans
	all = message(all, 2, ss)
	return message(nil, 1, all)
}

func message(b []byte, field protowire.Number, m []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, m)
}

func text(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, valid(s))
}

func number(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func fixed(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, v)
}

// span encodes opentelemetry.proto.trace.v1.Span.
func span(s *trace.Span) []byte {
	b := message(nil, 1, s.Trace[:])
	b = message(b, 2, s.Identity.Span[:])
	b = text(b, 3, s.State)
	if s.Parent != [8]byte{} {
		b = message(b, 4, s.Parent[:])
	}
	b = text(b, 5, s.Name)
	b = number(b, 6, uint64(s.Kind))
	b = fixed(b, 7, uint64(s.Begin.UnixNano()))
	b = fixed(b, 8, uint64(s.Until.UnixNano()))
	for _, a := range s.Attrs {
		b = message(b, 9, attribute(a))
	}
	if s.Error != "" {
		const failed = 2
		b = message(b, 15, number(text(nil, 2, s.Error), 3, failed))
	}
	return b
}

// attribute encodes opentelemetry.proto.common.v1.KeyValue.
func attribute(a trace.Attr) []byte {
	var v []byte
	switch value := a.Value.(type) {
	case string:
		v = message(nil, 1, []byte(valid(value)))
	case bool:
		v = number(nil, 2, protowire.EncodeBool(value))
	case int64:
		v = number(nil, 3, uint64(value))
	case float64:
		v = fixed(nil, 4, math.Float64bits(value))
	}
	return message(text(nil, 1, a.Key), 2, v)
}

// valid is s as protobuf takes it: short, and UTF-8.
func valid(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
