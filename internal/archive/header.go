package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits of what an archive may ask for. Real layers stay far below.
const (
	maxName     = 4096      // bytes in a path, the kernel's PATH_MAX
	maxDepth    = 512       // directories in a path: each costs a file descriptor
	maxSpecial  = 1 << 20   // bytes in a PAX header or a GNU long name
	maxExtents  = 1 << 20   // pieces of a sparse file
	maxEntries  = 8 << 20   // entries of an archive
	maxDevices  = 64 << 10  // device nodes of an archive
	maxKept     = 256 << 20 // bytes of paths that must be remembered to the end
	maxFileSize = 1 << 50   // apparent size of a sparse file
)

const gnuMagic = "ustar  \x00"

const (
	blockSize     = 512
	typeReg       = '0'
	typeRegOld    = 0
	typeLink      = '1'
	typeSym       = '2'
	typeChar      = '3'
	typeBlock     = '4'
	typeDir       = '5'
	typeFifo      = '6'
	typeCont      = '7' // a contiguous file: to us a regular one
	typePAX       = 'x'
	typeGlobal    = 'g'
	typeGNUName   = 'L'
	typeGNULink   = 'K'
	typeGNUSparse = 'S'
)

// entry is a member of an archive.
type entry struct {
	typ          byte
	name         string // as it is written in the archive
	link         string
	mode         int64
	uid, gid     int64
	size         int64 // of the file; what a sparse one has stored is less
	mtime, atime unix.Timespec
	major, minor int64
	xattrs       []xattr
	sparse       bool
	extents      []extent // of a sparse file: what is stored of it, in order
}

type xattr struct{ name, value string }

// extent is a piece of a sparse file that is stored.
type extent struct{ offset, length int64 }

// reader reads ustar, GNU, PAX and old archives. It differs from archive/tar in
// that it allocates next to nothing per entry, hands out data without copying
// it, tells where a sparse file has holes, and has limits.
type reader struct {
	s       stream
	left    int64 // stored bytes of the current entry not yet taken
	pad     int64
	entries int
	devices int
	e       entry
	scratch [blockSize]byte
	special []byte
}

var errHeader = fmt.Errorf("malformed tar header: %w", errdefs.ErrInvalidArgument)

