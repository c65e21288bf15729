package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// DiffOptions refines Diff.
type DiffOptions struct {
	// Upper says what the upper tree is. Remove: all there is, to be compared
	// with lower. Overlay or OverlayUser: an overlay's upper directory, which
	// is the difference itself; lower is not read then.
	Upper Whiteouts
	// SourceDateEpoch, in seconds, replaces modification times later than it.
	SourceDateEpoch *int64
}

// Diff writes the layer that turns the tree lower ("" for an empty one) into
// the tree upper, as an uncompressed tar archive. Equal trees give equal
// archives: entries are sorted, times are whole seconds, no names of users.
//
// Files that differ in nothing that a layer can say are left out, but for other names
// of one that is not: they stay one file. What is below a directory comes after its
// own entry, changed or not.
func Diff(ctx context.Context, w io.Writer, lower, upper string, opts DiffOptions) error {
	d := differ{ctx: ctx, tw: tar.NewWriter(w), opts: opts, links: map[inode]string{}, same: map[inode][]otherName{}, buf: make([]byte, 256<<10)}
	up, err := openTree(upper)
	if err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	defer up.Close()
	var low *os.File
	if lower != "" && opts.Upper == Remove {
		if low, err = openTree(lower); err != nil {
			return fmt.Errorf("diff: %w", err)
		}
		defer low.Close()
	}
	if err := d.directory("", low, up); err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	if err := d.tw.Close(); err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type differ struct {
	ctx     context.Context
	tw      *tar.Writer
	opts    DiffOptions
	links   map[inode]string      // files with several names → the one written
	same    map[inode][]otherName // … → those that have not changed, none written
	pending []*pendingDir         // ancestors without an entry so far
	buf     []byte
}

// pendingDir is a directory whose entry is written when something follows that is in it.
type pendingDir struct {
	path    string
	n       node        // while the walk is there
	h       *tar.Header // when it may be written later
	written bool
}

// otherName of a file is written when the file is.
type otherName struct {
	dirs []*pendingDir
	h    *tar.Header
}

// node is a file in an open directory.
type node struct {
	dir  *os.File
	name string
	st   unix.Stat_t
}

func (n *node) kind() uint32 { return n.st.Mode & unix.S_IFMT }
func (n *node) isDir() bool  { return n.kind() == unix.S_IFDIR }

// proc is a path to the file itself, symbolic link or not, for the system
// calls that take none beneath a directory.
func (n *node) proc() string { return procPath(int(n.dir.Fd())) + "/" + n.name }

func openTree(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, dirFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func openSub(n *node) (*os.File, error) {
	if n == nil {
		return nil, nil
	}
	fd, err := openat(int(n.dir.Fd()), n.name, dirFlags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.name), nil
}

// children of a directory, sorted. Files that disappear meanwhile are none.
func children(dir *os.File) ([]*node, error) {
	if dir == nil {
		return nil, nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	out := make([]*node, 0, len(names))
	for _, name := range names {
		n := &node{dir: dir, name: name}
		err := unix.Fstatat(int(dir.Fd()), name, &n.st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, n)
	}
	return out, nil
}

// directory writes how the content of two directories differs. low is nil when
// there is nothing below.
func (d *differ) directory(p string, low, up *os.File) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if strings.Count(p, "/") > unix.PathMax/2 { // no path leads there, and descriptors are not endless
		return fmt.Errorf("%.100s…: %w", p, unix.ENAMETOOLONG)
	}
	lows, err := children(low)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	ups, err := children(up)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	for len(lows) > 0 || len(ups) > 0 {
		var l, u *node
		switch {
		case len(ups) == 0 || len(lows) > 0 && lows[0].name < ups[0].name:
			l, lows = lows[0], lows[1:]
		case len(lows) == 0 || ups[0].name < lows[0].name:
			u, ups = ups[0], ups[1:]
		default:
			l, u, lows, ups = lows[0], ups[0], lows[1:], ups[1:]
		}
		if err := d.one(p, l, u); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) one(dir string, l, u *node) error {
	if u == nil || d.isWhiteout(u) {
		name := ""
		if u != nil {
			name = u.name
		} else {
			name = l.name
		}
		return d.whiteout(join(dir, whiteoutPrefix+name))
	}
	p := join(dir, u.name)
	if strings.HasPrefix(u.name, whiteoutPrefix) {
		return fmt.Errorf("%s: a layer cannot have a file whose name begins with %q: %w", p, whiteoutPrefix, errdefs.ErrFailedPrecondition)
	}
	equal, err := d.equal(l, u)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if !u.isDir() {
		if equal {
			return d.unchanged(p, u)
		}
		return d.write(p, u)
	}
	if l != nil && !l.isDir() {
		l = nil
	}
	return d.subdirectory(p, l, u, equal)
}

func (d *differ) subdirectory(p string, l, u *node, equal bool) error {
	d.pending = append(d.pending, &pendingDir{path: p, n: *u})
	depth := len(d.pending)
	if !equal {
		if err := d.flush(); err != nil {
			return err
		}
	}
	up, err := openSub(u)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer up.Close()
	low, err := openSub(l)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if low != nil {
		defer low.Close()
	}
	if d.isOpaque(u) {
		if err := d.whiteout(p + "/" + whiteoutOpaque); err != nil {
			return err
		}
	}
	if err := d.directory(p, low, up); err != nil {
		return err
	}
	if len(d.pending) >= depth { // nothing in it has changed
		d.pending = d.pending[:depth-1]
	}
	return nil
}

// flush writes the entries of the directories that lead to the next one.
func (d *differ) flush() error {
	dirs := d.pending
	d.pending = nil
	for _, dir := range dirs {
		if err := d.directoryEntry(dir); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) directoryEntry(dir *pendingDir) error {
	if dir.written {
		return nil
	}
	dir.written = true
	if dir.h != nil {
		return d.tw.WriteHeader(dir.h)
	}
	return d.header(dir.path, &dir.n)
}

// unchanged leaves a file out, unless another name of it was or will be written.
func (d *differ) unchanged(p string, n *node) error {
	if n.st.Nlink < 2 {
		return nil
	}
	id := inode{uint64(n.st.Dev), n.st.Ino}
	if first, ok := d.links[id]; ok {
		if err := d.flush(); err != nil {
			return err
		}
		return d.link(p, n, first)
	}
	other := otherName{dirs: slices.Clone(d.pending)}
	for _, dir := range other.dirs {
		if dir.h != nil {
			continue
		}
		h, err := d.fields(dir.path, &dir.n)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.path, err)
		}
		dir.h = h
	}
	h, err := d.fields(p, n)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	other.h = h
	d.same[id] = append(d.same[id], other)
	return nil
}

// others writes the names of a file that had seemed not to matter.
func (d *differ) others(id inode, first string) error {
	others := d.same[id]
	delete(d.same, id)
	for _, o := range others {
		for _, dir := range o.dirs {
			if err := d.directoryEntry(dir); err != nil {
				return err
			}
		}
		if err := d.tw.WriteHeader(asLink(o.h, first)); err != nil {
			return err
		}
	}
	return nil
}

func asLink(h *tar.Header, first string) *tar.Header {
	h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
	return h
}

func (d *differ) link(p string, n *node, first string) error {
	h, err := d.fields(p, n)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return d.tw.WriteHeader(asLink(h, first))
}

func (d *differ) whiteout(p string) error {
	if err := d.flush(); err != nil {
		return err
	}
	return d.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p, ModTime: time.Unix(0, 0).UTC(), Format: tar.FormatPAX})
}

