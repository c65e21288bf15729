// Package inflate decompresses gzip (RFC 1952) and DEFLATE (RFC 1951), for
// layers: long streams that are wanted as fast as one core can make them.
//
// It decodes into a large window that is handed out without a copy (WriteTo),
// keeps up to 64 bits of input in a register, takes two literals from one table
// entry where both codes are short, and copies matches eight bytes at a time.
// Those stores may write beyond the end of a match, within the slack of the
// window: see the constants. All bytes that are handed out were decoded.
//
// The input is read ahead in blocks, so a Reader takes more from its source
// than the stream is long, up to the end of the source: a stream ends where its
// source does, and several members one after another are one stream.
package inflate

import (
	"errors"
	"fmt"
	"io"
	"unsafe"
)

// ErrCorrupt is wrapped by every error that the stream itself causes, but for
// one that ends too early, which is io.ErrUnexpectedEOF.
var ErrCorrupt = errors.New("corrupt compressed data")

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

const (
	historySize = 32 << 10  // a distance reaches no further back
	outputSize  = 256 << 10 // decoded at a time
	inputSize   = 64 << 10

	// inputSlack bytes may be read beyond the input, zeros at its end: one turn
	// of the fast loop refills twice and consumes less than 16 bytes.
	inputSlack = 32
	// outputSlack bytes may be written by one turn of the fast loop: three
	// entries of two literals, a match of 258, and what wide stores exceed it by.
	outputSlack = 3*2 + 258 + 32
)

// decoder turns a DEFLATE stream into bytes. The zero value needs reset.
type decoder struct {
	src    io.Reader
	srcErr error // sticky: what src ended with

	in   [inputSize + inputSlack]byte
	ip   int // next byte of in
	iend int // end of what src gave; beyond it are zeros once src has ended

	bitbuf uint64
	bitcnt uint // valid low bits of bitbuf; the bits above are either zero or right

	out  [historySize + outputSize + outputSlack]byte
	o    int // end of what is decoded
	from int // what is decoded and not yet handed out begins here
	base int // the stream's first byte that is still there: no distance reaches before it

	state  state
	final  bool
	stored int // bytes left of a stored block

	lit  litTable
	dist distTable
}

type state uint8

const (
	stateHeader state = iota // a block header is next
	stateBlock               // within a compressed block
	stateStored              // within a stored block
	stateDone
)

func (d *decoder) reset(src io.Reader) {
	d.src, d.srcErr = src, nil
	d.ip, d.iend, d.bitbuf, d.bitcnt = 0, 0, 0, 0
	d.o, d.from, d.base = historySize, historySize, historySize
	d.begin()
}

// begin makes ready for the next DEFLATE stream of the same source.
func (d *decoder) begin() {
	d.state, d.final = stateHeader, false
	d.base = d.o
}

