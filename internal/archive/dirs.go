package archive

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dirs is the chain of open directories from the root down to where the last
// entry was. Archives come depth first, so the next entry needs one or two
// steps from there instead of a walk of its whole path; and no step leaves the
// root, for every one of them opens a single component without following it.
// Symbolic links are followed by hand, as if the root were "/"; one that climbs
// above it is an error.
type dirs struct {
	frames []frame  // frames[0] is the root
	last   string   // the path that led to the top frame
	plain  bool     // ... without a symbolic link in it
	maker  *applier // makes missing directories; nil: they are an error
}

type frame struct {
	fd   int
	name string
	path string // relative to the root, free of symbolic links
	// What a new file gets here that it would not get elsewhere.
	gid     uint32 // from a setgid directory
	setgid  bool
	ruleset bool // a default ACL changes its mode
}

const maxLinks = 40 // as the kernel has it

func openRoot(root string) (frame, error) {
	fd, err := unix.Open(root, dirFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return frame{}, fmt.Errorf("open root %s: %w", root, err)
	}
	f := frame{fd: fd}
	if err := f.inspect(true); err != nil {
		unix.Close(fd)
		return frame{}, fmt.Errorf("root %s: %w", root, err)
	}
	return f, nil
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// inspect finds out what the directory gives to files made in it.
func (f *frame) inspect(acl bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	f.gid, f.setgid = st.Gid, st.Mode&unix.S_ISGID != 0
	if acl {
		n, err := unix.Fgetxattr(f.fd, aclDefault, nil)
		f.ruleset = err == nil && n > 0
	}
	return nil
}

// close closes everything but the root, which the stacks share.
func (d *dirs) close() { d.cut(1) }

// reset forgets the chain, because a directory in it may have been replaced.
func (d *dirs) reset() { d.cut(1) }

func (d *dirs) cut(n int) {
	for len(d.frames) > n {
		unix.Close(d.top().fd)
		d.frames = d.frames[:len(d.frames)-1]
	}
	d.last, d.plain = d.top().path, true
}

func (d *dirs) top() *frame { return &d.frames[len(d.frames)-1] }

// enter makes dir, a clean relative path or "", the top frame.
func (d *dirs) enter(dir string) (*frame, error) {
	if dir == d.last {
		return d.top(), nil
	}
	keep, rest := 1, dir
	if d.plain {
		for keep < len(d.frames) {
			after, ok := strings.CutPrefix(rest, d.frames[keep].name)
			if !ok || after != "" && after[0] != '/' {
				break
			}
			rest = strings.TrimPrefix(after, "/")
			keep++
		}
	}
	d.cut(keep)
	plain, err := d.walk(rest)
	if err != nil {
		d.reset()
		return nil, err
	}
	d.last, d.plain = dir, plain
	return d.top(), nil
}

func (d *dirs) walk(rest string) (plain bool, err error) {
	links := 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..": // out of a symbolic link
			if len(d.frames) == 1 {
				return false, fmt.Errorf("a symbolic link in its path leads out of the root: %w", errdefs.ErrInvalidArgument)
			}
			d.cut(len(d.frames) - 1)
			continue
		}
		target, err := d.step(name)
		if err != nil {
			return false, err
		}
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			return false, unix.ELOOP
		}
		if target[0] == '/' {
			d.cut(1)
		}
		rest = target + "/" + rest
	}
	return links == 0, nil
}

// step goes down into name, or returns where the symbolic link name leads.
func (d *dirs) step(name string) (link string, err error) {
	if len(d.frames) > maxDepth {
		return "", fmt.Errorf("more than %d directories deep: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	top := d.top()
	fd, err := openat(top.fd, name, dirFlags, 0)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT) && d.maker != nil:
		fd, err = d.maker.implied(top, name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		if link, err := readlink(top.fd, name); err == nil {
			return link, nil
		}
		if d.maker != nil {
			fd, err = d.maker.reveal(top, name)
		}
	}
	if err != nil {
		return "", err
	}
	f := frame{fd: fd, name: name, path: join(top.path, name)}
	if err := f.inspect(d.maker != nil && d.maker.acls); err != nil {
		unix.Close(fd)
		return "", err
	}
	d.frames = append(d.frames, f)
	return "", nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func readlink(dirfd int, name string) (string, error) {
	buf := make([]byte, maxName)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// openat retries what a signal interrupted.
func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
