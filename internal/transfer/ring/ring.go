// Package ring hands the blocks of a stream from one writer to one reader
// without copying them: between the network and the unpacker of a layer stands a
// ring of large blocks, big enough that hand-offs are rare, small enough that all
// layers in work together stay within a few tens of megabytes. A full ring stops
// the writer (back-pressure).
package ring

import (
	"errors"
	"io"
	"sync"
)

const (
	// Size of a block in bytes.
	Size   = 256 << 10
	blocks = 8
)

// Block is one that is filled up to N.
type Block struct {
	Buf *[Size]byte
	N   int
}

// Ring hands blocks from one writer to one reader without copying them.
type Ring struct {
	pool *sync.Pool
	full chan Block
	// gone is closed when the reader has left: what is written is dropped.
	gone chan struct{}
	left sync.Once
	err  error // set before full is closed; what the reader gets at the end

	cur  Block // the reader's
	off  int
	last error
}

// New makes a ring whose blocks come from and go to the pool.
func New(pool *sync.Pool) *Ring {
	return &Ring{pool: pool, full: make(chan Block, blocks), gone: make(chan struct{})}
}

// Block returns an empty block to be filled and given to Write, or to Drop.
func (p *Ring) Block() Block {
	if b, ok := p.pool.Get().(*[Size]byte); ok {
		return Block{Buf: b}
	}
	return Block{Buf: new([Size]byte)}
}

// Drop gives a block back that is not written.
func (p *Ring) Drop(b Block) { p.pool.Put(b.Buf) }

// Write hands a block to the reader and waits while the ring is full.
func (p *Ring) Write(b Block) {
	select {
	case p.full <- b:
	case <-p.gone:
		p.Drop(b)
	}
}

// Close ends the stream: the reader gets err, or io.EOF when it is nil.
func (p *Ring) Close(err error) {
	p.err = err
	close(p.full)
}

var errReaderGone = errors.New("the reader of this stream has left")

// Read implements io.Reader for the one reader.
func (p *Ring) Read(b []byte) (int, error) {
	for p.off == p.cur.N {
		if p.last != nil {
			return 0, p.last
		}
		if p.cur.Buf != nil {
			p.Drop(p.cur)
			p.cur, p.off = Block{}, 0
		}
		next, ok := <-p.full
		if !ok {
			if p.last = p.err; p.last == nil {
				p.last = io.EOF
			}
			return 0, p.last
		}
		p.cur = next
	}
	n := copy(b, p.cur.Buf[p.off:p.cur.N])
	p.off += n
	return n, nil
}

// Leave is called by the reader when it will not read any more.
func (p *Ring) Leave() {
	p.left.Do(func() {
		close(p.gone)
		if p.cur.Buf != nil {
			p.Drop(p.cur)
		}
		p.cur, p.off, p.last = Block{}, 0, errReaderGone
	})
}
