package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// A large blob begins on one connection. When that one is slow of itself, and
// not because its reader is, others fetch the pieces that follow, as far as
// their memory allows: over long distances, and where a server limits each
// connection, that multiplies the rate.
const (
	minPieced    = 16 << 20
	defaultPiece = 4 << 20
	// trial is how much is read, at least, before the rate is judged; slowRate,
	// in bytes per second, is what a connection is slow below.
	trial    = 2 << 20
	slowRate = 24 << 20
)

// pieces reads a blob over several connections. It is the reader of one
// goroutine.
type pieces struct {
	head   *blob // reads up to its end, then pieces follow
	size   int64 // of a piece
	max    int   // pieces under way
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	ahead []*piece // in order; the first begins where head, or the piece before, ends
	next  int64    // where the first piece that was not begun starts
	cur   *piece
	err   error // that ended the reading: what follows is not what comes next

	eager  bool // do not judge the rate
	judged bool // it was, or must not be any more
	read   int64
	waited time.Duration
}

// piece is one that is fetched into memory.
type piece struct {
	start int64
	buf   []byte
	done  chan struct{} // closed when buf is full or err is set
	err   error
	off   int // read so far
}

// newPieces goes on from a blob that is open at its end.
func newPieces(head *blob) *pieces {
	opts := head.remote.opts
	p := &pieces{head: head, size: opts.Chunk, max: opts.Connections, eager: opts.Chunk > 0, next: head.end}
	if p.size <= 0 {
		p.size = defaultPiece
	}
	p.size = min(p.size, head.remote.network.budget/2)
	p.ctx, p.cancel = context.WithCancel(head.ctx)
	return p
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.readOn(b)
	p.err = err
	return n, err
}

func (p *pieces) readOn(b []byte) (int, error) {
	for {
		if p.cur != nil {
			if n := copy(b, p.cur.buf[p.cur.off:]); n > 0 || len(b) == 0 {
				p.cur.off += n
				return n, nil
			}
			p.drop([]*piece{p.cur})
			p.cur = nil
		}
		if p.head.at < p.head.end {
			return p.readHead(b)
		}
		p.head.Close() // what else it would send comes in pieces
		if len(p.ahead) == 0 {
			if p.next >= p.head.desc.Size {
				return 0, io.EOF
			}
			p.judged = false
			if err := p.goOn(); err != nil {
				return 0, err
			}
			continue
		}
		first := p.ahead[0]
		p.begin()
		<-first.done
		p.ahead = p.ahead[1:]
		if errors.Is(first.err, errNoParts) {
			// It gave parts before, but not this one.
			p.next, p.judged = first.start, true
			p.drop(append(p.ahead, first))
			p.ahead = nil
			if err := p.goOn(); err != nil {
				return 0, err
			}
			continue
		}
		if first.err != nil {
			p.drop([]*piece{first})
			return 0, first.err
		}
		p.cur = first
	}
}

// readHead reads from the one connection and finds out whether it is slow.
func (p *pieces) readHead(b []byte) (int, error) {
	if p.judged {
		if p.next < p.head.desc.Size {
			p.begin()
		}
		return p.head.Read(b)
	}
	began := time.Now()
	n, err := p.head.Read(b)
	p.waited += time.Since(began)
	p.read += int64(n)
	left := p.head.end - p.head.at
	switch {
	case err != nil:
	case left < 2*p.size:
		p.judged = true
	case p.eager || p.read >= trial:
		if p.eager || float64(p.read) < slowRate*p.waited.Seconds() {
			p.split()
		} else if p.read >= 4*trial {
			p.read, p.waited = 0, 0 // it may become slow
		}
	}
	return n, err
}

// split leaves the next piece to the connection that is open and begins those
// after it, if the server gives parts.
func (p *pieces) split() {
	at := p.head.at + p.size
	first := p.part(at, at+min(p.size, p.head.desc.Size-at))
	if err := first.open(); err != nil {
		p.judged = true // one connection it is
		return
	}
	if !p.launch(first) {
		first.Close() // no memory for it now
		p.read, p.waited = 0, 0
		return
	}
	p.head.end, p.judged, p.next = at, true, first.end
	p.begin()
}

// part is a blob that begins in the middle and must not send what is before.
func (p *pieces) part(at, end int64) *blob {
	return &blob{ctx: p.ctx, remote: p.head.remote, desc: p.head.desc, at: at, end: end, since: at, part: true}
}

// begin starts as many pieces as may be under way.
func (p *pieces) begin() {
	for len(p.ahead) < p.max-1 && p.next < p.head.desc.Size {
		from := p.part(p.next, min(p.next+p.size, p.head.desc.Size))
		if !p.launch(from) {
			return
		}
		p.next = from.end
	}
}

// launch fetches a piece in the background; false when there is no memory for it.
func (p *pieces) launch(from *blob) bool {
	c := &piece{start: from.at, done: make(chan struct{})}
	if c.buf = p.head.remote.network.piece(from.end - from.at); c.buf == nil {
		return false
	}
	p.ahead = append(p.ahead, c)
	p.wg.Go(func() {
		defer close(c.done)
		c.err = c.fetch(from)
	})
	return true
}

func (c *piece) fetch(from *blob) error {
	if from.body == nil {
		if err := from.open(); err != nil {
			return err
		}
	}
	defer from.Close()
	_, err := io.ReadFull(from, c.buf)
	return err
}

// drop gives the memory of pieces back when nobody fetches into it any more.
func (p *pieces) drop(all []*piece) {
	for _, c := range all {
		<-c.done
		p.head.remote.network.release(c.buf)
	}
}

// goOn reads the rest over one connection: there is no memory for pieces now.
func (p *pieces) goOn() error {
	p.head.Close()
	p.head = &blob{ctx: p.head.ctx, remote: p.head.remote, desc: p.head.desc, at: p.next, end: p.head.desc.Size, since: p.next}
	p.next, p.read, p.waited = p.head.end, 0, 0
	return p.head.open()
}

func (p *pieces) Close() error {
	p.cancel()
	err := p.head.Close()
	p.wg.Wait()
	p.drop(p.ahead)
	if p.cur != nil {
		p.drop([]*piece{p.cur})
	}
	p.ahead, p.cur = nil, nil
	return err
}
