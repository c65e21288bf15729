package archive

import (
	"bytes"
	"math"
	"strconv"
)

// sparse finds out whether the entry is a sparse file in one of GNU's four
// formats, and if so reads its map: then size is the apparent size, extents is
// what the data consists of.
func (r *reader) sparse(h []byte, over *overrides) error {
	e := &r.e
	var err error
	switch {
	case e.typ == typeGNUSparse:
		if string(h[257:265]) != gnuMagic {
			return errHeader
		}
		e.typ = typeReg
		err = r.oldSparseMap(h)
	case over.sparseMajor == "1" && over.sparseMinor == "0":
		over.sparseNames(e)
		err = r.sparseMapInData()
	case over.sparseMajor == "0" && (over.sparseMinor == "0" || over.sparseMinor == "1"),
		over.sparseMajor == "" && over.sparseMinor == "" && len(over.sparseMap) > 0:
		over.sparseNames(e)
		err = e.sparsePairs(over.sparseMap)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	e.sparse = true
	return e.checkExtents(r.left)
}

// sparseNames takes over name and size: in the header are made-up ones, for
// readers who know nothing of sparse files.
func (o *overrides) sparseNames(e *entry) {
	if o.sparseName != "" {
		e.name = o.sparseName
	}
	if o.has&hasSparseSize != 0 {
		e.size = o.sparseSize
	}
}

// checkExtents: in order, apart, within the file, and as much as is stored.
func (e *entry) checkExtents(stored int64) error {
	if e.size < 0 || e.size > maxFileSize {
		return errHeader
	}
	var end, sum int64
	for _, x := range e.extents {
		if x.offset < end || x.length < 0 || x.offset > math.MaxInt64-x.length || x.offset+x.length > e.size {
			return errHeader
		}
		end = x.offset + x.length
		sum += x.length
	}
	if sum != stored {
		return errHeader
	}
	return nil
}

// oldSparseMap reads the map of the old GNU format: four pieces in the header,
// more in blocks that follow it and are not counted in its size.
func (r *reader) oldSparseMap(h []byte) error {
	size, ok := number(h[483:495])
	if !ok {
		return errHeader
	}
	r.e.size = size
	more := h[482] != 0
	if err := r.e.oldExtents(h[386:482]); err != nil {
		return err
	}
	for more {
		b, err := r.s.full(blockSize, r.scratch[:])
		if err != nil {
			return truncated(unexpected(err))
		}
		more = b[504] != 0
		if err := r.e.oldExtents(b[:504]); err != nil {
			return err
		}
	}
	return nil
}

func (e *entry) oldExtents(b []byte) error {
	for ; len(b) >= 24 && b[0] != 0; b = b[24:] {
		offset, ok1 := number(b[:12])
		length, ok2 := number(b[12:24])
		if !ok1 || !ok2 || len(e.extents) == maxExtents {
			return errHeader
		}
		e.extents = append(e.extents, extent{offset, length})
	}
	return nil
}

// sparseMapInData reads the map of PAX sparse format 1.0: decimal lines at the
// front of the data, padded to a block.
func (r *reader) sparseMapInData() error {
	var block []byte
	line := func() (int64, error) {
		var digits []byte
		for {
			if len(block) == 0 {
				if r.left+r.pad < blockSize {
					return 0, errHeader
				}
				var err error
				if block, err = r.s.full(blockSize, r.scratch[:]); err != nil {
					return 0, truncated(unexpected(err))
				}
				// The map is counted in the size, its padding as well.
				if r.left -= blockSize; r.left < 0 {
					return 0, errHeader
				}
			}
			i := bytes.IndexByte(block, '\n')
			if i < 0 {
				digits, block = append(digits, block...), nil
			} else {
				digits, block = append(digits, block[:i]...), block[i+1:]
			}
			if len(digits) > 20 {
				return 0, errHeader
			}
			if i >= 0 {
				n, err := strconv.ParseInt(string(digits), 10, 64)
				if err != nil || n < 0 {
					return 0, errHeader
				}
				return n, nil
			}
		}
	}
	n, err := line()
	if err != nil {
		return err
	}
	if n > maxExtents {
		return errHeader
	}
	for range n {
		offset, err := line()
		if err != nil {
			return err
		}
		length, err := line()
		if err != nil {
			return err
		}
		r.e.extents = append(r.e.extents, extent{offset, length})
	}
	return nil
}

func (e *entry) sparsePairs(list []int64) error {
	if len(list)%2 != 0 || len(list)/2 > maxExtents {
		return errHeader
	}
	for i := 0; i < len(list); i += 2 {
		e.extents = append(e.extents, extent{list[i], list[i+1]})
	}
	return nil
}
