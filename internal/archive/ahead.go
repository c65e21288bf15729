package archive

import (
	"errors"
	"io"
	"sync"
)

// aheadChunks is how many chunks are on their way at a time: a mebibyte and a
// half keeps two stages busy.
const aheadChunks = 6

// Ahead reads a stream ahead of who consumes it: one goroutine reads (and so
// decompresses), one shows every byte to tap (a digest), and the consumer
// takes them from there without another copy. Close it before what it reads
// from is given up.
type Ahead struct {
	free   chan []byte // empty buffers
	tapped chan piece
	stop   chan struct{}
	end    func()
	wg     sync.WaitGroup
	buf    []byte // whose chunk is out
	rest   []byte // for Read
	err    error
}

type piece struct {
	buf  []byte
	data []byte
	err  error
}

// NewAhead starts reading r to its end. tap sees all bytes in order, from
// another goroutine; it may be nil.
func NewAhead(r io.Reader, tap func([]byte)) *Ahead {
	a := &Ahead{
		free:   make(chan []byte, aheadChunks),
		tapped: make(chan piece, aheadChunks),
		stop:   make(chan struct{}),
	}
	a.end = sync.OnceFunc(func() { close(a.stop) })
	for range aheadChunks {
		a.free <- nil // allocated when it is needed: most layers are small
	}
	read := make(chan piece, aheadChunks)
	a.wg.Go(func() { a.read(r, read) })
	a.wg.Go(func() { a.show(read, tap) })
	return a
}

func (a *Ahead) read(r io.Reader, out chan<- piece) {
	defer close(out)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, chunkSize)
		}
		data, err := fill(r, buf)
		out <- piece{buf, data, err} // never blocks: there are no more buffers than places
		if err != nil {
			return
		}
	}
}

func (a *Ahead) show(in <-chan piece, tap func([]byte)) {
	defer close(a.tapped)
	for p := range in {
		if tap != nil && len(p.data) > 0 {
			tap(p.data)
		}
		a.tapped <- p
	}
}

// next is the stream of chunks that Apply takes.
func (a *Ahead) next() ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	if a.buf != nil {
		a.free <- a.buf
		a.buf = nil
	}
	p, ok := <-a.tapped
	if !ok {
		p.err = io.ErrClosedPipe
	}
	if p.err != nil {
		a.err = p.err
		return nil, a.err
	}
	a.buf = p.buf
	return p.data, nil
}

// Read is for consumers that are no tar reader.
func (a *Ahead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		b, err := a.next()
		if err != nil {
			return 0, err
		}
		a.rest = b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Drain takes the rest of the stream. Afterwards tap has seen all of it.
func (a *Ahead) Drain() error {
	for {
		if _, err := a.next(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Close returns when nothing reads any more. A read in progress is waited for.
func (a *Ahead) Close() error {
	a.end()
	a.wg.Wait()
	return nil
}
