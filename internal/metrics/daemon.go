package metrics

import (
	"context"
	"sync/atomic"
	"time"
)

// Build is what is built.
func Build(version, revision string) Collect {
	return func(_ context.Context, w *Writer) {
		w.Family("containerd_build_info_total", counter, "containerd build information")
		w.Sample("containerd_build_info_total", 1, "revision", revision, "version", version)
	}
}

// Collections counts garbage collections; the zero value has seen none.
type Collections struct {
	good, bad atomic.Uint64
	took      Durations
}

// Done counts a collection that has ended.
func (c *Collections) Done(took time.Duration, err error) {
	if err != nil {
		c.bad.Add(1)
		return
	}
	c.good.Add(1)
	c.took.Observe(took)
}

// Collect writes them.
func (c *Collections) Collect(_ context.Context, w *Writer) {
	const total, seconds = "containerd_gc_collections_total", "containerd_gc_gc_seconds"
	good, bad := c.good.Load(), c.bad.Load()
	if good+bad > 0 {
		w.Family(total, counter, "counter of gc scheduler collections")
	}
	if bad > 0 {
		w.Sample(total, float64(bad), "status", "fail")
	}
	if good > 0 {
		w.Sample(total, float64(good), "status", "success")
	}
	w.Family(seconds, histogram, "duration of gc scheduler collections")
	c.took.write(w, seconds)
}