// next goes to the next entry, which is valid until the call after. io.EOF at
// the end of the archive.
func (r *reader) next() (*entry, error) {
	if err := r.s.skip(r.left); err != nil {
		return nil, truncated(err)
	}
	// An archive that just stops may lack the padding of its last entry too.
	if err := r.s.skip(r.pad); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	r.left, r.pad = 0, 0
	r.e = entry{xattrs: r.e.xattrs[:0], extents: r.e.extents[:0]}
	var over overrides
	for {
		h, err := r.header()
		if err != nil {
			return nil, err
		}
		if r.entries++; r.entries > maxEntries {
			return nil, fmt.Errorf("more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
		}
		typ := h[156]
		size, ok := number(h[124:136])
		if !ok || size < 0 && !noData(typ) {
			return nil, errHeader
		}
		switch typ {
		case typeGNUName, typeGNULink:
			b, err := r.readSpecial(size)
			if err != nil {
				return nil, err
			}
			if typ == typeGNUName {
				over.gnuName = cString(b)
			} else {
				over.gnuLink = cString(b)
			}
		case typePAX:
			b, err := r.readSpecial(size)
			if err != nil {
				return nil, err
			}
			over.reset(&r.e)
			if err := over.parse(b, &r.e); err != nil {
				return nil, err
			}
		case typeGlobal:
			// Compat: comments mostly; containerd takes nothing from them either.
			if err := r.s.skip(padded(size)); err != nil {
				return nil, truncated(err)
			}
			over = overrides{}
			r.e.xattrs = r.e.xattrs[:0]
		default:
			return r.finish(h, size, &over)
		}
	}
}

// finish makes the entry of header h and of the special headers before it.
func (r *reader) finish(h []byte, size int64, over *overrides) (*entry, error) {
	e := &r.e
	if err := e.fromHeader(h); err != nil {
		return nil, err
	}
	e.size = size
	over.apply(e)
	if e.typ == typeRegOld {
		e.typ = typeReg
		if strings.HasSuffix(e.name, "/") {
			e.typ = typeDir
		}
	}
	if len(e.name) > maxName || len(e.link) > maxName {
		return nil, fmt.Errorf("entry %.64q…: a path of more than %d bytes: %w", e.name, maxName, errdefs.ErrInvalidArgument)
	}
	if e.typ == typeChar || e.typ == typeBlock {
		if r.devices++; r.devices > maxDevices {
			return nil, fmt.Errorf("entry %q: more than %d device nodes: %w", e.name, maxDevices, errdefs.ErrInvalidArgument)
		}
	}
	if noData(e.typ) {
		e.size = 0
		return e, nil
	}
	if e.size < 0 {
		return nil, errHeader
	}
	r.left = e.size
	r.pad = -e.size & (blockSize - 1)
	if err := r.sparse(h, over); err != nil {
		if errors.Is(err, errHeader) {
			err = fmt.Errorf("entry %q: sparse map: %w", e.name, err)
		}
		return nil, err
	}
	return e, nil
}

// noData tells the types that no data follows, whatever size the header claims.
func noData(typ byte) bool { return typ >= typeLink && typ <= typeFifo }

// header reads the next header block. Its bytes are valid until more is read.
func (r *reader) header() ([]byte, error) {
	h, err := r.s.full(blockSize, r.scratch[:])
	if err != nil {
		return nil, truncated(err)
	}
	if !allZero(h) {
		return h, checksum(h)
	}
	// Two zero blocks are the end; an archive that just stops is accepted too.
	h, err = r.s.full(blockSize, r.scratch[:])
	if err != nil {
		return nil, truncated(err)
	}
	if !allZero(h) {
		return nil, errHeader
	}
	return nil, io.EOF
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// readSpecial reads the data of a special header; valid until the next call.
func (r *reader) readSpecial(size int64) ([]byte, error) {
	if size > maxSpecial {
		return nil, fmt.Errorf("extended header of %d bytes, at most %d are accepted: %w", size, maxSpecial, errdefs.ErrInvalidArgument)
	}
	n := int(padded(size))
	if cap(r.special) < n {
		r.special = make([]byte, max(n, 4*blockSize))
	}
	b, err := r.s.full(n, r.special[:n])
	if err != nil {
		return nil, truncated(unexpected(err))
	}
	return b[:size], nil
}

// data returns the next piece of the entry's stored data, io.EOF at its end.
// The piece is valid until the next call of any method.
func (r *reader) data(limit int64) ([]byte, error) {
	if r.left == 0 {
		return nil, io.EOF
	}
	b, err := r.s.peek(min(r.left, limit))
	if err != nil {
		return nil, truncated(unexpected(err))
	}
	r.s.advance(len(b))
	r.left -= int64(len(b))
	return b, nil
}

func truncated(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the archive ends in the middle of an entry: %w", errdefs.ErrInvalidArgument)
	}
	return err
}

func padded(size int64) int64 { return (size + blockSize - 1) &^ (blockSize - 1) }

// fromHeader takes over the fields of a header block except size.
func (e *entry) fromHeader(h []byte) error {
	ok := true
	num := func(from, to int) int64 {
		n, valid := number(h[from:to])
		ok = ok && valid
		return n
	}
	e.typ = h[156]
	e.name = cString(h[:100])
	e.mode = num(100, 108)
	e.uid = num(108, 116)
	e.gid = num(116, 124)
	e.mtime.Sec = num(136, 148)
	e.link = cString(h[157:257])
	switch {
	case string(h[257:265]) == gnuMagic:
		e.major, e.minor = num(329, 337), num(337, 345)
		if h[345] == 0 {
			break
		}
		atime, valid := number(h[345:357])
		e.atime.Sec = atime
		if _, ctime := number(h[357:369]); !valid || !ctime && h[357] != 0 {
			// Go before 1.8 wrote the prefix of a ustar header here
			// (golang.org/issue/12594), and images with that are still about.
			e.atime.Sec = 0
			e.prepend(h[345:500])
		}
	case string(h[257:263]) == "ustar\x00":
		e.major, e.minor = num(329, 337), num(337, 345)
		prefix := h[345:500]
		if string(h[508:512]) == "tar\x00" { // star
			prefix = h[345:476]
			e.atime.Sec = num(476, 488)
		}
		e.prepend(prefix)
	}
	if !ok {
		return errHeader
	}
	return nil
}

func (e *entry) prepend(prefix []byte) {
	if p := cString(prefix); p != "" {
		e.name = p + "/" + e.name
	}
}

// cString is what comes before the first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// number parses a numeric field: octal digits amid spaces and NULs, or a
// two's complement binary number when the first bit is set.
func number(b []byte) (int64, bool) {
	if len(b) > 0 && b[0]&0x80 != 0 {
		return binaryNumber(b)
	}
	for len(b) > 0 && (b[0] == ' ' || b[0] == 0) {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == 0) {
		b = b[:len(b)-1]
	}
	var n int64
	for _, c := range b {
		if c == 0 { // what follows a NUL counts for nothing
			break
		}
		if c < '0' || c > '7' || n > math.MaxInt64>>3 {
			return 0, false
		}
		n = n<<3 | int64(c-'0')
	}
	return n, true
}

func binaryNumber(b []byte) (int64, bool) {
	var flip byte
	if b[0]&0x40 != 0 {
		flip = 0xff
	}
	var n uint64
	for i, c := range b {
		c ^= flip
		if i == 0 {
			c &= 0x7f
		}
		if n>>56 != 0 {
			return 0, false
		}
		n = n<<8 | uint64(c)
	}
	if n > math.MaxInt64 {
		return 0, false
	}
	if flip == 0xff {
		return ^int64(n), true
	}
	return int64(n), true
}

// checksum verifies a header's sum, in which some writers took bytes as signed.
func checksum(h []byte) error {
	want, ok := number(h[148:156])
	if !ok {
		return errHeader
	}
	var sum, signed int64
	for i, c := range h {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
		signed += int64(int8(c))
	}
	if want != sum && want != signed {
		return errHeader
	}
	return nil
}
