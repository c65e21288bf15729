package archive

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// whiteout does what an entry named .wh.… asks for in the directory top.
func (a *applier) whiteout(top *frame, base string) error {
	switch {
	case base == whiteoutOpaque:
		return a.opaqueTop(top)
	case strings.HasPrefix(base, whiteoutMeta):
		return nil // Differs from containerd: aufs' own bookkeeping hides nothing
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("a whiteout without the name of a file: %w", errdefs.ErrInvalidArgument)
	}
	if a.opts.Whiteouts == Remove {
		return a.hide(top.fd, name, join(top.path, name))
	}
	err := unix.Mknodat(top.fd, name, unix.S_IFCHR, 0)
	if err != unix.EEXIST {
		return err
	}
	// This layer has brought a file of that name. It stays, for a whiteout is
	// about the layers below: a directory must no longer be merged with theirs.
	var st unix.Stat_t
	if err := unix.Fstatat(top.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		a.notImplied(join(top.path, name))
		return a.opaque(target{dir: top.fd, base: name, fd: -1})
	}
	return nil
}

// opaqueTop hides what the layers below have in the directory.
func (a *applier) opaqueTop(top *frame) error {
	if a.opts.Whiteouts != Remove {
		return a.opaque(target{fd: top.fd})
	}
	if a.own == nil {
		return nil
	}
	return a.hideContent(top.fd, top.path)
}

// hide removes what the layers below have brought at a path and below it.
func (a *applier) hide(dirfd int, name, p string) error {
	if a.own == nil {
		return nil
	}
	if _, ok := a.own[p]; !ok {
		a.links.reset()
		return removeAll(dirfd, name)
	}
	fd, err := openat(dirfd, name, dirFlags, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return a.hideContent(fd, p)
}

func (a *applier) hideContent(fd int, p string) error {
	// The directory's own offset may be anywhere; a new description starts at 0.
	again, err := openat(fd, ".", dirFlags, 0)
	if err != nil {
		return err
	}
	names, err := list(again, -1)
	unix.Close(again)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.hide(fd, name, join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// opaque marks a directory for overlayfs.
func (a *applier) opaque(t target) error {
	name := "trusted.overlay.opaque"
	if a.opts.Whiteouts == OverlayUser {
		name = "user.overlay.opaque"
	}
	if err := t.setxattr(name, []byte{'y'}); err != nil {
		return fmt.Errorf("mark the directory opaque: %w", err)
	}
	return nil
}

// isWhiteout tells an overlay whiteout, if that is what this tree has.
func (a *applier) isWhiteout(st *unix.Stat_t) bool {
	return a.opts.Whiteouts != Remove && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// reveal makes an implied directory where a whiteout is: the layer hides what
// is below, and then brings something of its own.
func (a *applier) reveal(top *frame, name string) (fd int, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(top.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	if !a.isWhiteout(&st) {
		return -1, unix.ENOTDIR
	}
	if err := unix.Unlinkat(top.fd, name, 0); err != nil {
		return -1, err
	}
	if fd, err = a.implied(top, name); err != nil {
		return -1, err
	}
	a.notImplied(join(top.path, name))
	if err := a.opaque(target{fd: fd}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// list reads the names in a directory, all of them or (n > 0) at least n if
// there are that many.
func list(fd int, n int) ([]string, error) {
	var names []string
	buf := make([]byte, 8<<10)
	for n <= 0 || len(names) < n {
		got, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if got <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:got], -1, names)
	}
	return names, nil
}
