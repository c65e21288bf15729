package boltx

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// One flush for a commit
//
// bolt writes the pages of a transaction to places that nobody uses, makes them
// durable, then writes the meta page that names them, and makes that durable:
// two flushes of the disk, one after the other, and most of the time that a
// record takes. Here pages and meta page are written without a flush in between
// and made durable by one. A power cut before its end can leave the meta page on
// disk without some of the pages, which bolt would not notice. So the meta page
// is written with a seal: which pages the transaction has written, and their
// checksum. The two are one write, since the kernel may write the page back at any
// moment, long before the flush (writeThrough). When
// a database is opened that was not closed, and the seal of the newest meta page
// does not match, then the flush had not ended and nobody was told of the
// transaction: the meta page is cleared, and bolt takes the other one, of the
// transaction before, whose pages are untouched and had been flushed. The pages
// under a seal that was flushed stay as they are until the next one was.
//
// What a transaction has written is found by comparing trees: the pages that the
// new root reaches and the old one does not. bolt never changes a page that the
// transaction before can reach, so a page known from it is the same with all that
// is below it, and neither walk goes into it: a commit looks at a handful of
// pages. A transaction of so many pages that they do not fit is flushed twice: its
// seal says first that it is not finished, then that it is.
//
// Only a power cut can tear a transaction: after the death of the process the
// kernel has all that was written. For others the file is a bolt file like any
// other; what they commit has no seal and needs none.
//
//	seal, at byte 1024 of a meta page, of which bolt uses the first 80:
//	  magic [8]byte, transaction u64, CRC-32C of the pages u32, size of the list u32,
//	  the list: for each run of pages, uvarint of those left out since the one before,
//	  uvarint of its length; then CRC-32C of all before u32.
//	  In place of a size, 0xffffffff: not finished. An empty list needs no check.
const (
	sealMagic  = "berthsl1"
	sealOffset = 1024
	sealHeader = 8 + 8 + 4 + 4
	sealSize   = 2048 // at most; a page of at least 3 KiB has room for it
	unfinished = 0xffffffff
)

func checksum(sum uint32, b []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), b)
}

// run is a row of pages.
type run struct{ first, n uint64 }

// seal tells what a transaction has written.
type seal struct {
	tx         uint64
	sum        uint32
	unfinished bool
	runs       []run
}

func (s seal) marshal() []byte {
	b := append(make([]byte, 0, sealHeader+64), sealMagic...)
	b = binary.LittleEndian.AppendUint64(b, s.tx)
	b = binary.LittleEndian.AppendUint32(b, s.sum)
	b = binary.LittleEndian.AppendUint32(b, 0)
	end := uint64(0)
	for _, r := range s.runs {
		b = binary.AppendUvarint(b, r.first-end)
		b = binary.AppendUvarint(b, r.n)
		end = r.first + r.n
	}
	size := uint32(len(b) - sealHeader)
	if s.unfinished {
		size = unfinished
	}
	binary.LittleEndian.PutUint32(b[sealHeader-4:], size)
	return binary.LittleEndian.AppendUint32(b, checksum(0, b))
}

// readSeal returns the seal of a meta page. It is not whole when it is damaged or
// for another transaction: a disk that writes a page by sectors was stopped
// between them. bolt leaves none when it writes the page by itself.
func readSeal(data []byte, m Meta) (s seal, found, whole bool) {
	at := m.Page*m.PageSize + sealOffset
	if m.PageSize < sealOffset+sealSize || len(data) < at+sealSize || string(data[at:at+len(sealMagic)]) != sealMagic {
		return s, false, false
	}
	s, whole = parseSeal(data[at:at+sealSize], m)
	return s, true, whole
}

func parseSeal(b []byte, m Meta) (s seal, ok bool) {
	s = seal{tx: binary.LittleEndian.Uint64(b[8:]), sum: binary.LittleEndian.Uint32(b[16:])}
	size := binary.LittleEndian.Uint32(b[20:])
	if s.unfinished = size == unfinished; s.unfinished {
		size = 0
	}
	end := sealHeader + uint64(size)
	if s.tx != m.Tx || end+4 > sealSize ||
		binary.LittleEndian.Uint32(b[end:]) != checksum(0, b[:end]) {
		return s, false
	}
	next := uint64(0)
	for list := b[sealHeader:end]; len(list) > 0; {
		gap, n1 := binary.Uvarint(list)
		n, n2 := binary.Uvarint(list[max(n1, 0):])
		if n1 <= 0 || n2 <= 0 || gap > m.Pages || n > m.Pages {
			return s, false
		}
		s.runs = append(s.runs, run{next + gap, n})
		next += gap + n
		list = list[n1+n2:]
	}
	return s, true
}

