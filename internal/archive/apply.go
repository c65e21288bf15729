package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// Whiteouts says what becomes of the deletions that a layer records.
type Whiteouts int

const (
	// Remove carries them out: what the layers below have at that place is
	// removed from the tree, what this layer brought stays.
	Remove Whiteouts = iota
	// Overlay keeps them as overlayfs wants them in an upper directory: a
	// character device 0/0, an "opaque" extended attribute.
	Overlay
	// OverlayUser is Overlay for mounts with the option userxattr.
	OverlayUser
)

// ApplyOptions refines Apply.
type ApplyOptions struct {
	Whiteouts Whiteouts
}

// Applied is what Apply did.
type Applied struct {
	// Implied lists directories relative to the root, each after its parents,
	// that were made for an entry below them but had no entry themselves: they
	// are 0755 and root's.
	Implied []string
}

// Apply unpacks the tar archive that r is into the directory root, up to the
// archive's end; what follows it in r is not read to the end. Entries replace
// what has their name, directories are merged.
//
// Nothing outside root is ever touched: symbolic links, those of the archive
// and those that were there before, are followed as if root were "/". A failure
// leaves what was unpacked before it. errdefs.ErrInvalidArgument when it is the
// archive's fault, as when a name, or a symbolic link on the way to it, climbs
// above root; errdefs.ErrFailedPrecondition when an entry is a hard link
// to a file that is not below root.
func Apply(ctx context.Context, root string, r io.Reader, opts ApplyOptions) (Applied, error) {
	rootFrame, err := openRoot(root)
	if err != nil {
		return Applied{}, err
	}
	defer unix.Close(rootFrame.fd)
	a := &applier{
		opts:    opts,
		umask:   umask(),
		uid:     uint32(os.Geteuid()),
		gid:     uint32(os.Getegid()),
		noNodes: userns.RunningInUserNS(),
	}
	a.tr.s.src = chunksOf(r)
	a.dirs = dirs{frames: []frame{rootFrame}, maker: a}
	a.links = dirs{frames: []frame{rootFrame}}
	defer a.dirs.close()
	defer a.links.close()
	names, err := list(rootFrame.fd, 1)
	if err != nil {
		return Applied{}, fmt.Errorf("read root %s: %w", root, err)
	}
	if len(names) > 0 {
		a.acls = true
		if opts.Whiteouts == Remove {
			a.own = map[string]struct{}{}
		}
	}
	if err := a.run(ctx); err != nil {
		return Applied{}, err
	}
	return Applied{Implied: a.impliedList()}, nil
}

type applier struct {
	opts     ApplyOptions
	umask    uint32
	uid, gid uint32 // of a new file
	noNodes  bool   // devices cannot be made here
	acls     bool   // some directory may have a default ACL
	replaced bool   // a directory was replaced by something else
	tr       reader
	dirs     dirs // where entries go
	links    dirs // where hard links lead
	// own holds the paths that this layer has brought or passed through; nil
	// when there was nothing else in the tree to begin with.
	own    map[string]struct{}
	times  []dirTime
	kept   int            // bytes of paths in own, times and made
	made   []string       // implied directories, in order
	madeAt map[string]int // index in made; made[i] is "" when an entry came after all
}

// dirTime is set when everything is unpacked, for each new file changes it.
type dirTime struct {
	path  string
	times [2]unix.Timespec
}