func (d *differ) isWhiteout(n *node) bool {
	return d.opts.Upper != Remove && n.kind() == unix.S_IFCHR && n.st.Rdev == 0
}

func (d *differ) isOpaque(n *node) bool {
	name := "trusted.overlay.opaque"
	switch d.opts.Upper {
	case Remove:
		return false
	case OverlayUser:
		name = "user.overlay.opaque"
	}
	var v [1]byte
	size, err := unix.Lgetxattr(n.proc(), name, v[:])
	return err == nil && size == 1 && v[0] == 'y'
}

// equal tells whether a layer need not mention u. Times of directories do not
// count: they change with their content.
func (d *differ) equal(l, u *node) (bool, error) {
	if l == nil || d.opts.Upper != Remove {
		return false, nil
	}
	a, b := &l.st, &u.st
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return true, nil
	}
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return false, nil
	}
	lx, err := layerXattrs(l)
	if err != nil {
		return false, err
	}
	ux, err := layerXattrs(u)
	if err != nil || !slices.Equal(lx, ux) {
		return false, err
	}
	switch u.kind() {
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFLNK:
		return sameLink(l, u)
	case unix.S_IFREG:
		if a.Size != b.Size || a.Mtim.Sec != b.Mtim.Sec {
			return false, nil
		}
		if a.Mtim.Nsec != 0 && b.Mtim.Nsec != 0 {
			return a.Mtim.Nsec == b.Mtim.Nsec, nil
		}
		// One came out of a layer, which has whole seconds only.
		return sameContent(l, u)
	}
	return true, nil
}