// holds tells whether the pages are those that were sealed.
func (s seal) holds(data []byte, pageSize int) bool {
	sum, size := uint32(0), uint64(pageSize)
	for _, r := range s.runs {
		if r.first+r.n > uint64(len(data))/size {
			return false
		}
		sum = checksum(sum, data[r.first*size:(r.first+r.n)*size])
	}
	return !s.unfinished && sum == s.sum
}

// delta compares the trees of two meta pages of a file and seals the newer one.
// known is the set of the pages that the older one reaches; afterwards it is that
// of the newer one.
func delta(data []byte, known pageSet, older, newer Meta) (pageSet, seal, error) {
	s := seal{tx: newer.Tx}
	shared := pageSet{}
	after := walk{data: data, Meta: newer, enter: func(id uint64) bool {
		if known.has(id) {
			shared = shared.add(id)
			return false
		}
		return true
	}, page: func(id, n uint64) { s.runs = append(s.runs, run{id, n}) }}
	if err := after.bucket(newer.Root, 0); err != nil {
		return known, s, err
	}
	before := walk{data: data, Meta: older, enter: func(id uint64) bool {
		return known.has(id) && !shared.has(id)
	}, page: func(id, n uint64) {
		for i := range n {
			known.remove(id + i)
		}
	}}
	if err := before.bucket(older.Root, 0); err != nil {
		return known, s, err
	}
	s.runs = joined(s.runs)
	size := uint64(newer.PageSize)
	for _, r := range s.runs {
		s.sum = checksum(s.sum, data[r.first*size:(r.first+r.n)*size])
		for i := range r.n {
			known = known.add(r.first + i)
		}
	}
	return known, s, nil
}

// joined sorts runs and makes one of those that touch.
func joined(runs []run) []run {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 && out[n-1].first+out[n-1].n == r.first {
			out[n-1].n += r.n
		} else {
			out = append(out, r)
		}
	}
	return out
}

// reached is the set of the pages below a meta page.
func reached(data []byte, m Meta) (set pageSet, err error) {
	w := walk{data: data, Meta: m, enter: func(uint64) bool { return true }, page: func(id, n uint64) {
		for i := range n {
			set = set.add(id + i)
		}
	}}
	return set, w.bucket(m.Root, 0)
}

// walk goes through the pages below a meta page, parents first. It visits at
// most as many as the file has, whatever the pages say.
type walk struct {
	data []byte
	Meta
	enter   func(id uint64) bool // whether to visit a page
	page    func(id, n uint64)   // n with those that overflow it
	visited uint64
}

func (w *walk) bucket(value []byte, depth int) error {
	if len(value) < BucketHeader {
		return damaged("a bucket has only %d bytes", len(value))
	}
	root := binary.LittleEndian.Uint64(value)
	if root == 0 {
		return nil // within the page: it holds no bucket that is not
	}
	return w.tree(root, depth)
}

