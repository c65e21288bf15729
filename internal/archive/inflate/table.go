package inflate

import "math/bits"

// A decoding table is indexed by the next bits of the stream. Its entries are
// 32 bits wide:
//
//	0..5    bits to consume: of the code and, for lengths and distances, of the extra bits too
//	8..11   bits of the code alone (lengths, distances), or of the subtable's index
//	16..    base of a length or distance, or where the subtable begins
//
// and for literals, one or two of which stand in an entry:
//
//	8..15   the first literal
//	16..23  the second
//	30      there are two
//	31      it is literals
const (
	entryLiteral  = 1 << 31
	entryPair     = 1 << 30
	entrySubtable = 1 << 15
	entryEnd      = 1 << 14
	entryInvalid  = 1 << 13
	// Neither a literal nor an ordinary length or distance.
	entrySpecial = entrySubtable | entryEnd | entryInvalid

	maxCode    = 15 // bits of the longest code (RFC 1951, 3.2.7)
	litBits    = 11 // of the primary literal/length table
	distBits   = 8  // of the primary distance table
	clenBits   = 7  // of the code length table, which has no subtables
	maxLitLen  = 288
	maxDist    = 32
	maxCodeLen = 19
)

// Primary table and the most that subtables can take. A subtable serves codes
// that share their first bits; the sizes are the sums that an adversary can
// reach, plus some: insert checks against them all the same.
type (
	litTable  [1<<litBits + 2048]uint32
	distTable [1<<distBits + 1024]uint32
	clenTable [1 << clenBits]uint32
)

// Length and distance symbols (RFC 1951, 3.2.5).
var lengthBase = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
var lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
var distBase = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
var distExtra = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}

func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return entryLiteral | uint32(sym)<<8
	case sym == 256:
		return entryEnd
	case sym < 257+len(lengthBase):
		i := sym - 257
		return uint32(lengthBase[i])<<16 | uint32(lengthExtra[i])
	}
	return entryInvalid
}

func distEntry(sym int) uint32 {
	if sym < len(distBase) {
		return uint32(distBase[sym])<<16 | uint32(distExtra[sym])
	}
	return entryInvalid
}

func clenEntry(sym int) uint32 { return uint32(sym) << 16 }

// withCode completes an entry with the length of its code: for all but
// literals the number of extra bits stands in its low bits already.
func withCode(e uint32, length int) uint32 {
	if e&entryLiteral != 0 {
		return e | uint32(length)
	}
	return (e + uint32(length)) | uint32(length)<<8
}

// build fills a table for the code lengths of the symbols, and reports whether
// they are a code: not over-full, and complete but for the two that encoders
// make, no code at all (lengths is all zero) or one symbol of one bit.
func build(table []uint32, primary int, lengths []uint8, entry func(sym int) uint32) bool {
	var count [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	longest := maxCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	size := 1 << primary
	if longest == 0 {
		fill(table[:size], entryInvalid|1)
		return true
	}
	var next [maxCode + 2]int // where the symbols of a length begin, in the order of codes
	left := 1
	for l := 1; l <= longest; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		next[l+1] = next[l] + count[l]
	}
	if left > 0 {
		if longest != 1 || count[1] != 1 {
			return false
		}
		fill(table[:size], entryInvalid|1)
	}
	var sorted [maxLitLen]uint16
	for sym, l := range lengths {
		if l != 0 {
			sorted[next[l]] = uint16(sym)
			next[l]++
		}
	}

	// Codes are given out in order; the stream has them with their first bit
	// lowest, so they are counted up from the top bit.
	code, i := 0, 0
	length := 1
	for ; length <= primary && length <= longest; length++ {
		for range count[length] {
			e := withCode(entry(int(sorted[i])), length)
			for j := code; j < size; j += 1 << length {
				table[j] = e
			}
			code = increment(code, length)
			i++
		}
	}
	if length > longest {
		return true
	}
	end := size // of what is taken, subtables included
	prefix, start, sub := -1, 0, 0
	for ; length <= longest; length++ {
		for rest := count[length]; rest > 0; rest-- {
			if p := code & (size - 1); p != prefix {
				prefix, start = p, end
				// As many bits as the codes with this prefix need: the
				// subtable is full when the codes of the lengths up to there fill it.
				sub = length - primary
				space := 1<<sub - rest
				for space > 0 && primary+sub < longest {
					sub++
					space = space<<1 - count[primary+sub]
				}
				end = start + 1<<sub
				if end > len(table) {
					return false
				}
				table[prefix] = entrySubtable | uint32(start)<<16 | uint32(sub)<<8 | uint32(primary)
			}
			e := withCode(entry(int(sorted[i])), length-primary) // the primary bits are consumed by then
			for j := code >> primary; j < 1<<sub; j += 1 << (length - primary) {
				table[start+j] = e
			}
			code = increment(code, length)
			i++
		}
	}
	return true
}

// increment adds one to a code of that length whose first bit is the lowest.
func increment(code, length int) int {
	all := 1<<length - 1
	if code == all {
		return code
	}
	bit := 1 << (bits.Len(uint(code^all)) - 1) // the last bit of the code that is 0
	return code&(bit-1) | bit
}

func fill(t []uint32, e uint32) {
	for i := range t {
		t[i] = e
	}
}

// pair puts two literals into an entry where both codes fit into its index:
// what is left of the index after the first is looked up in the same table.
// Going down, the entry that is looked up, which is lower, is single yet.
func pair(t *litTable) {
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t[i]
		if e&entryLiteral == 0 {
			continue
		}
		n := e & 63
		e2 := t[i>>n]
		if e2&entryLiteral == 0 || e2&entryPair != 0 || n+e2&63 > litBits {
			continue
		}
		t[i] = (entryLiteral | entryPair | e&0xff00 | e2&0xff00<<8) | (n + e2&63)
	}
}
