package store

import (
	"context"
	"fmt"

	"berth/internal/object"

	"golang.org/x/sys/unix"
)

// Measure walks a directory tree: its inodes, hard links counted once, and the
// blocks that they take on disk. What disappears meanwhile is not counted.
func Measure(ctx context.Context, dir string) (object.SnapshotUsage, error) {
	return MeasureSince(ctx, dir, "")
}

// MeasureSince leaves out what has not changed since the tree base was copied
// to dir by the filesystem, inode numbers and all: a subvolume's snapshot. An
// empty base leaves out nothing.
func MeasureSince(ctx context.Context, dir, base string) (object.SnapshotUsage, error) {
	w := walk{ctx: ctx, linked: map[inode]struct{}{}, buf: make([]byte, 32<<10)}
	fd, err := unix.Open(dir, dirFlags, 0)
	if err != nil {
		return object.SnapshotUsage{}, err
	}
	old := -1
	if base != "" {
		if old, err = unix.Open(base, dirFlags, 0); err != nil {
			unix.Close(fd)
			return object.SnapshotUsage{}, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return object.SnapshotUsage{}, err
	}
	if !unchanged(&st, old, "") {
		w.count(&st)
	}
	err = w.dir(fd, old, 0)
	return w.usage, err
}

// unchanged compares with what has the name in the directory old, or is it.
func unchanged(st *unix.Stat_t, old int, name string) bool {
	if old < 0 {
		return false
	}
	var was unix.Stat_t
	if err := unix.Fstatat(old, name, &was, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		return false
	}
	return was.Ino == st.Ino && was.Mode == st.Mode && was.Ctim == st.Ctim && was.Size == st.Size && was.Blocks == st.Blocks
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

type inode struct{ dev, ino uint64 }

type walk struct {
	ctx    context.Context
	usage  object.SnapshotUsage
	linked map[inode]struct{} // those with several names that were seen
	buf    []byte
}

func (w *walk) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{uint64(st.Dev), st.Ino}
		if _, ok := w.linked[id]; ok {
			return
		}
		w.linked[id] = struct{}{}
	}
	w.usage.Inodes++
	w.usage.Size += st.Blocks * 512
}

// maxDepth is how deep a path can lead. A container can nest directories deeper,
// and each level of a walk takes descriptors that the whole daemon needs.
const maxDepth = unix.PathMax / 2

// dir counts what is in a directory, and closes it. old is the directory to
// compare with, -1 when there is none; it is closed too.
func (w *walk) dir(fd, old, depth int) error {
	defer unix.Close(fd)
	if old >= 0 {
		defer unix.Close(old)
	}
	if depth > maxDepth {
		return fmt.Errorf("directories are nested deeper than %d: %w", maxDepth, unix.ENAMETOOLONG)
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	var names []string
	for {
		n, err := unix.Getdents(fd, w.buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOENT { // it was removed meanwhile
			break
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names)
	}
	var st unix.Stat_t
	for _, name := range names {
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return err
		}
		if !unchanged(&st, old, name) {
			w.count(&st)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, name, dirFlags, 0)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return err
		}
		was := -1
		if old >= 0 {
			if was, err = unix.Openat(old, name, dirFlags, 0); err != nil {
				was = -1
			}
		}
		if err := w.dir(sub, was, depth+1); err != nil {
			return err
		}
	}
	return nil
}
