package inflate

import "math/bits"

const (
	maxLit  = 286
	maxDist = 30

	litBits  = 11
	distBits = 8
	clenBits = 7
	maxBits  = 15

	litMask  = 1<<12 - 1 // of the whole table, subtables included
	distMask = 1<<10 - 1
)

// An entry of the tables for literals and lengths, and for distances, is
//
//	bits 0-5    bits to drop: the code's, and of lengths and distances the extra bits too
//	bits 8-23   literals: one or two of them; base of a length or distance;
//	            start of a subtable
//	bits 24-27  literals: how many; length or distance: the code's bits alone;
//	            subtable: bits of its index
//	bits 28-31  what it is
//
// An entry that is 0 but for kindOther belongs to no code.
const (
	kindLiteral = 1 << 31
	kindOther   = 1 << 30 // none of the others: see below
	kindSub     = 1 << 29 // with kindOther: go on in a subtable
	kindEnd     = 1 << 28 // with kindOther: end of block
)

type tables struct {
	lit  [litMask + 1]uint32
	dst  [distMask + 1]uint32
	clen [1 << clenBits]uint16 // symbol<<4 | bits; 0 is no code
	// isFixed tells that lit and dst are those of the fixed codes.
	isFixed bool
}

var lengthBase = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
var lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
var distBase = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
var distExtra = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}

// litEntry is the entry of a symbol without the bits of its code.
func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return kindLiteral | 1<<24 | uint32(sym)<<8
	case sym == 256:
		return kindOther | kindEnd
	case sym < maxLit:
		return uint32(lengthBase[sym-257])<<8 | uint32(lengthExtra[sym-257])
	}
	return kindOther // 286 and 287 exist in the fixed code only, and mean nothing
}

func distEntry(sym int) uint32 {
	if sym < maxDist {
		return uint32(distBase[sym])<<8 | uint32(distExtra[sym])
	}
	return kindOther
}

// withBits adds the bits of its code to an entry.
func withBits(e uint32, n uint8) uint32 {
	if e&(kindLiteral|kindOther) != 0 {
		return e | uint32(n)
	}
	return (e + uint32(n)) | uint32(n)<<24
}

func (t *tables) fixed() {
	if t.isFixed {
		return
	}
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	build(t.lit[:], litBits, lens[:], litEntry)
	pair(&t.lit)
	var dlens [32]uint8
	for i := range dlens {
		dlens[i] = 5
	}
	build(t.dst[:], distBits, dlens[:], distEntry)
	t.isFixed = true
}

func (t *tables) litlen(lens []uint8) bool {
	t.isFixed = false
	ok := build(t.lit[:], litBits, lens, litEntry)
	if ok {
		pair(&t.lit)
	}
	return ok
}

func (t *tables) dist(lens []uint8) bool {
	return build(t.dst[:], distBits, lens, distEntry)
}

// pair puts a second literal into the entries of those whose code leaves
// enough bits of the index to tell it.
func pair(t *[litMask + 1]uint32) {
	// From the top down: an entry depends on ones at lower indexes, which still
	// hold one literal.
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t[i]
		if e&kindLiteral == 0 {
			continue
		}
		n := e & 63
		next := t[uint(i)>>n]
		if next&kindLiteral != 0 && n+next&63 <= litBits {
			t[i] = kindLiteral | 2<<24 | (next>>8&0xff)<<16 | e&0xff00 | (n + next&63)
		}
	}
}

// lengths builds the table of the code of the code lengths.
func (t *tables) lengths(lens []uint8) bool {
	clear(t.clen[:])
	codes, ok := assign(lens)
	if !ok {
		return false
	}
	for sym, n := range lens {
		if n == 0 {
			continue
		}
		for j := int(codes.next(n)); j < len(t.clen); j += 1 << n {
			t.clen[j] = uint16(sym)<<4 | uint16(n)
		}
	}
	return true
}

// codes hands out the codes of a canonical Huffman code, bits reversed.
type codes struct{ at [maxBits + 1]uint16 }

func (c *codes) next(n uint8) uint16 {
	v := c.at[n]
	c.at[n]++
	return bits.Reverse16(v) >> (16 - n)
}

// assign makes the code of these lengths (RFC 1951, 3.2.2); false when there is
// no such code: too many codes, or too few. As in the standard library, one
// code of one bit may stand alone, and no code at all is a code that fails when
// it is used.
func assign(lens []uint8) (codes, bool) {
	var count [maxBits + 1]int
	for _, n := range lens {
		count[n]++
	}
	used := len(lens) - count[0]
	count[0] = 0
	var c codes
	code := 0
	for n := 1; n <= maxBits; n++ {
		code = (code + count[n-1]) << 1
		c.at[n] = uint16(code)
		if code+count[n] > 1<<n {
			return c, false
		}
	}
	complete := code+count[maxBits] == 1<<maxBits
	return c, complete || used == 0 || used == 1 && count[1] == 1
}

// build fills a table that is indexed by the next `direct` bits; longer codes
// lead to subtables behind it.
func build(table []uint32, direct uint8, lens []uint8, entry func(int) uint32) bool {
	c, ok := assign(lens)
	if !ok {
		return false
	}
	size := 1 << direct
	complete := false
	var rev [288]uint16
	long := false
	for sym, n := range lens {
		if n == 0 {
			continue
		}
		rev[sym] = c.next(n)
		complete = complete || n > 1
		long = long || n > direct
	}
	if !complete { // of at most two codes of one bit: some entries may be no code
		for i := range table[:size] {
			table[i] = kindOther
		}
	}
	for sym, n := range lens {
		if n == 0 || n > direct {
			continue
		}
		e := withBits(entry(sym), n)
		for j := int(rev[sym]); j < size; j += 1 << n {
			table[j] = e
		}
	}
	return !long || subtables(table, direct, lens, &rev, entry)
}

// subtables adds what build needs for codes that are longer than the index.
func subtables(table []uint32, direct uint8, lens []uint8, rev *[288]uint16, entry func(int) uint32) bool {
	free := 1 << direct
	var deepest [1 << litBits]uint8
	for sym, n := range lens {
		if n > direct {
			p := int(rev[sym]) & (1<<direct - 1)
			deepest[p] = max(deepest[p], n-direct)
		}
	}
	var starts [1 << litBits]uint16
	for sym, n := range lens {
		if n <= direct {
			continue
		}
		p := int(rev[sym]) & (1<<direct - 1)
		depth := deepest[p]
		if starts[p] == 0 {
			if free+1<<depth > len(table) {
				return false
			}
			starts[p] = uint16(free)
			table[p] = kindOther | kindSub | uint32(depth)<<24 | uint32(free)<<8 | uint32(direct)
			free += 1 << depth
		}
		e := withBits(entry(sym), n-direct)
		sub := table[starts[p] : int(starts[p])+1<<depth]
		for j := int(rev[sym]) >> direct; j < len(sub); j += 1 << (n - direct) {
			sub[j] = e
		}
	}
	return true
}
