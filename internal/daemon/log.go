package daemon

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/trace"

	"github.com/containerd/errdefs"
)

// Levels beyond slog's, in containerd's names.
const (
	levelTrace = slog.LevelDebug - 4
	levelFatal = slog.LevelError + 4
	levelPanic = slog.LevelError + 8
)

// ParseLevel reads containerd's names of levels; empty means info.
func ParseLevel(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "trace":
		return levelTrace, nil
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "fatal":
		return levelFatal, nil
	case "panic":
		return levelPanic, nil
	}
	return 0, fmt.Errorf("log level %q is none of trace, debug, info, warn, error, fatal, panic: %w", name, errdefs.ErrInvalidArgument)
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "trace"
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warning"
	case l < levelFatal:
		return "error"
	case l < levelPanic:
		return "fatal"
	default:
		return "panic"
	}
}

// NewLogger writes lines to w as containerd does: in logfmt ("text", or empty)
// with time, level and msg first, or as JSON objects ("json").
func NewLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: jsonAttr}))
	}
	return slog.New(&textHandler{out: &lockedWriter{w: w}, level: level})
}

// timeFormat is RFC 3339 with all nine digits: lines sort by it.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

func jsonAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.String(a.Key, a.Value.Time().Format(timeFormat))
	}
	if len(groups) == 0 && a.Key == slog.LevelKey {
		if l, ok := a.Value.Any().(slog.Level); ok {
			return slog.String("level", levelName(l))
		}
	}
	if d, ok := a.Value.Any().(time.Duration); ok {
		return slog.String(a.Key, d.String())
	}
	return a
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// textHandler writes logfmt. prefix holds the attributes of With, ready to be
// written.
type textHandler struct {
	out    *lockedWriter
	level  slog.Leveler
	prefix string
	group  string
}

func (h *textHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *textHandler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 256)
	b = append(b, `time="`...)
	b = r.Time.AppendFormat(b, timeFormat)
	b = append(b, `" level=`...)
	b = append(b, levelName(r.Level)...)
	b = append(b, ` msg=`...)
	b = appendValue(b, r.Message)
	b = append(b, h.prefix...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.group, a)
		return true
	})
	b = append(b, '\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(b)
	return err
}

func (h *textHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	b := []byte(h.prefix)
	for _, a := range attrs {
		b = appendAttr(b, h.group, a)
	}
	c := *h
	c.prefix = string(b)
	return &c
}

func (h *textHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

func appendAttr(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, in := range v.Group() {
			b = appendAttr(b, group, in)
		}
		return b
	}
	if a.Key == "" {
		return b
	}
	b = append(b, ' ')
	b = append(b, group...)
	b = append(b, a.Key...)
	b = append(b, '=')
	return appendValue(b, v.String())
}

func appendValue(b []byte, s string) []byte {
	if bare(s) {
		return append(b, s...)
	}
	return strconv.AppendQuote(b, s)
}

// bare tells whether a value needs no quotes, as containerd's log has it.
func bare(s string) bool {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-._/@^+", r):
		default:
			return false
		}
	}
	return s != ""
}

// WithTraceIDs puts the identity of the span in whose context a line is logged
// on that line.
func WithTraceIDs(log *slog.Logger) *slog.Logger { return slog.New(spanHandler{log.Handler()}) }

type spanHandler struct{ slog.Handler }

func (h spanHandler) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.FromContext(ctx); s != nil {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", hex.EncodeToString(s.Trace[:])), slog.String("span_id", hex.EncodeToString(s.Identity.Span[:])))
	}
	return h.Handler.Handle(ctx, r)
}

func (h spanHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return spanHandler{h.Handler.WithAttrs(attrs)}
}

func (h spanHandler) WithGroup(name string) slog.Handler {
	return spanHandler{h.Handler.WithGroup(name)}
}
