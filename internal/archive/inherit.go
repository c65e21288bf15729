package archive

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Inherit gives directories that a layer implied the owner, mode, times and
// extended attributes that they have in the tree parents, below which the layer
// in root belongs; implied is in the order of Applied. Where the parents have a
// symbolic link to a directory instead, what the layer brought moves to where
// that leads: the same files are there as if the layer had been unpacked over
// its parents. What the parents do not have stays as it is.
func Inherit(root, parents string, implied []string) error {
	if len(implied) == 0 {
		return nil
	}
	to, err := unix.Open(root, dirFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(to)
	from, err := unix.Open(parents, dirFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", parents, err)
	}
	defer unix.Close(from)
	h := heir{root: to, parents: from, moved: map[string]string{}}
	for _, p := range implied {
		if err := h.inherit(h.now(p)); err != nil {
			return fmt.Errorf("attributes of directory %q from the layers below: %w", p, err)
		}
	}
	return nil
}

type heir struct {
	root, parents int
	moved         map[string]string // directory → where its content went
}

// now is where what was at p is after the moves so far.
func (h *heir) now(p string) string {
	for at := p; at != "."; at = path.Dir(at) {
		if to, ok := h.moved[at]; ok {
			return join(to, strings.TrimPrefix(p[len(at):], "/"))
		}
	}
	return p
}

const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

func (h *heir) inherit(p string) error {
	src, err := unix.Openat2(h.parents, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: inRoot})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return h.copyTo(p, src, &st)
	case unix.S_IFLNK:
		return h.follow(p)
	}
	return nil
}

// beneath opens a directory of the layer, through no symbolic link.
func (h *heir) beneath(p string) (int, error) {
	return unix.Openat2(h.root, p, &unix.OpenHow{Flags: dirFlags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

func (h *heir) copyTo(p string, src int, st *unix.Stat_t) error {
	dst, err := h.beneath(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a later entry put something else there
	}
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(src, dst); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(dst), ts, 0)
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// copyXattrs copies all but trusted.*, which are overlayfs' own and the host's.
func copyXattrs(src, dst int) error {
	names, err := listXattrs(procPath(src))
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		value, err := getXattr(procPath(src), name)
		if err == nil {
			err = unix.Fsetxattr(dst, name, value, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}

func listXattrs(p string) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Listxattr(p, buf)
		if err == unix.ERANGE {
			buf = make([]byte, 4*len(buf))
			continue
		}
		if err == unix.ENOTSUP || n == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

func getXattr(p, name string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Getxattr(p, name, buf)
		if err == unix.ERANGE {
			buf = make([]byte, 4*len(buf))
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// follow moves the content of p to where p leads in the parents.
//
// Differs from containerd, where the directory hides the symbolic link, and a
// layer with an entry lib/x makes /lib lose all that /usr/lib has.
func (h *heir) follow(p string) error {
	fd, err := unix.Openat2(h.parents, p, &unix.OpenHow{Flags: dirFlags &^ unix.O_NOFOLLOW, Resolve: inRoot})
	if err != nil {
		return nil // it leads nowhere, or to a file: the directory takes its place
	}
	target, err := relative(h.parents, fd)
	unix.Close(fd)
	if err != nil {
		return err
	}
	if target == p || strings.HasPrefix(target, p+"/") {
		return nil
	}
	if target != "" {
		if err := h.make(target); err != nil {
			return err
		}
	}
	if err := h.merge(p, target); err != nil {
		return err
	}
	h.moved[p] = target
	return nil
}

// relative is the path of fd below root.
func relative(root, fd int) (string, error) {
	base, err := os.Readlink(procPath(root))
	if err != nil {
		return "", err
	}
	full, err := os.Readlink(procPath(fd))
	if err != nil {
		return "", err
	}
	if full == base {
		return "", nil
	}
	rest, ok := strings.CutPrefix(full, strings.TrimSuffix(base, "/")+"/")
	if !ok {
		return "", fmt.Errorf("%s is not below %s: %w", full, base, errdefs.ErrInternal)
	}
	return rest, nil
}

// make makes a directory of the layer with its parents, all as the tree below
// has them.
func (h *heir) make(p string) error {
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		dir, base := path.Split(p[:i])
		at, err := h.beneath(path.Clean("./" + dir))
		if err != nil {
			return err
		}
		err = unix.Mkdirat(at, base, 0o755)
		unix.Close(at)
		if err == unix.EEXIST {
			continue
		}
		if err == nil {
			err = h.inherit(p[:i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// merge moves what is in the directory from into the directory to.
func (h *heir) merge(from, to string) error {
	src, err := h.beneath(from)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := h.beneath(path.Clean("./" + to))
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	names, err := list(src, -1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := unix.Renameat2(src, name, dst, name, unix.RENAME_NOREPLACE)
		if err == unix.EEXIST {
			err = h.mergeOne(src, dst, name, from, to)
		}
		if err != nil {
			return err
		}
	}
	dir, base := path.Split(from)
	at, err := h.beneath(path.Clean("./" + dir))
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return unix.Unlinkat(at, base, unix.AT_REMOVEDIR)
}

func (h *heir) mergeOne(src, dst int, name, from, to string) error {
	var s, d unix.Stat_t
	if err := unix.Fstatat(src, name, &s, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fstatat(dst, name, &d, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if s.Mode&unix.S_IFMT == unix.S_IFDIR && d.Mode&unix.S_IFMT == unix.S_IFDIR {
		return h.merge(join(from, name), join(to, name))
	}
	if err := removeAll(dst, name); err != nil {
		return err
	}
	return unix.Renameat(src, name, dst, name)
}