func sameLink(l, u *node) (bool, error) {
	a, err := readlink(int(l.dir.Fd()), l.name)
	if err != nil {
		return false, err
	}
	b, err := readlink(int(u.dir.Fd()), u.name)
	return a == b, err
}

func sameContent(l, u *node) (bool, error) {
	a, err := openFile(l)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openFile(u)
	if err != nil {
		return false, err
	}
	defer b.Close()
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			if end(errA) && end(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

func end(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// openFile opens a regular file; not whatever a running container has put in
// its place since.
func openFile(n *node) (*os.File, error) {
	fd, err := openat(int(n.dir.Fd()), n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.name), nil
}

// write writes the entry of a file, after those of its directories.
func (d *differ) write(p string, n *node) error {
	if n.kind() == unix.S_IFSOCK {
		return nil // nobody would listen
	}
	if err := d.flush(); err != nil {
		return err
	}
	if n.st.Nlink > 1 {
		id := inode{uint64(n.st.Dev), n.st.Ino}
		if first, ok := d.links[id]; ok {
			return d.link(p, n, first)
		}
		d.links[id] = p
		if err := d.header(p, n); err != nil {
			return err
		}
		return d.others(id, p)
	}
	return d.header(p, n)
}

func (d *differ) header(p string, n *node) error {
	h, err := d.fields(p, n)
	if err == nil {
		err = d.tw.WriteHeader(h)
	}
	if err == nil && h.Typeflag == tar.TypeReg && h.Size > 0 {
		err = d.content(n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

func (d *differ) fields(p string, n *node) (*tar.Header, error) {
	h := &tar.Header{
		Name:    p,
		Mode:    int64(n.st.Mode & 0o7777),
		Uid:     int(n.st.Uid),
		Gid:     int(n.st.Gid),
		ModTime: time.Unix(n.st.Mtim.Sec, 0).UTC(),
		Format:  tar.FormatPAX,
	}
	if e := d.opts.SourceDateEpoch; e != nil && n.st.Mtim.Sec >= *e {
		h.ModTime = time.Unix(*e, 0).UTC()
	}
	switch n.kind() {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, n.st.Size
	case unix.S_IFLNK:
		target, err := readlink(int(n.dir.Fd()), n.name)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if n.kind() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(n.st.Rdev))), int64(unix.Minor(uint64(n.st.Rdev)))
	}
	xattrs, err := layerXattrs(n)
	if err != nil {
		return nil, err
	}
	for _, x := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+x.name] = x.value
	}
	return h, nil
}

// layerXattrs reads the attributes that belong to an image: what the file can
// do, and what its owner noted; not the labels of this host's security modules.
func layerXattrs(n *node) ([]xattr, error) {
	var out []xattr
	buf := make([]byte, 512)
	size, err := unix.Llistxattr(n.proc(), buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		size, err = unix.Llistxattr(n.proc(), buf)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00") {
		if name != "security.capability" && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		value := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(n.proc(), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
		// An equals sign cannot be written in a PAX key.
		if !strings.Contains(name, "=") {
			out = append(out, xattr{name, string(value[:size])})
		}
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (d *differ) content(n *node) error {
	f, err := openFile(n)
	if err != nil {
		return err
	}
	defer f.Close()
	for left := n.st.Size; left > 0; {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		m, err := f.Read(d.buf[:min(left, int64(len(d.buf)))])
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the file became shorter while it was read (%d of %d bytes are missing): %w", left, n.st.Size, errdefs.ErrUnavailable)
		}
		if err != nil {
			return err
		}
		if _, err := d.tw.Write(d.buf[:m]); err != nil {
			return err
		}
		left -= int64(m)
	}
	return nil
}
