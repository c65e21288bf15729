package inflate

import (
	"bytes"
	"hash/crc32"
	"io"
)

// Reader decompresses gzip streams. Reset makes it ready for another source, so
// that its window (some 400 KiB) can be kept for the next layer. It is for one
// goroutine.
type Reader struct {
	d   decoder
	err error // sticky

	inMember bool
	crc      uint32
	size     uint32 // of the member so far, modulo 2^32 as the trailer has it
}

// NewReader reads the first member's header and returns a Reader.
func NewReader(src io.Reader) (*Reader, error) {
	z := new(Reader)
	return z, z.Reset(src)
}

// Reset begins anew with another source, and reads its first header.
func (z *Reader) Reset(src io.Reader) error {
	z.d.reset(src)
	z.err, z.inMember = nil, false
	z.err = z.header()
	if z.err == io.EOF {
		z.err = io.ErrUnexpectedEOF
	}
	return z.err
}

// Read is io.Reader's.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := z.next(len(p))
	return copy(p, b), err
}

// WriteTo writes all that follows to w, a window at a time and without a copy.
// w must not keep what it is given.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		b, err := z.next(outputSize + outputSlack)
		if len(b) > 0 {
			n, werr := w.Write(b)
			total += int64(n)
			if werr != nil {
				return total, werr
			}
			if n < len(b) {
				return total, io.ErrShortWrite
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// next returns at least one and at most n decoded bytes, valid until the next
// call, or an error.
func (z *Reader) next(n int) ([]byte, error) {
	for z.d.from == z.d.o {
		if z.err != nil {
			return nil, z.err
		}
		z.err = z.advance()
	}
	b := z.d.out[z.d.from:min(z.d.o, z.d.from+n)]
	z.d.from += len(b)
	return b, nil
}

// advance decodes on, over the end of a member into the next.
func (z *Reader) advance() error {
	if !z.inMember {
		return z.header()
	}
	before := z.d.o
	if before >= historySize+outputSize {
		before = historySize // where slide will put what follows
	}
	err := z.d.step()
	made := z.d.out[before:z.d.o]
	z.crc = crc32.Update(z.crc, crc32.IEEETable, made)
	z.size += uint32(len(made))
	if err != nil || z.d.state != stateDone {
		return err
	}
	z.inMember = false
	var t [8]byte
	for i := range t {
		if t[i], err = z.d.readByte(); err != nil {
			return unexpected(err)
		}
	}
	if le32(t[:4]) != z.crc {
		return corrupt("the checksum does not match")
	}
	if le32(t[4:]) != z.size {
		return corrupt("the size does not match")
	}
	return nil
}

// readByte takes a byte of the input between DEFLATE streams.
func (d *decoder) readByte() (byte, error) {
	if err := d.more(); err != nil {
		return 0, err
	}
	if d.ip >= d.iend {
		return 0, io.EOF
	}
	d.ip++
	return d.in[d.ip-1], nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// Flags of a member's header (RFC 1952, 2.3.1).
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 0xe0
)

// maxHeader bounds what a header's optional fields may take.
const maxHeader = 1 << 20

// header reads a member's header; io.EOF when the source ends before it.
func (z *Reader) header() error {
	first, err := z.d.readByte()
	if err != nil {
		return err
	}
	head := []byte{first}
	take := func() (byte, error) {
		if len(head) > maxHeader {
			return 0, corrupt("the gzip header does not end")
		}
		b, err := z.d.readByte()
		if err != nil {
			return 0, unexpected(err)
		}
		head = append(head, b)
		return b, nil
	}
	for len(head) < 10 {
		if _, err := take(); err != nil {
			return err
		}
	}
	if !bytes.Equal(head[:3], []byte{0x1f, 0x8b, 8}) {
		return corrupt("no gzip header")
	}
	flags := head[3]
	if flags&flagReserved != 0 {
		return corrupt("the gzip header has reserved flags")
	}
	if flags&flagExtra != 0 {
		lo, err := take()
		if err != nil {
			return err
		}
		hi, err := take()
		if err != nil {
			return err
		}
		for range int(lo) | int(hi)<<8 {
			if _, err := take(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		for flags&flag != 0 {
			b, err := take()
			if err != nil {
				return err
			}
			if b == 0 {
				break
			}
		}
	}
	if flags&flagHeaderCRC != 0 {
		want := uint16(crc32.ChecksumIEEE(head))
		lo, err := take()
		if err != nil {
			return err
		}
		hi, err := take()
		if err != nil {
			return err
		}
		if uint16(lo)|uint16(hi)<<8 != want {
			return corrupt("the gzip header's checksum does not match")
		}
	}
	z.d.begin()
	z.inMember, z.crc, z.size = true, 0, 0
	return nil
}
