package boltx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A reader of bolt files that trusts nothing. bolt itself panics on a damaged
// file, in goroutines of its own too, where nothing can catch it; so a file is
// looked through before bolt opens it, and what can be saved is read here.
//
//	page     id u64, flags u16, count u16, overflow u32, then count elements
//	branch   element: position u32, key size u32, page u64
//	leaf     element: flags u32 (1: a bucket), position u32, key size u32, value size u32
//	         positions count from the element's own start
//	bucket   a leaf's value: root page u64, sequence u64; root 0: a leaf page follows at once
//	meta     pages 0 and 1: magic u32, version u32, page size u32, flags u32, root bucket,
//	         freelist page u64, pages in use u64, transaction u64, FNV-1a of all before u64
//
// Numbers have the machine's byte order, little-endian on all that Berth runs on.
const (
	pageHeader   = 16
	elementSize  = 16
	BucketHeader = 16
	metaSize     = 64

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = math.MaxUint64

	// MaxDepth bounds the nesting of buckets and the height of a tree, both
	// far above what the schema and any file need.
	MaxDepth = 64
)

// Meta is one of the two meta pages.
type Meta struct {
	Page     int // 0 or 1
	PageSize int
	Root     []byte // bucket header
	Freelist uint64
	Pages    uint64 // in use, those that are free among them
	Tx       uint64
}

// File is a bolt file in memory, seen through one of its meta pages.
type File struct {
	data []byte
	Meta
	seen   pageSet // visited; nil: pages may be visited again
	visits uint64  // their number, when seen is nil
}

// Map maps a file for reading. The caller must be ready for faults (see
// CatchFaults) until it has called unmap.
func Map(f *os.File) (data []byte, unmap func(), err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if st.Size() == 0 {
		return nil, func() {}, nil
	}
	data, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return data, func() { _ = unix.Munmap(data) }, nil
}

// ReadMetas returns the valid meta pages, the newest first.
func ReadMetas(data []byte) (metas []Meta) {
	add := func(page, pageSize int) {
		if m, ok := readMeta(data, page, pageSize); ok {
			metas = append(metas, m)
		}
	}
	if m, ok := readMeta(data, 0, 0); ok {
		metas = append(metas, m)
		add(1, m.PageSize)
	} else {
		for size := 1 << 10; size <= 1<<16 && len(metas) == 0; size <<= 1 {
			add(1, size)
		}
	}
	slices.SortFunc(metas, func(a, b Meta) int {
		if a.Tx > b.Tx {
			return -1
		}
		return 1
	})
	return metas
}

func readMeta(data []byte, page, pageSize int) (m Meta, ok bool) {
	start := page*pageSize + pageHeader
	if len(data) < start+metaSize {
		return m, false
	}
	m, ok = parseMeta(data[start:start+metaSize], page)
	return m, ok && (page == 0 || m.PageSize == pageSize) && len(data) >= 2*m.PageSize
}

// parseMeta reads what follows the header of a meta page.
func parseMeta(b []byte, page int) (m Meta, ok bool) {
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8])
	m = Meta{
		Page:     page,
		PageSize: int(binary.LittleEndian.Uint32(b[8:])),
		Root:     bytes.Clone(b[16:32]),
		Freelist: binary.LittleEndian.Uint64(b[32:]),
		Pages:    binary.LittleEndian.Uint64(b[40:]),
		Tx:       binary.LittleEndian.Uint64(b[48:]),
	}
	size := m.PageSize
	return m, binary.LittleEndian.Uint32(b) == boltMagic &&
		binary.LittleEndian.Uint32(b[4:]) == boltVersion &&
		binary.LittleEndian.Uint64(b[56:]) == sum.Sum64() &&
		size >= 1<<10 && size <= 1<<16 && size&(size-1) == 0
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
}

// VerifyNewest looks through everything that the newest meta page reaches.
// When it finds no fault, bolt finds none either.
func VerifyNewest(data []byte) (Meta, error) {
	metas := ReadMetas(data)
	if len(metas) == 0 {
		return Meta{}, damaged("neither of the two meta pages is valid (the file has %d bytes)", len(data))
	}
	return metas[0], NewFile(data, metas[0]).Verify()
}

