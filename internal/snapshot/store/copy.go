package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CopyTree copies what is in the directory src into the existing directory dst,
// with everything that belongs to it: owners, modes, times, extended
// attributes, hard links, devices and holes.
func CopyTree(ctx context.Context, src, dst string) error {
	from, err := unix.Open(src, dirFlags, 0)
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	defer unix.Close(from)
	to, err := unix.Open(dst, dirFlags, 0)
	if err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	defer unix.Close(to)
	c := copier{ctx: ctx, root: to, links: map[inode]string{}}
	if err := c.directory(from, to, ""); err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
}

// CopyFile copies a regular file, holes and all, to dst, which must not exist,
// and returns when the copy is on disk. Blocks are shared if the filesystem can.
func CopyFile(ctx context.Context, src, dst string, mode os.FileMode) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	to, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	c := copier{ctx: ctx}
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) != nil {
		err = c.data(int(from.Fd()), int(to.Fd()), st.Size())
	}
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, errors.Join(err, os.Remove(dst)))
	}
	return nil
}

type copier struct {
	ctx   context.Context
	root  int
	links map[inode]string // files with several names → the first copied, from the root
}

func (c *copier) directory(from, to int, path string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if strings.Count(path, "/") > maxDepth {
		return fmt.Errorf("directories are nested deeper than %d: %w", maxDepth, unix.ENAMETOOLONG)
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	dir, err := os.Open(procPath(from))
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.one(from, to, name, path+"/"+name); err != nil {
			return fmt.Errorf("%s: %w", path+"/"+name, err)
		}
	}
	return c.attributes(procPath(from), procPath(to), &st)
}

func (c *copier) one(from, to int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if st.Nlink > 1 && kind != unix.S_IFDIR {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := c.links[id]; ok {
			return unix.Linkat(c.root, strings.TrimPrefix(first, "/"), to, name, 0)
		}
		c.links[id] = path
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		return c.subdirectory(from, to, name, path)
	case unix.S_IFREG:
		if err := c.file(from, to, name, st.Size); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(procPath(from) + "/" + name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return c.attributes(procPath(from)+"/"+name, procPath(to)+"/"+name, &st)
}

func (c *copier) subdirectory(from, to int, name, path string) error {
	src, err := unix.Openat(from, name, dirFlags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, dirFlags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return c.directory(src, dst, path)
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// file shares the blocks if the filesystem can, else copies those that there are.
func (c *copier) file(from, to int, name string, size int64) error {
	src, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if size > 0 && unix.IoctlFileClone(dst, src) != nil {
		err = c.data(src, dst, size)
	}
	return errors.Join(err, unix.Close(dst))
}

func (c *copier) data(src, dst int, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(src, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole until the end
		}
		end := size
		if err == nil {
			end, err = unix.Seek(src, start, unix.SEEK_HOLE)
		} else if errors.Is(err, unix.EINVAL) {
			start, err = at, nil // no holes here
		}
		if err != nil {
			return err
		}
		if err := c.piece(src, dst, start, min(end, size)); err != nil {
			return err
		}
		at = end
	}
	return unix.Ftruncate(dst, size)
}

func (c *copier) piece(src, dst int, start, end int64) error {
	in, out := start, start
	for in < end {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(end-in, 64<<20)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return readWrite(src, dst, in, end)
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func readWrite(src, dst int, start, end int64) error {
	buf := make([]byte, 128<<10)
	for start < end {
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), end-start)], start)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		for b := buf[:n]; len(b) > 0; {
			m, err := unix.Pwrite(dst, b, start)
			if err != nil {
				return err
			}
			b, start = b[m:], start+int64(m)
		}
	}
	return nil
}

// attributes: the owner first, for it clears setuid bits and capabilities; the
// times last.
func (c *copier) attributes(src, dst string, st *unix.Stat_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		flags = 0 // src and dst are the descriptors' links
	}
	if err := unix.Fchownat(unix.AT_FDCWD, dst, int(st.Uid), int(st.Gid), flags); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if err := copyXattrs(src, dst, isDir); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, flags)
}

func copyXattrs(src, dst string, follow bool) error {
	list, get, set := unix.Llistxattr, unix.Lgetxattr, unix.Lsetxattr
	if follow {
		list, get, set = unix.Listxattr, unix.Getxattr, unix.Setxattr
	}
	names := make([]byte, 1024)
	n, err := list(src, names)
	if errors.Is(err, unix.ERANGE) {
		names = make([]byte, 64<<10) // the kernel's limit
		n, err = list(src, names)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	var value []byte
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if value == nil {
			value = make([]byte, 64<<10)
		}
		n, err := get(src, name, value)
		if err == nil {
			err = set(dst, name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return nil
}
