// Package inflate decompresses gzip streams (RFC 1951, RFC 1952) fast: image
// layers are gzip for the most part, and their decompression is what a pull
// spends most of its time on.
//
// It owns the bit reader, the Huffman tables and the window; nothing else. What
// makes it fast: 64 bits are read at a time; a table entry holds one or two
// literals, or a length with its extra bits; output goes straight into a large
// buffer that is its own window. It needs no slow path for the ends of input
// and output: input is padded with zeros behind its end (and what was decoded
// from the padding is an error afterwards), output has room for the longest
// match behind the mark where decoding stops.
//
// Streams are hostile: every code must be complete (or the one that RFC 1951
// lets be incomplete), every distance must lead to what was written, sizes are
// fixed. The tests compare it with the standard library on arbitrary bytes.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	window = 32 << 10
	// chunk is how much is decoded before it is handed out.
	chunk = 128 << 10
	// slack is what one round of the decoder may write past its mark: literals,
	// the longest match, and the rest of the last word.
	slack = 320

	inputSize = 64 << 10
	// padding follows the input's end: what one round of the decoder may read.
	padding = 32
)

// Errors of streams. Those of the reader that is read from come through.
var (
	// ErrCorrupt: the stream is not what it should be.
	ErrCorrupt = errors.New("corrupt gzip stream")
	// ErrChecksum: what was decompressed is not what was compressed.
	ErrChecksum = fmt.Errorf("%w: wrong checksum or size", ErrCorrupt)
)

// stage is where in a stream the reader is.
type stage uint8

const (
	atMember stage = iota // before a gzip header
	atBlock               // before a block header
	inStored              // in a stored block
	inCodes               // in a compressed block
	atEnd                 // of everything
)

// Reader decompresses. It is used by one goroutine.
type Reader struct {
	src io.Reader
	err error // what Read returns once out is empty

	// in[pos:end] is input that was not taken into the bit buffer; padding zeros
	// follow it once last is set.
	in       []byte
	pos, end int
	last     bool
	srcErr   error

	bits  uint64
	nbits uint

	// out[:w] is what was written, out[r:w] what is to be handed out.
	out  []byte
	w, r int

	stage  stage
	final  bool // the block is the member's last one
	stored int  // bytes left in a stored block
	began  bool // some member was read
	crc    uint32
	size   uint32

	tables tables
}

// NewReader returns a reader of the gzip stream that r is, of all its members,
// to its end. It reads ahead. The first header is read at the first Read.
func NewReader(r io.Reader) *Reader {
	return &Reader{
		src: r,
		in:  make([]byte, inputSize+padding),
		out: make([]byte, window+chunk+slack),
	}
}

// Close gives the buffers back; it does not close the source.
func (z *Reader) Close() error {
	z.err, z.r, z.w = io.ErrClosedPipe, 0, 0
	return nil
}

// Read implements io.Reader. The checksum of a member is verified before its
// last bytes' end is reported.
func (z *Reader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if z.r == z.w {
			if z.err != nil {
				break
			}
			z.err = z.decode()
			continue
		}
		m := copy(p[n:], z.out[z.r:z.w])
		z.r += m
		n += m
	}
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, z.err
}

// Next hands out what was decompressed next, without a copy: it is valid until
// the next call, never empty, and ends with io.EOF.
func (z *Reader) Next() ([]byte, error) {
	for z.r == z.w {
		if z.err != nil {
			return nil, z.err
		}
		z.err = z.decode()
	}
	b := z.out[z.r:z.w]
	z.r = z.w
	return b, nil
}

// decode writes more output, at least a byte unless it fails or the stream ends.
// All that was written before has been handed out.
func (z *Reader) decode() error {
	if z.w > window {
		copy(z.out, z.out[z.w-window:z.w])
		z.w = window
	}
	z.r = z.w
	start := z.w
	err := z.run()
	if z.w > start {
		b := z.out[start:z.w]
		z.crc = crc32.Update(z.crc, crc32.IEEETable, b)
		z.size += uint32(len(b))
	}
	return err
}