// NewFile is the file as one of its meta pages sees it. It is for one walk: no
// page may be visited twice.
func NewFile(data []byte, m Meta) *File {
	return &File{data: data, Meta: m, seen: make(pageSet, min(m.Pages, uint64(len(data)/m.PageSize))/64+1)}
}

// Verify looks through everything that the meta page reaches.
func (f *File) Verify() error {
	if f.Pages > uint64(len(f.data)/f.PageSize) {
		return damaged("%d pages are in use, the file ends after %d", f.Pages, len(f.data)/f.PageSize)
	}
	if err := f.verifyBucket(f.Root, 0); err != nil {
		return err
	}
	return f.verifyFreelist()
}

func (f *File) verifyBucket(value []byte, depth int) error {
	if depth > MaxDepth {
		return damaged("buckets are nested more than %d deep", MaxDepth)
	}
	return f.Bucket(value, func(_, value []byte, isBucket bool) error {
		if isBucket {
			return f.verifyBucket(value, depth+1)
		}
		return nil
	}, func(err error) error { return err })
}

func (f *File) verifyFreelist() error {
	if f.Freelist == noFreelist {
		return nil
	}
	p, flags, count, err := f.page(f.Freelist)
	if err != nil {
		return err
	}
	ids := p[pageHeader:]
	if flags != pageFreelist {
		return damaged("page %d should be the free list, its flags are %#x", f.Freelist, flags)
	}
	if count == 0xFFFF { // the first entry is the count
		if len(ids) < 8 || binary.LittleEndian.Uint64(ids) > uint64(len(ids)/8-1) {
			return damaged("the free list is longer than its pages")
		}
		count, ids = int(binary.LittleEndian.Uint64(ids)), ids[8:]
	}
	if count > len(ids)/8 {
		return damaged("the free list is longer than its pages")
	}
	for i := range count {
		id := binary.LittleEndian.Uint64(ids[8*i:])
		if err := f.visit(id, 0); err != nil {
			return fmt.Errorf("free list: %w", err)
		}
	}
	return nil
}

// EachFunc is called for the elements of a bucket. Its slices alias the file.
type EachFunc func(key, value []byte, isBucket bool) error

// BadFunc is called for a page that cannot be used; the walk goes on without
// it when it returns nil.
type BadFunc func(error) error

// Bucket walks through the elements of one bucket in their order.
func (f *File) Bucket(value []byte, each EachFunc, bad BadFunc) error {
	if len(value) < BucketHeader {
		return bad(damaged("a bucket has only %d bytes", len(value)))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return f.tree(root, nil, nil, 0, each, bad)
	}
	inline := value[BucketHeader:]
	if len(inline) < pageHeader || binary.LittleEndian.Uint16(inline[8:]) != pageLeaf {
		return bad(damaged("a small bucket is no leaf"))
	}
	count := int(binary.LittleEndian.Uint16(inline[10:]))
	return f.leaf(inline, count, nil, nil, false, each, bad)
}

// tree walks below a page whose keys are at least low and below high (nil: no
// bound).
func (f *File) tree(id uint64, low, high []byte, depth int, each EachFunc, bad BadFunc) error {
	if depth > MaxDepth {
		return bad(damaged("page %d is more than %d levels deep", id, MaxDepth))
	}
	p, flags, count, err := f.page(id)
	if err != nil {
		return bad(err)
	}
	switch flags {
	case pageLeaf:
		return f.leaf(p, count, low, high, true, each, bad)
	case pageBranch:
	default:
		return bad(damaged("page %d has the flags %#x, branch or leaf is expected", id, flags))
	}
	if count == 0 || len(p) < pageHeader+count*elementSize {
		return bad(damaged("branch page %d has %d elements in %d bytes", id, count, len(p)))
	}
	keys, pages := make([][]byte, count), make([]uint64, count)
	for i := range count {
		at := pageHeader + i*elementSize
		e := p[at:]
		pages[i] = binary.LittleEndian.Uint64(e[8:])
		if keys[i], err = slice(p, at, binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])); err != nil {
			return bad(fmt.Errorf("branch page %d: %w", id, err))
		}
		if i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 || outside(keys[i], low, high) {
			return bad(damaged("the keys of branch page %d are out of order", id))
		}
	}
	for i := range count {
		next := high
		if i+1 < count {
			next = keys[i+1]
		}
		if err := f.tree(pages[i], keys[i], next, depth+1, each, bad); err != nil {
			return err
		}
	}
	return nil
}

