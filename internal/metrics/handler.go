package metrics

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// Handler serves what the collectors write.
type Handler struct {
	collectors   []Collect
	inFlight, ok atomic.Int64
}

// NewHandler serves the families of collectors, in their order.
func NewHandler(collectors ...Collect) *Handler { return &Handler{collectors: collectors} }

func (h *Handler) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	rw.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var out io.Writer = rw
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		rw.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(rw)
		defer z.Close()
		out = z
	}
	if h.Write(req.Context(), out) == nil {
		h.ok.Add(1)
	}
}

// Write writes all families to out.
func (h *Handler) Write(ctx context.Context, out io.Writer) error {
	w := NewWriter(out)
	for _, c := range h.collectors {
		c(ctx, w)
	}
	w.single("promhttp_metric_handler_requests_in_flight", gauge, "Current number of scrapes being served.", float64(h.inFlight.Load()))
	const name = "promhttp_metric_handler_requests_total"
	w.Family(name, counter, "Total number of scrapes by HTTP status code.")
	w.Sample(name, float64(h.ok.Load()), "code", "200")
	w.Sample(name, 0, "code", "500")
	w.Sample(name, 0, "code", "503")
	return w.Flush()
}
