package inflate

import (
	"encoding/binary"
	"fmt"
)

var errDistance = fmt.Errorf("%w: distance too far back", ErrCorrupt)
var errCode = fmt.Errorf("%w: a code that means nothing", ErrCorrupt)

// codes decodes a compressed block until its end, until the output has reached
// limit, or until there may be too little input. Each round takes at most 48
// bits and two refills, so that padding bytes of input are enough for it, and
// writes at most slack bytes.
func (z *Reader) codes(limit int) error {
	var (
		in   = z.in
		out  = z.out
		pos  = z.pos
		bits = z.bits
		n    = z.nbits
		w    = z.w
		lit  = &z.tables.lit
		dst  = &z.tables.dst
		err  error
	)
	stop := z.end - padding/2
	if z.last {
		stop = z.end + padding/2 - 8 // into the padding, but never beyond it
	}
	stop = min(stop, len(in)-16)
	for w < limit && pos <= stop {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56

		e := lit[bits&(1<<litBits-1)]
		if e&kindLiteral != 0 {
			binary.LittleEndian.PutUint16(out[w:], uint16(e>>8))
			w += int(e>>24) & 3
			bits >>= e & 63
			n -= uint(e & 63)
			e = lit[bits&(1<<litBits-1)]
			if e&kindLiteral != 0 {
				binary.LittleEndian.PutUint16(out[w:], uint16(e>>8))
				w += int(e>>24) & 3
				bits >>= e & 63
				n -= uint(e & 63)
				e = lit[bits&(1<<litBits-1)]
				if e&kindLiteral != 0 {
					binary.LittleEndian.PutUint16(out[w:], uint16(e>>8))
					w += int(e>>24) & 3
					bits >>= e & 63
					n -= uint(e & 63)
					continue
				}
			}
		}
		// At least 34 bits are left: enough for a length, of at most 20.
		if e&kindOther != 0 {
			if e&kindSub != 0 {
				bits >>= litBits
				n -= litBits
				e = lit[(uint64(e>>8&0xffff)+bits&(1<<(e>>24&15)-1))&litMask]
				if e&kindLiteral != 0 {
					out[w] = byte(e >> 8)
					w++
					bits >>= e & 63
					n -= uint(e & 63)
					continue
				}
			}
			if e&kindOther != 0 {
				if e&kindEnd == 0 {
					err = errCode
					break
				}
				bits >>= e & 63
				n -= uint(e & 63)
				z.stage = atBlock
				break
			}
		}
		length := int(e>>8&0xffff) + int(bits&(1<<(e&63)-1)>>(e>>24&15))
		bits >>= e & 63
		n -= uint(e & 63)

		if n < 28 {
			bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		e = dst[bits&(1<<distBits-1)]
		if e&kindOther != 0 {
			if e&kindSub != 0 {
				bits >>= distBits
				n -= distBits
				e = dst[(uint64(e>>8&0xffff)+bits&(1<<(e>>24&15)-1))&distMask]
			}
			if e&kindOther != 0 {
				err = errCode
				break
			}
		}
		dist := int(e>>8&0xffff) + int(bits&(1<<(e&63)-1)>>(e>>24&15))
		bits >>= e & 63
		n -= uint(e & 63)
		from := w - dist
		if from < 0 {
			err = errDistance
			break
		}
		end := w + length
		if dist >= 16 {
			// Two words at once, which is all for most matches; the last ones may
			// reach past the end.
			for i := w; ; {
				a, b := out[i:i+16], out[from:from+16]
				lo, hi := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
				binary.LittleEndian.PutUint64(a, lo)
				binary.LittleEndian.PutUint64(a[8:], hi)
				if i += 16; i >= end {
					break
				}
				from += 16
			}
		} else if dist >= 8 {
			for i := w; i < end; i += 8 {
				binary.LittleEndian.PutUint64(out[i:], binary.LittleEndian.Uint64(out[from:]))
				from += 8
			}
		} else if dist == 1 {
			word := uint64(out[from]) * 0x0101010101010101
			for i := w; i < end; i += 8 {
				binary.LittleEndian.PutUint64(out[i:], word)
			}
		} else {
			for i := w; i < end; i++ {
				out[i] = out[i-dist]
			}
		}
		w = end
	}
	z.pos, z.bits, z.nbits, z.w = pos, bits, n, w
	return err
}
