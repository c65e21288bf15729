package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxOpen bounds how many directories are open at a time, one below the other. What
// lies deeper is moved up first: a container can nest directories deeper than the
// daemon has descriptors.
const maxOpen = 100

// RemoveTree removes a file, or a directory with all below it, and is content when
// there is none. It never leaves the mount that the directory is in: what somebody
// has mounted there (a volume, which shows up below a snapshot where mounts are
// shared) is not ours to delete, nor is the directory below it. Then it goes on with
// the rest, and returns an error that names the place.
func RemoveTree(path string) error {
	dir, name := filepath.Split(filepath.Clean(path))
	fd, err := unix.Open(filepath.Clean(dir), dirFlags&^unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(fd)
	r := remover{top: -1, buf: make([]byte, 16<<10)}
	if err := r.one(fd, name, 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

type remover struct {
	top   int // the directory to be removed, which takes what lies too deep
	moved int
	buf   []byte
}

// one removes what has the name in the directory fd.
func (r *remover) one(fd int, name string, depth int) error {
	// Most are files. A directory is EISDIR, but EPERM says POSIX; so does an immutable file.
	err := unix.Unlinkat(fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return named(name, err)
	}
	sub, oerr := openHere(fd, name)
	switch {
	case errors.Is(oerr, unix.ENOENT):
		return nil
	case errors.Is(oerr, unix.EXDEV):
		return named(name, fmt.Errorf("something is mounted there: %w", unix.EBUSY))
	case errors.Is(oerr, unix.ENOTDIR), errors.Is(oerr, unix.ELOOP):
		return named(name, err)
	case oerr != nil:
		return named(name, oerr)
	}
	defer unix.Close(sub)
	if depth == 0 {
		r.top = sub
	}
	if err := r.content(sub, depth); err != nil {
		return named(name, err)
	}
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return named(name, err)
	}
	return nil
}

// openHere opens a directory unless something is mounted there: unix.EXDEV.
func openHere(fd int, name string) (int, error) {
	for range 100 {
		sub, err := unix.Openat2(fd, name, &unix.OpenHow{
			Flags:   uint64(dirFlags),
			Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // something else was renamed or mounted
			continue
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // before Linux 5.6, or an old seccomp profile
			return openOnDevice(fd, name)
		}
		return sub, err
	}
	return -1, unix.EAGAIN
}

// openOnDevice sees mounts of other filesystems only.
func openOnDevice(fd int, name string) (int, error) {
	var above, below unix.Stat_t
	if err := unix.Fstat(fd, &above); err != nil {
		return -1, err
	}
	sub, err := unix.Openat(fd, name, dirFlags, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Fstat(sub, &below); err == nil && above.Dev != below.Dev {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(sub)
		return -1, err
	}
	return sub, nil
}

// content empties a directory. The top one is read anew as long as something has been
// moved there.
func (r *remover) content(fd, depth int) error {
	for {
		moved := r.moved
		names, err := r.list(fd)
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range names {
			if depth >= maxOpen && r.up(fd, name) {
				continue
			}
			if err := r.one(fd, name, depth+1); err != nil && len(errs) < 3 {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 || depth > 0 || r.moved == moved {
			return errors.Join(errs...)
		}
	}
}

// up moves a directory with something in it to the top; false for all else.
func (r *remover) up(fd int, name string) bool {
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
		return err == nil
	}
	for {
		r.moved++
		err := unix.Renameat2(fd, name, r.top, ".removed-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			return err == nil
		}
	}
}

// list reads the names in a directory from its beginning.
func (r *remover) list(fd int) (names []string, err error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	for {
		n, err := unix.Getdents(fd, r.buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOENT { // somebody else has removed it
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(r.buf[:n], -1, names)
	}
}

// named puts a name in front of an error; nested ones become a path.
func named(name string, err error) error { return fmt.Errorf("%s/%w", name, err) }
