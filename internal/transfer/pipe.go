package transfer

import (
	"errors"
	"io"
	"sync"
)

// Between the network and the unpacker stands a ring of large blocks: big
// enough that hand-offs are rare, small enough that all layers in work together
// stay within a few tens of megabytes. A full ring stops the reading from the
// network (back-pressure).
const (
	blockSize = 256 << 10
	ringSize  = 8
)

type block struct {
	buf *[blockSize]byte
	n   int
}

// pipe hands blocks from one writer to one reader without copying them.
type pipe struct {
	pool *sync.Pool
	full chan block
	// gone is closed when the reader has left: what is written is dropped.
	gone chan struct{}
	left sync.Once
	err  error // set before full is closed; what the reader gets at the end

	cur  block // the reader's
	off  int
	last error
}

func newPipe(pool *sync.Pool) *pipe {
	return &pipe{pool: pool, full: make(chan block, ringSize), gone: make(chan struct{})}
}

// block returns an empty block to be filled and given to write, or to drop.
func (p *pipe) block() block {
	if b, ok := p.pool.Get().(*[blockSize]byte); ok {
		return block{buf: b}
	}
	return block{buf: new([blockSize]byte)}
}

func (p *pipe) drop(b block) { p.pool.Put(b.buf) }

// write hands a block to the reader and waits while the ring is full.
func (p *pipe) write(b block) {
	select {
	case p.full <- b:
	case <-p.gone:
		p.drop(b)
	}
}

// close ends the stream: the reader gets err, or io.EOF when it is nil.
func (p *pipe) close(err error) {
	p.err = err
	close(p.full)
}

var errReaderGone = errors.New("the reader of this stream has left")

// Read implements io.Reader for the one reader.
func (p *pipe) Read(b []byte) (int, error) {
	for p.off == p.cur.n {
		if p.last != nil {
			return 0, p.last
		}
		if p.cur.buf != nil {
			p.drop(p.cur)
			p.cur, p.off = block{}, 0
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
	n := copy(b, p.cur.buf[p.off:p.cur.n])
	p.off += n
	return n, nil
}

// leave is called by the reader when it will not read any more.
func (p *pipe) leave() {
	p.left.Do(func() {
		close(p.gone)
		if p.cur.buf != nil {
			p.drop(p.cur)
		}
		p.cur, p.off, p.last = block{}, 0, errReaderGone
	})
}