func (a *applier) run(ctx context.Context) error {
	for n := 0; ; n++ {
		if n%64 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		e, err := a.tr.next()
		if errors.Is(err, io.EOF) {
			return a.finishDirs()
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := a.entry(ctx, e); err != nil {
			return fmt.Errorf("unpack entry %q: %w", e.name, blame(err))
		}
	}
}

// blame makes errors invalid arguments that only the archive can have caused.
func blame(err error) error {
	for _, errno := range []unix.Errno{unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTDIR, unix.ENOENT, unix.EINVAL, unix.EFBIG} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w (%w)", err, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

func (a *applier) entry(ctx context.Context, e *entry) error {
	dir, base, err := split(e.name)
	if err != nil {
		return err
	}
	if base == "" {
		return nil // Compat: the root keeps its attributes
	}
	top, err := a.dirs.enter(dir)
	if err != nil {
		return err
	}
	a.passed(top)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(top, base)
	}
	switch e.typ {
	case typeReg, typeCont:
		err = a.file(ctx, top, base, e)
	case typeDir:
		err = a.directory(top, base, e)
	case typeSym:
		err = a.node(top, base, e, 0o777, func() error { return unix.Symlinkat(e.link, top.fd, base) })
	case typeLink:
		err = a.link(top, base, e)
	case typeChar, typeBlock, typeFifo:
		err = a.device(top, base, e)
	default:
		return fmt.Errorf("type %q is unknown: %w", e.typ, errdefs.ErrInvalidArgument)
	}
	if err == nil && a.own != nil {
		p := join(top.path, base)
		a.own[p] = struct{}{}
		err = a.remember(p)
	}
	return err
}

// passed notes that the layer has something below a directory.
func (a *applier) passed(top *frame) {
	if a.own == nil {
		return
	}
	for p := top.path; p != "" && p != "."; p = path.Dir(p) {
		if _, ok := a.own[p]; ok {
			return
		}
		a.own[p] = struct{}{}
	}
}

// split cleans the name of an entry and parts it from its directory. base is
// empty for the root itself.
//
// Differs from containerd: a name that climbs above the root is an error, not
// an entry of the root. Compat: a leading slash is the root.
func split(name string) (dir, base string, err error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." {
		return "", "", nil
	}
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", "", fmt.Errorf("the path leads out of the root: %w", errdefs.ErrInvalidArgument)
	}
	if i := strings.LastIndexByte(clean, '/'); i >= 0 {
		return clean[:i], clean[i+1:], nil
	}
	return "", clean, nil
}

func (a *applier) file(ctx context.Context, top *frame, base string, e *entry) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	perm := uint32(e.mode) & 0o777
	fd, err := openat(top.fd, base, flags, perm)
	if err == unix.EEXIST {
		if err = a.remove(top, base); err == nil {
			fd, err = openat(top.fd, base, flags, perm)
		}
	}
	if err != nil {
		return err
	}
	err = a.content(ctx, fd, e)
	if err == nil {
		err = a.attributes(target{dir: top.fd, base: base, fd: fd}, e, a.fresh(top, perm))
	}
	if cerr := unix.Close(fd); err == nil && cerr != unix.EINTR {
		err = cerr
	}
	return err
}

// content writes a file's data straight out of the stream's buffer.
func (a *applier) content(ctx context.Context, fd int, e *entry) error {
	w := writer{fd: fd}
	if !e.sparse {
		return a.copy(ctx, &w, e.size)
	}
	for _, x := range e.extents {
		if _, err := unix.Seek(fd, x.offset, io.SeekStart); err != nil {
			return err
		}
		w.at, w.flushed = x.offset, x.offset
		if err := a.copy(ctx, &w, x.length); err != nil {
			return err
		}
	}
	return unix.Ftruncate(fd, e.size)
}

func (a *applier) copy(ctx context.Context, w *writer, n int64) error {
	for n > 0 {
		b, err := a.tr.data(n)
		if err != nil {
			return unexpected(err)
		}
		n -= int64(len(b))
		if err := w.write(b); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if w.at-w.flushed >= flushEnd {
		w.flush()
	}
	return nil
}

// writer writes at a file's offset and starts writing to disk early: the
// barrier at the end of a pull then finds little left to do.
type writer struct {
	fd      int
	at      int64
	flushed int64
}

const (
	// flushEvery is how much of a file is dirty before it is sent on its way,
	flushEvery = 8 << 20
	// flushEnd how much of its end is worth a system call. What is smaller is
	// left to the kernel: a write per small file costs more than the barrier.
	flushEnd = 1 << 20
)

func (w *writer) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(w.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		w.at += int64(n)
		b = b[n:]
	}
	if w.at-w.flushed >= flushEvery {
		w.flush()
	}
	return nil
}

