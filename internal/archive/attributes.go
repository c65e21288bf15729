package archive

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// target is a file to be given attributes: open, or by name in its directory.
type target struct {
	dir  int
	base string
	fd   int // -1 when it is not open
}

// state is what a file's owner and mode are so far.
type state struct{ uid, gid, mode uint32 }

const unknownMode = 1 << 31

// fresh is the state of a file just made in a directory with the mode perm.
func (a *applier) fresh(top *frame, perm uint32) state {
	s := state{uid: a.uid, gid: a.gid, mode: perm &^ a.umask}
	if top.setgid {
		s.gid = top.gid
	}
	if top.ruleset {
		s.mode = unknownMode
	}
	return s
}

// attributes gives a file those of its entry, with no system call for what it
// has already. The order matters: a change of owner clears setuid bits and
// capabilities.
func (a *applier) attributes(t target, e *entry, have state) error {
	if e.uid < 0 || e.uid >= 1<<32-1 || e.gid < 0 || e.gid >= 1<<32-1 {
		return fmt.Errorf("owner %d:%d: %w", e.uid, e.gid, errdefs.ErrInvalidArgument)
	}
	uid, gid, mode := uint32(e.uid), uint32(e.gid), uint32(e.mode)&0o7777
	if uid != have.uid || gid != have.gid {
		if err := t.chown(int(uid), int(gid)); err != nil {
			return fmt.Errorf("change owner to %d:%d: %w", uid, gid, err)
		}
		if have.mode&(unix.S_ISUID|unix.S_ISGID) != 0 && e.typ != typeDir {
			have.mode = unknownMode
		}
	}
	for _, x := range e.xattrs {
		if err := a.xattr(t, e, x); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", x.name, err)
		}
		if strings.HasPrefix(x.name, aclPrefix) {
			have.mode = unknownMode
			a.acls = true
		}
	}
	if e.typ != typeSym && mode != have.mode {
		if err := t.chmod(mode); err != nil {
			return fmt.Errorf("change mode to %#o: %w", mode, err)
		}
	}
	if e.typ == typeDir {
		return nil // later
	}
	ts := times(e)
	if err := unix.UtimesNanoAt(t.dir, t.base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

const (
	aclPrefix  = "system.posix_acl_"
	aclDefault = "system.posix_acl_default"
)

// xattr sets one extended attribute. Compat: what the filesystem does not
// support is left out, and so is trusted.*, which is for the host alone.
func (a *applier) xattr(t target, e *entry, x xattr) error {
	if strings.HasPrefix(x.name, "trusted.") ||
		a.opts.Whiteouts == OverlayUser && strings.HasPrefix(x.name, "user.overlay.") {
		return nil
	}
	err := t.setxattr(x.name, []byte(x.value))
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil
	case errors.Is(err, unix.EPERM) && strings.HasPrefix(x.name, "user.") && e.typ != typeReg && e.typ != typeDir:
		return nil // user.* is for files and directories only, see xattr(7)
	}
	return err
}

func (t target) chown(uid, gid int) error {
	if t.fd >= 0 {
		return unix.Fchown(t.fd, uid, gid)
	}
	return unix.Fchownat(t.dir, t.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// chmod is not for symbolic links: they have no mode.
func (t target) chmod(mode uint32) error {
	if t.fd >= 0 {
		return unix.Fchmod(t.fd, mode)
	}
	return unix.Fchmodat(t.dir, t.base, mode, 0)
}

func (t target) setxattr(name string, value []byte) error {
	if t.fd >= 0 {
		return unix.Fsetxattr(t.fd, name, value, 0)
	}
	return unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(t.dir)+"/"+t.base, name, value, 0)
}
