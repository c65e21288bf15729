package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"berth/internal/archive/inflate"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression of an archive.
type Compression string

const (
	Uncompressed Compression = ""
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
)

// Detect tells a compression by the first bytes of a stream.
func Detect(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd // a skippable frame comes first
	}
	return Uncompressed
}

const (
	readAhead = 64 << 10
	// maxWindow bounds the memory that a zstd stream can ask for; what
	// "zstd --long" writes is within it.
	maxWindow = 128 << 20
)

// Decompress returns what r holds, whichever compression its first bytes show,
// and that compression. Closing the result does not close r. Errors about the
// compressed data are errdefs.ErrInvalidArgument; those of r come through.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	src := &source{r: r}
	b := bufio.NewReaderSize(src, readAhead)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	switch c := Detect(head); c {
	case Gzip:
		z, err := inflate.NewReader(b)
		if err != nil {
			return nil, "", src.blame(c, err)
		}
		return &decompressor{Reader: z, close: func() error { return nil }, src: src, kind: c}, c, nil
	case Zstd:
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, "", src.blame(c, err)
		}
		return &decompressor{Reader: z, close: func() error { z.Close(); return nil }, src: src, kind: c}, c, nil
	default:
		return io.NopCloser(b), c, nil
	}
}

// source remembers its own error, to tell it from one of the decompressor.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) blame(c Compression, err error) error {
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("%s stream: %w: %w", c, unexpected(err), errdefs.ErrInvalidArgument)
}

type decompressor struct {
	io.Reader
	close func() error
	src   *source
	kind  Compression
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.src.blame(d.kind, err)
	}
	return n, err
}

func (d *decompressor) Close() error { return d.close() }

// Compress returns a writer whose output goes to w. Closing it ends the
// compressed stream and does not close w. The output depends on the input alone.
func Compress(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Uncompressed:
		return nopCloser{w}, nil
	case Gzip:
		return gzip.NewWriter(w), nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nil, fmt.Errorf("compression %q: %w", c, errdefs.ErrNotImplemented)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