// flush starts the writing of what was added since the last time. It is a hint:
// where it fails, the barrier has more to do.
func (w *writer) flush() {
	_ = unix.SyncFileRange(w.fd, w.flushed, w.at-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
	w.flushed = w.at
}

func (a *applier) directory(top *frame, base string, e *entry) error {
	perm := uint32(e.mode) & 0o777
	t := target{dir: top.fd, base: base, fd: -1}
	p := join(top.path, base)
	err := unix.Mkdirat(top.fd, base, perm)
	have := a.fresh(top, perm)
	if top.setgid {
		have.mode |= unix.S_ISGID
	}
	if err == unix.EEXIST {
		have, err = a.mergeDirectory(top, t, p, perm, have)
	}
	if err != nil {
		return err
	}
	if err := a.remember(p); err != nil {
		return err
	}
	a.times = append(a.times, dirTime{p, times(e)})
	return a.attributes(t, e, have)
}

// remember accounts for a path that is kept until the end.
func (a *applier) remember(p string) error {
	if a.kept += len(p) + 48; a.kept > maxKept {
		return fmt.Errorf("the paths of the archive's directories take more than %d bytes: %w", maxKept, errdefs.ErrInvalidArgument)
	}
	return nil
}

// mergeDirectory is for a directory whose name is taken. An existing directory
// keeps its content.
func (a *applier) mergeDirectory(top *frame, t target, p string, perm uint32, fresh state) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(t.dir, t.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return state{}, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		a.notImplied(p)
		return state{uid: st.Uid, gid: st.Gid, mode: st.Mode & 0o7777}, nil
	}
	hidden := a.isWhiteout(&st)
	if err := a.remove(top, t.base); err != nil {
		return state{}, err
	}
	if err := unix.Mkdirat(t.dir, t.base, perm); err != nil {
		return state{}, err
	}
	if hidden {
		return fresh, a.opaque(t)
	}
	return fresh, nil
}

// node makes a file that has no content by make.
func (a *applier) node(top *frame, base string, e *entry, perm uint32, create func() error) error {
	err := create()
	if err == unix.EEXIST {
		if err = a.remove(top, base); err == nil {
			err = create()
		}
	}
	if err != nil {
		return err
	}
	return a.attributes(target{dir: top.fd, base: base, fd: -1}, e, a.fresh(top, perm))
}

func (a *applier) device(top *frame, base string, e *entry) error {
	kind := uint32(unix.S_IFIFO)
	if e.typ != typeFifo {
		if a.noNodes {
			return nil // Compat: a user namespace has the devices that it is given
		}
		kind = unix.S_IFCHR
		if e.typ == typeBlock {
			kind = unix.S_IFBLK
		}
		if e.major < 0 || e.major >= 1<<12 || e.minor < 0 || e.minor >= 1<<20 {
			return fmt.Errorf("device number %d:%d does not exist: %w", e.major, e.minor, errdefs.ErrInvalidArgument)
		}
	}
	perm := uint32(e.mode) & 0o777
	dev := unix.Mkdev(uint32(e.major), uint32(e.minor))
	return a.node(top, base, e, perm, func() error { return unix.Mknodat(top.fd, base, kind|perm, int(dev)) })
}