func (w *walk) tree(id uint64, depth int) error {
	if depth > 2*MaxDepth {
		return damaged("page %d is more than %d levels deep", id, 2*MaxDepth)
	}
	if !w.enter(id) {
		return nil
	}
	size := uint64(w.PageSize)
	if id < 2 || id >= w.Pages || (id+1)*size > uint64(len(w.data)) {
		return damaged("page %d does not exist", id)
	}
	p := w.data[id*size:]
	n := uint64(binary.LittleEndian.Uint32(p[12:])) + 1
	w.visited += n
	if w.visited > w.Pages || n > w.Pages-id || n*size > uint64(len(p)) {
		return damaged("page %d, with %d more, does not exist", id, n-1)
	}
	p = p[:n*size]
	w.page(id, n)
	flags, count := binary.LittleEndian.Uint16(p[8:]), int(binary.LittleEndian.Uint16(p[10:]))
	if len(p) < pageHeader+count*elementSize || flags != pageLeaf && flags != pageBranch {
		return damaged("page %d has %d elements in %d bytes and the flags %#x", id, count, len(p), flags)
	}
	for i := range count {
		at := pageHeader + i*elementSize
		e := p[at : at+elementSize]
		var err error
		if flags == pageBranch {
			err = w.tree(binary.LittleEndian.Uint64(e[8:]), depth+1)
		} else if binary.LittleEndian.Uint32(e)&1 != 0 {
			var value []byte
			pos := binary.LittleEndian.Uint32(e[4:]) + binary.LittleEndian.Uint32(e[8:])
			if value, err = slice(p, at, pos, binary.LittleEndian.Uint32(e[12:])); err == nil {
				err = w.bucket(value, depth+1)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// undoTorn clears the newest meta page of a file when a power cut came before
// its transaction was flushed, and returns the number of the transaction, else
// 0. closed is the number of the last transaction when the database was last
// closed in order, 0 if that is not known: then all of it had been flushed, and a
// seal that does not match is damage, errdefs.ErrDataLoss.
func undoTorn(f *os.File, data []byte, closed uint64) (undone uint64, err error) {
	defer CatchFaults(&err)()
	metas := ReadMetas(data)
	if len(metas) != 2 || metas[0].Tx != metas[1].Tx+1 || metas[0].PageSize != metas[1].PageSize {
		return 0, nil
	}
	newer, older := metas[0], metas[1]
	mark, found, whole := readSeal(data, newer)
	if !found || closed == newer.Tx || whole && mark.holds(data, newer.PageSize) {
		return 0, nil
	}
	if err := NewFile(data, older).Verify(); err != nil {
		return 0, nil
	}
	if _, err := f.WriteAt(make([]byte, newer.PageSize), int64(newer.Page)*int64(newer.PageSize)); err != nil {
		return 0, fmt.Errorf("undo transaction %d, which was not finished: %w", newer.Tx, err)
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return 0, fmt.Errorf("undo transaction %d, which was not finished: %w", newer.Tx, err)
	}
	return newer.Tx, nil
}

// sealer makes transactions of an open database durable.
type sealer struct {
	f     *os.File
	view  *mapping
	last  Meta
	known pageSet // what last reaches
	size  int64   // of the file
	// unfinished: the seal of last does not tell what it has written
	unfinished bool
	failed     error // once set, known is not to be relied on

	noSync bool // see DB.NoSync
}

const (
	// The file grows by growBy when less than growAt of it was never used. The
	// new part is written, not only reserved: a page that has its place on the
	// disk is made durable without the filesystem's journal.
	growBy = 1 << 20
	growAt = 256 << 10
)

func newSealer(f *os.File, view *mapping) (s *sealer, err error) {
	defer CatchFaults(&err)()
	s = &sealer{f: f, view: view}
	data, err := s.all()
	if err != nil {
		return nil, err
	}
	metas := ReadMetas(data)
	if len(metas) == 0 {
		return nil, damaged("no meta page is valid")
	}
	s.last = metas[0]
	s.known, err = reached(data, s.last)
	return s, err
}

// all is the file as it is now.
func (s *sealer) all() ([]byte, error) {
	st, err := s.f.Stat()
	if err != nil {
		return nil, err
	}
	s.size = st.Size()
	return s.view.upTo(s.size)
}

// writeAt is how bolt writes: pages first, then the meta page that names them,
// which gets its seal here. It is called with a lock of bolt's held, and must not
// panic. After an error no transaction may be committed any more.
func (s *sealer) writeAt(b []byte, off int64) (n int, err error) {
	if off >= 2*int64(s.last.PageSize) {
		return s.f.WriteAt(b, off)
	}
	if err := s.seal(b, int(off)/s.last.PageSize); err != nil {
		s.failed = err
		return 0, err
	}
	if n, err = s.f.WriteAt(b, off); err != nil {
		s.failed = err
	}
	return n, err
}

// seal puts the seal into a meta page that is about to be written.
func (s *sealer) seal(page []byte, number int) (err error) {
	defer CatchFaults(&err)()
	if len(page) != s.last.PageSize {
		return damaged("a meta page has %d bytes", len(page))
	}
	newer, ok := parseMeta(page[pageHeader:], number)
	if !ok || newer.Tx <= s.last.Tx {
		return damaged("the meta page that is to be written is not valid")
	}
	data, err := s.all()
	if err != nil {
		return err
	}
	known, mark, err := delta(data, s.known, s.last, newer)
	if err != nil {
		return err
	}
	b := mark.marshal()
	if s.unfinished = len(b) > sealSize; s.unfinished {
		b = seal{tx: mark.tx, unfinished: true}.marshal()
	}
	copy(page[sealOffset:], b)
	s.last, s.known = newer, known
	return nil
}

// flush makes what bolt has written durable. After an error nothing more may be
// written: the kernel tells of a failed write once, and then takes the pages for
// clean.
func (s *sealer) flush() error {
	if err := s.sync(); err != nil || !s.unfinished {
		return err
	}
	at := int64(s.last.Page)*int64(s.last.PageSize) + sealOffset
	if _, err := s.f.WriteAt(seal{tx: s.last.Tx}.marshal(), at); err != nil {
		return err
	}
	return s.sync()
}

func (s *sealer) sync() error {
	if s.noSync {
		return nil
	}
	return unix.Fdatasync(int(s.f.Fd()))
}

// grow makes room for the next commits. Without it they make their own.
func (s *sealer) grow() {
	if int64(s.last.Pages)*int64(s.last.PageSize)+growAt < s.size {
		return
	}
	if _, err := s.f.WriteAt(make([]byte, growBy), s.size); err == nil {
		s.size += growBy
	}
}
