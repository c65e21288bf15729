package archive

import (
	"errors"
	"io"
)

// chunks hands out a byte stream in pieces, each valid until the next call. A
// piece is never empty; io.EOF ends the stream.
type chunks interface {
	next() ([]byte, error)
}

// chunksOf finds the chunks behind a reader, so that nothing need be copied.
func chunksOf(r io.Reader) chunks {
	if c, ok := r.(chunks); ok {
		return c
	}
	return &readChunks{r: r}
}

// readChunks are the chunks of a reader, in one buffer.
type readChunks struct {
	r   io.Reader
	buf []byte
}

const chunkSize = 256 << 10

func (c *readChunks) next() ([]byte, error) {
	if c.buf == nil {
		c.buf = make([]byte, chunkSize)
	}
	return fill(c.r, c.buf)
}

// fill reads until buf is full or the stream ends. An error waits until what
// was read before it has been handed out.
func fill(r io.Reader, buf []byte) ([]byte, error) {
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			if n > 0 {
				return buf[:n], nil
			}
			return nil, err
		}
	}
	return buf, nil
}

// stream is a position in chunks.
type stream struct {
	src  chunks
	rest []byte // of the current chunk
	err  error  // what ended the stream
}

// peek returns bytes that follow, at most n (> 0) and at least one.
func (s *stream) peek(n int64) ([]byte, error) {
	for len(s.rest) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		s.rest, s.err = s.src.next()
	}
	if n < int64(len(s.rest)) {
		return s.rest[:n], nil
	}
	return s.rest, nil
}

func (s *stream) advance(n int) { s.rest = s.rest[n:] }

// full returns the next n bytes, from the chunk itself when it has them, else
// in scratch. io.EOF when there is none, io.ErrUnexpectedEOF when there are
// fewer.
func (s *stream) full(n int, scratch []byte) ([]byte, error) {
	if len(s.rest) >= n {
		b := s.rest[:n]
		s.advance(n)
		return b, nil
	}
	got := 0
	for got < n {
		b, err := s.peek(int64(n - got))
		if err != nil {
			if errors.Is(err, io.EOF) && got > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		got += copy(scratch[got:n], b)
		s.advance(len(b))
	}
	return scratch[:n], nil
}

// skip drops n bytes.
func (s *stream) skip(n int64) error {
	for n > 0 {
		b, err := s.peek(n)
		if err != nil {
			return unexpected(err)
		}
		s.advance(len(b))
		n -= int64(len(b))
	}
	return nil
}

// unexpected turns the end of the stream into an error: more was announced.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