func (a *applier) link(top *frame, base string, e *entry) error {
	dir, name, err := split(e.link)
	if err == nil && name == "" {
		err = fmt.Errorf("a hard link to the root: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", e.link, err)
	}
	from, err := a.links.enter(dir)
	if err == nil {
		err = unix.Linkat(from.fd, name, top.fd, base, 0)
	}
	if err == unix.EEXIST {
		if same(from.fd, name, top.fd, base) {
			return nil
		}
		if err = a.remove(top, base); err == nil {
			if from, err = a.links.enter(dir); err == nil {
				err = unix.Linkat(from.fd, name, top.fd, base, 0)
			}
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("hard link to %q, which does not exist here: %w", e.link, errdefs.ErrFailedPrecondition)
	case err == unix.EPERM:
		return fmt.Errorf("hard link to %q, which is a directory or must not be linked: %w", e.link, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("hard link to %q: %w", e.link, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(top.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		e.typ = typeSym
	}
	return a.attributes(target{dir: top.fd, base: base, fd: -1}, e, state{uid: st.Uid, gid: st.Gid, mode: st.Mode & 0o7777})
}

func same(dir1 int, name1 string, dir2 int, name2 string) bool {
	var s1, s2 unix.Stat_t
	return unix.Fstatat(dir1, name1, &s1, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(dir2, name2, &s2, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		s1.Ino == s2.Ino && s1.Dev == s2.Dev
}

// remove takes away what has the name base, with all that is below it.
func (a *applier) remove(top *frame, base string) error {
	err := unix.Unlinkat(top.fd, base, 0)
	if err != unix.EISDIR {
		a.links.reset() // it may have been a symbolic link on the way
		return err
	}
	a.replaced = true
	a.links.reset()
	return removeAll(top.fd, base)
}

func removeAll(dirfd int, base string) error {
	return os.RemoveAll("/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + base)
}

// implied makes a directory that has no entry (yet).
func (a *applier) implied(top *frame, name string) (fd int, err error) {
	if err := unix.Mkdirat(top.fd, name, 0o755); err != nil {
		return -1, err
	}
	p := join(top.path, name)
	if err := a.remember(p); err != nil {
		return -1, err
	}
	if a.madeAt == nil {
		a.madeAt = map[string]int{}
	}
	a.madeAt[p] = len(a.made)
	a.made = append(a.made, p)
	t := target{dir: top.fd, base: name, fd: -1}
	have := a.fresh(top, 0o755)
	if top.setgid {
		have.mode |= unix.S_ISGID
	}
	if err := a.own0755(t, have); err != nil {
		return -1, err
	}
	return openat(top.fd, name, dirFlags, 0)
}

func (a *applier) own0755(t target, have state) error {
	if have.uid != 0 || have.gid != 0 {
		if err := t.chown(0, 0); err != nil {
			return err
		}
	}
	if have.mode != 0o755 {
		return t.chmod(0o755)
	}
	return nil
}

// notImplied notes that a directory has an entry, or nothing below it.
func (a *applier) notImplied(p string) {
	if i, ok := a.madeAt[p]; ok {
		a.made[i] = ""
		delete(a.madeAt, p)
	}
}

func (a *applier) impliedList() []string {
	var out []string
	for _, p := range a.made {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

// finishDirs sets the times of directories.
func (a *applier) finishDirs() error {
	for _, d := range a.times {
		dir, base := path.Split(d.path)
		top, err := a.dirs.enter(strings.TrimSuffix(dir, "/"))
		if err == nil {
			err = a.setDirTimes(top, base, d.times)
		}
		if err != nil && !(a.replaced && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR))) {
			return fmt.Errorf("set times of directory %q: %w", d.path, err)
		}
	}
	return nil
}

func (a *applier) setDirTimes(top *frame, base string, ts [2]unix.Timespec) error {
	if a.replaced {
		var st unix.Stat_t
		if err := unix.Fstatat(top.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return unix.ENOTDIR
		}
	}
	return unix.UtimesNanoAt(top.fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// umask of the process. Reading it from /proc is the only way that does not
// change it for all threads.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		if _, rest, ok := bytes.Cut(b, []byte("\nUmask:\t")); ok {
			line, _, _ := bytes.Cut(rest, []byte{'\n'})
			if n, err := strconv.ParseUint(string(line), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return 0o777 // not known: every mode is set explicitly
}

// times of an entry: access and modification. Those that the kernel's clock
// cannot hold are the epoch.
func times(e *entry) [2]unix.Timespec {
	mtime, atime := bound(e.mtime), bound(e.atime)
	if atime.Sec < mtime.Sec || atime.Sec == mtime.Sec && atime.Nsec < mtime.Nsec {
		atime = mtime
	}
	return [2]unix.Timespec{atime, mtime}
}

func bound(t unix.Timespec) unix.Timespec {
	if t.Sec < 0 || t.Sec > math.MaxInt64/int64(time.Second) {
		return unix.Timespec{}
	}
	return t
}
