package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// contentReader reads ranges. Ranges that follow one another are taken from
// one stream, so that reading a blob through is not a call for each buffer.
type contentReader struct {
	ctx    context.Context
	cancel context.CancelFunc // ends all streams
	client api.ContentClient
	digest digest.Digest
	size   int64

	mu  sync.Mutex   // held by the read that uses seq
	seq *rangeStream // to the end of the blob; nil at the start
}

func (r *contentReader) Size() int64 { return r.size }

func (r *contentReader) Close() error {
	r.cancel()
	return nil
}

// ReadAt may be called by many at once; one of them has the stream.
func (r *contentReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s from byte %d: %w", r.digest, off, errdefs.ErrInvalidArgument)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), r.size-off)
	n, err := r.readRange(p[:want], off)
	if err == nil && want < int64(len(p)) {
		err = io.EOF
	}
	return n, err
}

func (r *contentReader) readRange(p []byte, off int64) (int, error) {
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		if r.seq == nil && off == 0 {
			r.seq = r.openRange(0, 0)
		}
		if r.seq != nil && r.seq.next == off {
			return r.seq.read(p)
		}
	}
	one := r.openRange(off, int64(len(p)))
	defer one.cancel()
	return one.read(p)
}

// rangeStream is one Read call, read in order.
type rangeStream struct {
	stream api.Content_ReadClient
	cancel context.CancelFunc
	next   int64  // offset in the blob of what read returns next
	rest   []byte // received, not read yet
	err    error  // of the stream, for good
}

func (r *contentReader) openRange(off, size int64) *rangeStream {
	ctx, cancel := context.WithCancel(r.ctx)
	s := &rangeStream{cancel: cancel, next: off}
	s.stream, s.err = r.client.Read(ctx, &api.ReadContentRequest{Digest: r.digest.String(), Offset: off, Size: size})
	s.err = wire.FromStatus(s.err)
	return s
}

// read fills p, which lies within the blob.
func (s *rangeStream) read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(s.rest) == 0 {
			if s.err != nil {
				return n, s.err
			}
			msg, err := s.stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				s.err = io.ErrUnexpectedEOF // the blob is longer
			case err != nil:
				s.err = wire.FromStatus(err)
			default:
				s.rest = msg.Data
			}
			continue
		}
		m := copy(p[n:], s.rest)
		s.rest = s.rest[m:]
		s.next += int64(m)
		n += m
	}
	return n, nil
}
