// Package metrics is what the daemon tells Prometheus, under containerd's names:
// grpc_server_*, container_* (the containers' cgroups), containerd_*, and go_*
// and process_* as every Go program has them. It writes the text format 0.0.4
// itself: that is a page of code, where the client library would cost an idle
// daemon that nobody scrapes a megabyte.
//
// Everything that is not a counter of its own is read when a scrape asks for it:
// without scrapes nothing runs. A scrape never waits longer for shims than the
// timeout that it is given, however many hang.
package metrics

import (
	"bufio"
	"context"
	"io"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Kinds of metric families.
const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
	summary   = "summary"
)

// Collect writes families to w; each family is written by one Collect.
type Collect func(ctx context.Context, w *Writer)

// Writer writes Prometheus' text format. Errors of the underlying writer are
// kept by the buffer.
type Writer struct {
	b *bufio.Writer
}

// NewWriter writes to w; Flush ends it.
func NewWriter(w io.Writer) *Writer { return &Writer{bufio.NewWriterSize(w, 16<<10)} }

// Flush writes what is buffered, and returns the first error of all.
func (w *Writer) Flush() error { return w.b.Flush() }

// Family begins a family: its samples follow.
func (w *Writer) Family(name, kind, help string) {
	w.b.WriteString("# HELP " + name + " ")
	w.b.WriteString(strings.NewReplacer("\\", `\\`, "\n", `\n`).Replace(help))
	w.b.WriteString("\n# TYPE " + name + " " + kind + "\n")
}

// Sample writes a value with its labels, given as names and values in turn.
func (w *Writer) Sample(name string, value float64, labels ...string) {
	w.b.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		if i == 0 {
			w.b.WriteByte('{')
		} else {
			w.b.WriteByte(',')
		}
		w.b.WriteString(labels[i])
		w.b.WriteString(`="`)
		w.label(labels[i+1])
		w.b.WriteByte('"')
	}
	if len(labels) > 1 {
		w.b.WriteByte('}')
	}
	w.b.WriteByte(' ')
	w.b.WriteString(number(value))
	w.b.WriteByte('\n')
}

func (w *Writer) label(s string) {
	if !strings.ContainsAny(s, "\\\"\n") {
		w.b.WriteString(strings.ToValidUTF8(s, "\uFFFD"))
		return
	}
	strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`).WriteString(w.b, strings.ToValidUTF8(s, "\uFFFD"))
}

func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case math.IsNaN(v):
		return "NaN"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// single writes a family of one sample without labels.
func (w *Writer) single(name, kind, help string, value float64) {
	w.Family(name, kind, help)
	w.Sample(name, value)
}

// bounds are the upper bounds of histograms' buckets, in seconds.
var bounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Durations is a histogram of time spans; the zero value is empty. It may be
// used by many goroutines.
type Durations struct {
	buckets [len(bounds) + 1]atomic.Uint64
	nanos   atomic.Int64
}

// Observe counts a time span.
func (d *Durations) Observe(took time.Duration) {
	i, s := 0, took.Seconds()
	for i < len(bounds) && s > bounds[i] {
		i++
	}
	d.buckets[i].Add(1)
	d.nanos.Add(int64(took))
}

func (d *Durations) write(w *Writer, name string, labels ...string) {
	labels = labels[:len(labels):len(labels)]
	var sum uint64
	for i := range d.buckets {
		sum += d.buckets[i].Load()
		bound := math.Inf(1)
		if i < len(bounds) {
			bound = bounds[i]
		}
		w.Sample(name+"_bucket", float64(sum), append(labels, "le", number(bound))...)
	}
	w.Sample(name+"_sum", time.Duration(d.nanos.Load()).Seconds(), labels...)
	w.Sample(name+"_count", float64(sum), labels...)
}