// more reads until there are inputSlack bytes of input, or its end.
func (d *decoder) more() error {
	if d.iend-d.ip >= inputSlack || d.srcErr != nil {
		return nil
	}
	keep := min(d.ip, 8) // unread gives back as many bytes as the bit buffer holds
	d.iend = copy(d.in[:], d.in[d.ip-keep:d.iend])
	d.ip = keep
	for empty := 0; d.iend-d.ip < inputSlack; {
		n, err := d.src.Read(d.in[d.iend:inputSize])
		if n < 0 || n > inputSize-d.iend {
			return errors.New("the source's Read returned an impossible count")
		}
		d.iend += n
		if err != nil {
			d.srcErr = err
			clear(d.in[d.iend : d.iend+inputSlack])
			if err != io.EOF {
				return err
			}
			return nil
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// overrun reports whether more was consumed than there was.
func (d *decoder) overrun() bool { return d.ip-int(d.bitcnt>>3) > d.iend }

// step decodes until the window is full or the stream has ended (stateDone).
func (d *decoder) step() error {
	if d.o >= historySize+outputSize {
		d.slide()
	}
	for d.state != stateDone {
		if err := d.more(); err != nil {
			return err
		}
		var err error
		before := d.o
		switch d.state {
		case stateHeader:
			if d.final {
				d.state = stateDone
				d.unread()
				continue
			}
			err = d.header()
		case stateBlock:
			err = d.block()
		case stateStored:
			err = d.storedBytes()
		}
		if d.overrun() {
			d.o = before
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if d.o >= historySize+outputSize {
			return nil
		}
	}
	return nil
}

// slide keeps the history and makes room behind it. All is handed out by now.
func (d *decoder) slide() {
	shift := d.o - historySize
	copy(d.out[:historySize], d.out[shift:d.o])
	d.o, d.from = historySize, historySize
	d.base = max(0, d.base-shift)
}

// refill brings bitcnt to 56 or more. Needs 8 bytes of input or slack.
func (d *decoder) refill() {
	d.bitbuf |= load64(&d.in[0], d.ip) << (d.bitcnt & 63)
	d.ip += int((63 - d.bitcnt) >> 3)
	d.bitcnt |= 56
}

func (d *decoder) bits(n uint) uint {
	v := uint(d.bitbuf) & (1<<n - 1)
	d.bitbuf >>= n
	d.bitcnt -= n
	return v
}

// unread gives whole bytes in the bit buffer back to the input, and drops the
// rest of a byte that was begun.
func (d *decoder) unread() {
	d.ip -= int(d.bitcnt >> 3)
	d.bitbuf, d.bitcnt = 0, 0
}

// header reads a block's header and, for dynamic codes, its tables.
func (d *decoder) header() error {
	d.refill()
	d.final = d.bits(1) == 1
	switch d.bits(2) {
	case 0:
		d.unread()
		n := int(d.in[d.ip]) | int(d.in[d.ip+1])<<8
		inverse := int(d.in[d.ip+2]) | int(d.in[d.ip+3])<<8
		d.ip += 4
		if d.ip > d.iend {
			return io.ErrUnexpectedEOF
		}
		if n != inverse^0xffff {
			return corrupt("a stored block's length and its complement differ")
		}
		d.stored, d.state = n, stateStored
		return nil
	case 1:
		d.fixed()
		d.state = stateBlock
		return nil
	case 2:
		d.state = stateBlock
		return d.dynamic()
	default:
		return corrupt("a block of the reserved type")
	}
}

// fixed sets the tables of RFC 1951, 3.2.6.
func (d *decoder) fixed() {
	var l [maxLitLen]uint8
	for i := range l {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		default:
			l[i] = 8
		}
	}
	build(d.lit[:], litBits, l[:], litEntry)
	pair(&d.lit)
	var dl [maxDist]uint8
	for i := range dl {
		dl[i] = 5
	}
	build(d.dist[:], distBits, dl[:], distEntry)
}

var clenOrder = [maxCodeLen]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block (RFC 1951, 3.2.7).
func (d *decoder) dynamic() error {
	nlit, ndist, nclen := int(d.bits(5))+257, int(d.bits(5))+1, int(d.bits(4))+4
	if nlit > 286 || ndist > 30 {
		return corrupt("a block declares more codes than there are symbols")
	}
	var cl [maxCodeLen]uint8
	for i := range nclen {
		if d.bitcnt < 3 {
			d.refill()
		}
		cl[clenOrder[i]] = uint8(d.bits(3))
	}
	var ct clenTable
	if !build(ct[:], clenBits, cl[:], clenEntry) {
		return corrupt("the code of the code lengths is no prefix code")
	}
	var lengths [maxLitLen + maxDist]uint8
	for i := 0; i < nlit+ndist; {
		if err := d.more(); err != nil {
			return err
		}
		d.refill()
		e := ct[d.bitbuf&(1<<clenBits-1)]
		if e&entryInvalid != 0 {
			return corrupt("a code length that has no code")
		}
		d.bits(uint(e & 63))
		sym := e >> 16
		if d.overrun() {
			return io.ErrUnexpectedEOF
		}
		if sym < 16 {
			lengths[i] = uint8(sym)
			i++
			continue
		}
		var v uint8
		var n int
		switch sym {
		case 16:
			if i == 0 {
				return corrupt("the first code length repeats one before it")
			}
			v, n = lengths[i-1], 3+int(d.bits(2))
		case 17:
			n = 3 + int(d.bits(3))
		default:
			n = 11 + int(d.bits(7))
		}
		if i+n > nlit+ndist {
			return corrupt("more code lengths than were declared")
		}
		for range n {
			lengths[i] = v
			i++
		}
	}
	if lengths[256] == 0 {
		return corrupt("a block whose end has no code")
	}
	if !build(d.lit[:], litBits, lengths[:nlit], litEntry) {
		return corrupt("the literal code is no prefix code")
	}
	pair(&d.lit)
	if !build(d.dist[:], distBits, lengths[nlit:nlit+ndist], distEntry) {
		return corrupt("the distance code is no prefix code")
	}
	return nil
}

func (d *decoder) storedBytes() error {
	n := min(d.stored, historySize+outputSize-d.o)
	if avail := d.iend - d.ip; avail > 0 {
		n = copy(d.out[d.o:d.o+n], d.in[d.ip:min(d.iend, d.ip+n)])
		d.ip += n
	} else if n > 0 {
		return io.ErrUnexpectedEOF // more() found nothing
	}
	d.o += n
	d.stored -= n
	if d.stored == 0 {
		d.state = stateHeader
	}
	return nil
}

// block is the fast loop. It returns when the block ends (stateHeader), the
// window is full, or the input runs low.
func (d *decoder) block() error {
	in, out := &d.in[0], &d.out[0]
	bitbuf, bitcnt, ip, o := d.bitbuf, d.bitcnt, d.ip, d.o
	lit, dist := &d.lit, &d.dist
	base := d.base
	iend := d.iend - inputSlack
	if d.srcErr != nil && d.ip > iend {
		// Near the end, beyond which zeros follow, one turn at a time, so that
		// step can drop what was decoded of them. What is not overrun has ip at
		// most 7 beyond the end, and one turn reads at most 23 bytes on from there.
		iend = d.ip
	}
	var err error
	for ip <= iend && o < historySize+outputSize {
		bitbuf |= load64(in, ip) << (bitcnt & 63)
		ip += int((63 - bitcnt) >> 3)
		bitcnt |= 56

		// Three entries of at most 11 bits leave 23 of 56: enough for the 20
		// of a length with its extra bits.
		e := lit[bitbuf&(1<<litBits-1)]
		if e&entryLiteral != 0 {
			bitbuf >>= e & 63
			bitcnt -= uint(e & 63)
			store16(out, o, uint16(e>>8))
			o += 1 + int(e>>30&1)
			e = lit[bitbuf&(1<<litBits-1)]
			if e&entryLiteral != 0 {
				bitbuf >>= e & 63
				bitcnt -= uint(e & 63)
				store16(out, o, uint16(e>>8))
				o += 1 + int(e>>30&1)
				e = lit[bitbuf&(1<<litBits-1)]
				if e&entryLiteral != 0 {
					bitbuf >>= e & 63
					bitcnt -= uint(e & 63)
					store16(out, o, uint16(e>>8))
					o += 1 + int(e>>30&1)
					continue
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entrySubtable != 0 {
				// 22 bits may be gone, and these are up to 15 more, and 5.
				bitbuf >>= e & 63
				bitcnt -= uint(e & 63)
				e = lit[int(e>>16)+int(bitbuf&(1<<(e>>8&15)-1))]
			}
			if e&entryLiteral != 0 {
				bitbuf >>= e & 63
				bitcnt -= uint(e & 63)
				store16(out, o, uint16(e>>8))
				o++
				continue
			}
			if e&entryEnd != 0 {
				bitbuf >>= e & 63
				bitcnt -= uint(e & 63)
				d.state = stateHeader
				break
			}
			if e&entryInvalid != 0 {
				err = corrupt("a length that has no code")
				break
			}
		}
		length := int(e>>16) + int(bitbuf&(1<<(e&63)-1)>>(e>>8&15))
		bitbuf >>= e & 63
		bitcnt -= uint(e & 63)

		if bitcnt < 28 { // 15 of the code and 13 extra
			bitbuf |= load64(in, ip) << (bitcnt & 63)
			ip += int((63 - bitcnt) >> 3)
			bitcnt |= 56
		}
		e = dist[bitbuf&(1<<distBits-1)]
		if e&entrySpecial != 0 {
			if e&entrySubtable != 0 {
				bitbuf >>= e & 63
				bitcnt -= uint(e & 63)
				e = dist[int(e>>16)+int(bitbuf&(1<<(e>>8&15)-1))]
			}
			if e&entryInvalid != 0 {
				err = corrupt("a distance that has no code")
				break
			}
		}
		distance := int(e>>16) + int(bitbuf&(1<<(e&63)-1)>>(e>>8&15))
		bitbuf >>= e & 63
		bitcnt -= uint(e & 63)
		s := o - distance
		if s < base {
			err = corrupt("a distance that reaches before the beginning")
			break
		}
		end := o + length
		switch {
		case distance >= 16:
			for {
				store64(out, o, load64(out, s))
				store64(out, o+8, load64(out, s+8))
				o += 16
				if o >= end {
					break
				}
				s += 16
			}
		case distance >= 8:
			for ; o < end; o, s = o+8, s+8 {
				store64(out, o, load64(out, s))
			}
		case distance == 1:
			v := uint64(*at(out, s)) * 0x0101010101010101
			for ; o < end; o += 8 {
				store64(out, o, v)
			}
		default:
			for ; o < end; o, s = o+1, s+1 {
				*at(out, o) = *at(out, s)
			}
		}
		o = end
	}
	d.bitbuf, d.bitcnt, d.ip, d.o = bitbuf, bitcnt, ip, o
	return err
}

// The accessors below do not check bounds: the constants above say why they
// stay within the arrays of the decoder. Both architectures that Berth is built
// for are little-endian and load unaligned words.

func at(p *byte, i int) *byte          { return (*byte)(unsafe.Add(unsafe.Pointer(p), i)) }
func load64(p *byte, i int) uint64     { return *(*uint64)(unsafe.Add(unsafe.Pointer(p), i)) }
func store64(p *byte, i int, v uint64) { *(*uint64)(unsafe.Add(unsafe.Pointer(p), i)) = v }
func store16(p *byte, i int, v uint16) { *(*uint16)(unsafe.Add(unsafe.Pointer(p), i)) = v }