// leaf walks through the elements of a leaf, which may be buckets if nested.
func (f *File) leaf(p []byte, count int, low, high []byte, nested bool, each EachFunc, bad BadFunc) error {
	if len(p) < pageHeader+count*elementSize {
		return bad(damaged("a leaf has %d elements in %d bytes", count, len(p)))
	}
	var last []byte
	for i := range count {
		at := pageHeader + i*elementSize
		e := p[at:]
		flags, pos := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
		ksize, vsize := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		key, err := slice(p, at, pos, ksize)
		if err != nil {
			return bad(err)
		}
		value, err := slice(p, at, pos+ksize, vsize)
		if err != nil || pos+ksize < pos {
			return bad(damaged("the value of %q lies outside its page", key))
		}
		if flags > 1 || len(key) == 0 || i > 0 && bytes.Compare(last, key) >= 0 || outside(key, low, high) {
			return bad(damaged("leaf element %d, %q, is out of order", i, key))
		}
		if flags == 1 && !nested {
			return bad(damaged("a small bucket contains a bucket, %q", key))
		}
		last = key
		if err := each(key, value, flags == 1); err != nil {
			return err
		}
	}
	return nil
}

func outside(key, low, high []byte) bool {
	return low != nil && bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0
}

// slice returns size bytes at pos, which counts from the element at at. They
// must not overlap the header.
func slice(p []byte, at int, pos, size uint32) ([]byte, error) {
	start := uint64(at) + uint64(pos)
	end := start + uint64(size)
	if end > uint64(len(p)) || start < pageHeader {
		return nil, damaged("an element lies outside its page")
	}
	return p[start:end:end], nil
}

// page returns a page with its overflow pages, each of which may be visited
// only once in a walk.
func (f *File) page(id uint64) (p []byte, flags uint16, count int, err error) {
	if id < 2 || id >= f.Pages || (id+1)*uint64(f.PageSize) > uint64(len(f.data)) {
		return nil, 0, 0, damaged("page %d does not exist", id)
	}
	start := id * uint64(f.PageSize)
	p = f.data[start : start+uint64(f.PageSize)]
	overflow := uint64(binary.LittleEndian.Uint32(p[12:]))
	if got := binary.LittleEndian.Uint64(p); got != id {
		return nil, 0, 0, damaged("page %d says that it is page %d", id, got)
	}
	if err := f.visit(id, overflow); err != nil {
		return nil, 0, 0, err
	}
	end := start + (overflow+1)*uint64(f.PageSize)
	return f.data[start:end:end], binary.LittleEndian.Uint16(p[8:]), int(binary.LittleEndian.Uint16(p[10:])), nil
}

func (f *File) visit(id, overflow uint64) error {
	if id < 2 || id >= f.Pages || overflow >= f.Pages-id || (id+overflow+1)*uint64(f.PageSize) > uint64(len(f.data)) {
		return damaged("page %d, with %d more, does not exist", id, overflow)
	}
	if f.seen == nil {
		// A cycle would take for ever: who reads goes through the file a few times.
		if f.visits++; f.visits > 8*f.Pages+1024 {
			return damaged("page %d and others are used many times", id)
		}
		return nil
	}
	for ; ; id++ {
		if f.seen.has(id) {
			return damaged("page %d is used twice", id)
		}
		f.seen = f.seen.add(id)
		if overflow == 0 {
			return nil
		}
		overflow--
	}
}
