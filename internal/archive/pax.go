package archive

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var errPAX = fmt.Errorf("malformed PAX header: %w", errdefs.ErrInvalidArgument)

// overrides are what special headers say of the entry that follows them.
type overrides struct {
	gnuName, gnuLink string
	path, linkpath   string
	size, uid, gid   int64
	mtime, atime     unix.Timespec
	has              uint16 // which of the fields are set

	sparseMajor, sparseMinor string
	sparseName               string
	sparseSize               int64 // GNU.sparse.size or .realsize
	sparseMap                []int64
}

const (
	hasPath = 1 << iota
	hasLinkpath
	hasSize
	hasUID
	hasGID
	hasMtime
	hasAtime
	hasSparseSize
)

const xattrPrefix = "SCHILY.xattr."

// reset forgets an earlier PAX header: the last one before an entry counts.
func (o *overrides) reset(e *entry) {
	*o = overrides{gnuName: o.gnuName, gnuLink: o.gnuLink}
	e.xattrs = e.xattrs[:0]
}

// parse reads the records of a PAX header, "<length> <key>=<value>\n" each.
func (o *overrides) parse(b []byte, e *entry) error {
	for len(b) > 0 {
		key, value, rest, err := record(b)
		if err != nil {
			return err
		}
		b = rest
		if err := o.set(string(key), value, e); err != nil {
			return err
		}
	}
	return nil
}

func record(b []byte) (key, value, rest []byte, err error) {
	sp := bytes.IndexByte(b, ' ')
	if sp <= 0 || sp > 9 {
		return nil, nil, nil, errPAX
	}
	n := 0
	for _, c := range b[:sp] {
		if c < '0' || c > '9' {
			return nil, nil, nil, errPAX
		}
		n = n*10 + int(c-'0')
	}
	if n > len(b) || n < sp+2 || b[n-1] != '\n' {
		return nil, nil, nil, errPAX
	}
	key, value, ok := bytes.Cut(b[sp+1:n-1], []byte{'='})
	if !ok || len(key) == 0 || bytes.IndexByte(key, 0) >= 0 {
		return nil, nil, nil, errPAX
	}
	return key, value, b[n:], nil
}

func (o *overrides) set(key string, value []byte, e *entry) (err error) {
	if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
		return addXattr(e, name, string(value))
	}
	var bit uint16
	switch key {
	case "path":
		o.path, bit, err = string(value), hasPath, noNUL(value)
	case "linkpath":
		o.linkpath, bit, err = string(value), hasLinkpath, noNUL(value)
	case "size":
		o.size, err = decimal(value)
		bit = hasSize
	case "uid":
		o.uid, err = decimal(value)
		bit = hasUID
	case "gid":
		o.gid, err = decimal(value)
		bit = hasGID
	case "mtime":
		o.mtime, err = paxTime(value)
		bit = hasMtime
	case "atime":
		o.atime, err = paxTime(value)
		bit = hasAtime
	case "GNU.sparse.major":
		o.sparseMajor = string(value)
	case "GNU.sparse.minor":
		o.sparseMinor = string(value)
	case "GNU.sparse.name":
		o.sparseName, err = string(value), noNUL(value)
	case "GNU.sparse.size", "GNU.sparse.realsize":
		o.sparseSize, err = decimal(value)
		bit = hasSparseSize
	case "GNU.sparse.offset", "GNU.sparse.numbytes": // format 0.0: in turn
		var n int64
		n, err = decimal(value)
		if isOffset := key == "GNU.sparse.offset"; isOffset != (len(o.sparseMap)%2 == 0) {
			return errPAX
		}
		o.sparseMap = append(o.sparseMap, n)
	case "GNU.sparse.map": // format 0.1
		o.sparseMap = o.sparseMap[:0]
		for f := range bytes.SplitSeq(value, []byte{','}) {
			n, err := decimal(f)
			if err != nil {
				return err
			}
			o.sparseMap = append(o.sparseMap, n)
		}
	}
	// An empty value takes the field back to what the plain header says.
	if len(value) == 0 {
		o.has &^= bit
		return err
	}
	o.has |= bit
	return err
}

func addXattr(e *entry, name, value string) error {
	if name == "" {
		return errPAX
	}
	for i := range e.xattrs {
		if e.xattrs[i].name == name {
			e.xattrs[i].value = value
			return nil
		}
	}
	e.xattrs = append(e.xattrs, xattr{name, value})
	return nil
}

func noNUL(b []byte) error {
	if bytes.IndexByte(b, 0) >= 0 {
		return errPAX
	}
	return nil
}

func decimal(b []byte) (int64, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0, errPAX
	}
	return n, nil
}

// paxTime parses seconds with a decimal fraction, of which nanoseconds count.
func paxTime(b []byte) (unix.Timespec, error) {
	if len(b) == 0 {
		return unix.Timespec{}, nil
	}
	whole, fraction, _ := strings.Cut(string(b), ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return unix.Timespec{}, errPAX
	}
	nsec := int64(0)
	for i := range 9 {
		nsec *= 10
		if i < len(fraction) {
			nsec += int64(fraction[i] - '0')
		}
	}
	if strings.Trim(fraction, "0123456789") != "" {
		return unix.Timespec{}, errPAX
	}
	if nsec > 0 && strings.HasPrefix(whole, "-") {
		sec, nsec = sec-1, 1e9-nsec
	}
	return unix.Timespec{Sec: sec, Nsec: nsec}, nil
}

// apply puts the overrides into e.
func (o *overrides) apply(e *entry) {
	if o.has&hasPath != 0 {
		e.name = o.path
	}
	if o.has&hasLinkpath != 0 {
		e.link = o.linkpath
	}
	if o.gnuName != "" {
		e.name = o.gnuName
	}
	if o.gnuLink != "" {
		e.link = o.gnuLink
	}
	if o.has&hasSize != 0 {
		e.size = o.size
	}
	if o.has&hasUID != 0 {
		e.uid = o.uid
	}
	if o.has&hasGID != 0 {
		e.gid = o.gid
	}
	if o.has&hasMtime != 0 {
		e.mtime = o.mtime
	}
	if o.has&hasAtime != 0 {
		e.atime = o.atime
	}
}
