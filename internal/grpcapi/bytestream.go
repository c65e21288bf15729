package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	api "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
)

// Bytes go over a stream in Data messages. The receiver grants the sender
// bytes with WindowUpdate messages; the sender never has more than that under
// way. A stream's end is the end of the bytes.

const (
	// window is how many bytes this side lets a client have under way.
	window = 1 << 20
	// maxData bounds the bytes of one message that is sent.
	maxData = 256 << 10
)

// byteReader reads the bytes that a client sends. Used by one goroutine.
type byteReader struct {
	stream  *stream
	granted int    // bytes that the client may still send
	rest    []byte // received, not read yet
}

func (r *byteReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.granted <= window/2 {
			// A failure shows in Recv, which may still have data.
			if r.stream.Send(&api.WindowUpdate{Update: int32(window - r.granted)}) == nil {
				r.granted = window
			}
		}
		a, err := r.stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			// Differs from containerd: a client that goes away in the middle is an
			// error here, not the end of the bytes.
			return 0, fmt.Errorf("receive from the client: %w", err)
		}
		var data api.Data
		if err := unpack(a, &data); err != nil {
			return 0, err
		}
		r.granted -= len(data.Data)
		r.rest = data.Data
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// byteWriter sends bytes to a client as it grants them. Used by one goroutine.
type byteWriter struct {
	ctx     context.Context
	stream  *stream
	granted int

	mu      sync.Mutex
	pending int           // grants received and not taken up, protected by mu
	updated chan struct{} // capacity 1: pending has changed
	ended   chan struct{} // closed when the client grants no more
}

func newByteWriter(ctx context.Context, s *stream) *byteWriter {
	w := &byteWriter{ctx: ctx, stream: s, updated: make(chan struct{}, 1), ended: make(chan struct{})}
	// Ends with the stream, which its handler closes when the client leaves or
	// the transfer is over.
	go w.receiveGrants()
	return w
}

func (w *byteWriter) receiveGrants() {
	defer close(w.ended)
	for {
		a, err := w.stream.Recv()
		if err != nil {
			return
		}
		var update api.WindowUpdate
		if unpack(a, &update) != nil || update.Update <= 0 {
			return
		}
		w.mu.Lock()
		w.pending += int(update.Update)
		w.mu.Unlock()
		select {
		case w.updated <- struct{}{}:
		default:
		}
	}
}

func (w *byteWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		if err := w.awaitGrant(); err != nil {
			return written, err
		}
		n := min(len(p), w.granted, maxData)
		if err := w.stream.Send(&api.Data{Data: p[:n]}); err != nil {
			return written, fmt.Errorf("send to the client: %w", err)
		}
		w.granted -= n
		written += n
		p = p[n:]
	}
	return written, nil
}

func (w *byteWriter) awaitGrant() error {
	for {
		w.mu.Lock()
		w.granted += w.pending
		w.pending = 0
		w.mu.Unlock()
		if w.granted > 0 {
			return nil
		}
		select {
		case <-w.updated:
		case <-w.ended:
			return fmt.Errorf("the client takes no more bytes: %w", errdefs.ErrAborted)
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
}