// run decodes until there is a chunk of output, or output before a member's end.
func (z *Reader) run() error {
	limit := len(z.out) - slack
	for start := z.w; z.w < limit; {
		switch z.stage {
		case atMember:
			return z.header() // which begins the output anew
		case atBlock:
			if z.final {
				if z.w > start {
					return nil // its checksum comes first
				}
				if err := z.trailer(); err != nil {
					return err
				}
				continue
			}
			if err := z.blockHeader(); err != nil {
				return err
			}
		case inStored:
			if err := z.copyStored(limit); err != nil {
				return err
			}
		case inCodes:
			if err := z.more(padding); err != nil {
				return err
			}
			if err := z.codes(limit); err != nil {
				return err
			}
			if err := z.overrun(); err != nil {
				return err
			}
		case atEnd:
			return io.EOF
		}
	}
	return nil
}

// more makes sure that at least n bytes of input are there, unless it ends.
func (z *Reader) more(n int) error {
	if z.end-z.pos >= n || z.last {
		return nil
	}
	keep := int(z.nbits >> 3) // align may give these back
	copy(z.in, z.in[z.pos-keep:z.end])
	z.end -= z.pos - keep
	z.pos = keep
	for empty := 0; z.end < n && !z.last; {
		m, err := z.src.Read(z.in[z.end:inputSize])
		z.end += m
		switch {
		case err == io.EOF:
			z.last = true
		case err != nil:
			z.last, z.srcErr = true, err
		case m == 0:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
		if z.last {
			clear(z.in[z.end : z.end+padding])
		}
	}
	return nil
}

// overrun tells whether what was decoded lies behind the input's end.
func (z *Reader) overrun() error {
	if z.last && z.pos*8-int(z.nbits) > z.end*8 {
		return z.short()
	}
	return nil
}

// short is the error of a stream that ends too early.
func (z *Reader) short() error {
	if z.srcErr != nil {
		return z.srcErr
	}
	return io.ErrUnexpectedEOF
}

// align drops the bits up to the next byte, and gives whole bytes back.
func (z *Reader) align() {
	z.pos -= int(z.nbits >> 3)
	z.bits, z.nbits = 0, 0
}

// bytes takes the next n bytes of input, which the stream is aligned to.
func (z *Reader) bytes(n int) ([]byte, error) {
	if err := z.more(n); err != nil {
		return nil, err
	}
	if z.end-z.pos < n {
		return nil, z.short()
	}
	b := z.in[z.pos : z.pos+n]
	z.pos += n
	return b, nil
}

// header reads the header of a member (RFC 1952, 2.3), or finds the end.
func (z *Reader) header() error {
	if err := z.more(1); err != nil {
		return err
	}
	if z.pos == z.end {
		if z.srcErr != nil {
			return z.srcErr
		}
		if !z.began {
			return io.ErrUnexpectedEOF
		}
		z.stage = atEnd
		return nil
	}
	h, err := z.bytes(10)
	if err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return fmt.Errorf("%w: no gzip header", ErrCorrupt)
	}
	flags := h[3]
	crc := crc32.ChecksumIEEE(h)
	take := func(n int) ([]byte, error) {
		b, err := z.bytes(n)
		crc = crc32.Update(crc, crc32.IEEETable, b)
		return b, err
	}
	if flags&4 != 0 { // extra field
		b, err := take(2)
		if err != nil {
			return err
		}
		for n := int(binary.LittleEndian.Uint16(b)); n > 0; {
			m := min(n, 4096)
			if _, err := take(m); err != nil {
				return err
			}
			n -= m
		}
	}
	for _, f := range []byte{8, 16} { // name, comment
		for n := 0; flags&f != 0; n++ {
			b, err := take(1)
			if err != nil {
				return err
			}
			if b[0] == 0 {
				break
			}
			if n > 64<<10 {
				return fmt.Errorf("%w: name or comment without an end", ErrCorrupt)
			}
		}
	}
	if flags&2 != 0 { // checksum of the header
		want := uint16(crc)
		b, err := z.bytes(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != want {
			return fmt.Errorf("%w: wrong checksum of the header", ErrCorrupt)
		}
	}
	z.began, z.final, z.stage = true, false, atBlock
	z.crc, z.size = 0, 0
	// Nothing of an earlier member may be referred to.
	z.w, z.r = 0, 0
	return nil
}

// trailer verifies a member that was read.
func (z *Reader) trailer() error {
	z.align()
	b, err := z.bytes(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != z.crc || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return ErrChecksum
	}
	z.stage = atMember
	return nil
}

// need makes sure that n (<= 48) bits are in the bit buffer.
func (z *Reader) need(n uint) error {
	if z.nbits >= n {
		return nil
	}
	if err := z.more(16); err != nil {
		return err
	}
	z.refill()
	return z.overrun()
}

func (z *Reader) refill() {
	z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.nbits
	z.pos += int((63 - z.nbits) >> 3)
	z.nbits |= 56
}

func (z *Reader) take(n uint) uint {
	v := uint(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	return v
}

// blockHeader reads what precedes a block's data (RFC 1951, 3.2.3).
func (z *Reader) blockHeader() error {
	if err := z.need(3); err != nil {
		return err
	}
	z.final = z.take(1) == 1
	switch z.take(2) {
	case 0:
		if err := z.overrun(); err != nil {
			return err
		}
		z.align()
		b, err := z.bytes(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b)
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return fmt.Errorf("%w: length of a stored block", ErrCorrupt)
		}
		z.stored, z.stage = int(n), inStored
		return nil
	case 1:
		z.tables.fixed()
	case 2:
		if err := z.dynamic(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: type of a block", ErrCorrupt)
	}
	z.stage = inCodes
	return z.overrun()
}

// copyStored copies a stored block, or what there is room and input for.
func (z *Reader) copyStored(limit int) error {
	if z.stored == 0 {
		z.stage = atBlock
		return nil
	}
	if err := z.more(1); err != nil {
		return err
	}
	if z.pos == z.end {
		return z.short()
	}
	n := copy(z.out[z.w:limit], z.in[z.pos:min(z.end, z.pos+z.stored)])
	z.w += n
	z.pos += n
	z.stored -= n
	return nil
}

// codeOrder is the order of the code lengths' code lengths (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block that brings its own.
func (z *Reader) dynamic() error {
	if err := z.need(14); err != nil {
		return err
	}
	nlit, ndist, nclen := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if nlit > maxLit || ndist > maxDist {
		return fmt.Errorf("%w: number of codes", ErrCorrupt)
	}
	var lens [maxLit + maxDist]uint8
	for _, i := range codeOrder[:nclen] {
		if err := z.need(3); err != nil {
			return err
		}
		lens[i] = uint8(z.take(3))
	}
	if !z.tables.lengths(lens[:19]) {
		return fmt.Errorf("%w: code of code lengths", ErrCorrupt)
	}
	clear(lens[:19])
	total := nlit + ndist
	for i := 0; i < total; {
		if err := z.need(7 + 7); err != nil {
			return err
		}
		e := z.tables.clen[z.bits&(1<<clenBits-1)]
		if e == 0 {
			return fmt.Errorf("%w: code length", ErrCorrupt)
		}
		z.take(uint(e & 15))
		sym := e >> 4
		var v uint8
		n := 1
		switch sym {
		default:
			v = uint8(sym)
		case 16:
			if i == 0 {
				return fmt.Errorf("%w: repetition of nothing", ErrCorrupt)
			}
			v, n = lens[i-1], 3+int(z.take(2))
		case 17:
			n = 3 + int(z.take(3))
		case 18:
			n = 11 + int(z.take(7))
		}
		if i+n > total {
			return fmt.Errorf("%w: too many code lengths", ErrCorrupt)
		}
		for ; n > 0; n-- {
			lens[i] = v
			i++
		}
	}
	if !z.tables.litlen(lens[:nlit]) || !z.tables.dist(lens[nlit:total]) {
		return fmt.Errorf("%w: codes of a block", ErrCorrupt)
	}
	return nil
}
