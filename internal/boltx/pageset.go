package boltx

// pageSet is a set of page numbers. Those that are used lie close together.
type pageSet []uint64

func (s pageSet) has(id uint64) bool {
	return id/64 < uint64(len(s)) && s[id/64]&(1<<(id%64)) != 0
}

// add returns the set with a page, which must be one that the file can have.
func (s pageSet) add(id uint64) pageSet {
	for uint64(len(s)) <= id/64 {
		s = append(s, 0)
	}
	s[id/64] |= 1 << (id % 64)
	return s
}

func (s pageSet) remove(id uint64) {
	if id/64 < uint64(len(s)) {
		s[id/64] &^= 1 << (id % 64)
	}
}
