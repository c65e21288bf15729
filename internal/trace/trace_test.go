package trace

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestHeader(t *testing.T) {
	id := Identity{Trace: [16]byte{0x0a, 15: 1}, Span: [8]byte{7: 2}, Sampled: true}
	const text = "00-0a000000000000000000000000000001-0000000000000002-01"
	if got := id.Header(); got != text {
		t.Errorf("%s", got)
	}
	if got := ParseHeader(text); got != id {
		t.Errorf("%v", got)
	}
	if got := ParseHeader("cc" + text[2:] + "-later"); got != id {
		t.Errorf("a later version: %v", got)
	}
	for name, s := range map[string]string{
		"empty": "", "short": text[:54], "long": text + "-x", "version ff": "ff" + text[2:], "capitals": strings.ToUpper(text),
		"no trace": "00-00000000000000000000000000000000-0000000000000002-01", "no span": "00-0a000000000000000000000000000001-0000000000000000-01",
		"no hex": strings.Replace(text, "0a", "0x", 1),
	} {
		if id := ParseHeader(s); id.Valid() {
			t.Errorf("%s: %q became %v", name, s, id)
		}
	}
}

func TestSpans(t *testing.T) {
	if ctx, s := Start(t.Context(), "off"); s != nil || ctx != t.Context() {
		t.Error("a span where nobody traces")
	}
	var ended []*Span
	tracer := &Tracer{Sample: func(p Identity, _ [16]byte) bool { return !p.Valid() || p.Sampled }, Ended: func(s *Span) { ended = append(ended, s) }}
	ctx, outer := Start(With(t.Context(), tracer), "outer")
	_, inner := Start(ctx, "inner", String("a", "b"))
	inner.End(errors.New("no"))
	inner.End(nil)
	outer.End(nil)
	if len(ended) != 2 || ended[0] != inner || inner.Error != "no" || inner.Trace != outer.Trace || inner.Parent != outer.Identity.Span || inner.Identity.Span == outer.Identity.Span {
		t.Errorf("%+v", ended)
	}
	// What the client does not sample is not recorded, and stays one trace.
	ctx, call := tracer.Start(t.Context(), "call", Server, Identity{Trace: [16]byte{1}, Span: [8]byte{1}})
	_, part := Start(ctx, "part")
	part.Set(Int("n", 1))
	part.End(nil)
	call.End(nil)
	if len(ended) != 2 || part.Sampled || part.Trace != [16]byte{1} {
		t.Errorf("%+v", part)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")
	f.Fuzz(func(t *testing.T, s string) {
		if id := ParseHeader(s); id.Valid() && s[2:53] != id.Header()[2:53] {
			t.Errorf("%q became %q", s, id.Header())
		}
	})
}

func BenchmarkStartOff(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		_, s := Start(ctx, "x")
		s.End(nil)
	}
}
