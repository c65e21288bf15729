// Package fsx writes files so that they survive a crash: atomic replacement,
// syncing, early write-back, file locks, and the seam through which tests make
// any of these fail.
//
// Code that must be durable performs its file system operations through an
// *OS, each with a label that says what the operation is for ("ingest data",
// "blob dir"). A nil *OS is the real thing and costs one comparison per
// operation. Package fsxtest has the doubles: fail operation k, stop the world
// at operation k, record a trace.
//
// A temporary file is the target's name with the suffix ".tmp". A crash may
// leave it; the next write of the target reuses it. Writers of one path are
// serialised by their caller.
package fsx

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Op is one operation that changes the file system.
type Op struct {
	// Label says what the operation is for, Call which one it is: open, opentemp,
	// link, write, sync, truncate, chmod, chtimes, mkdir, rename, remove,
	// removeall, syncdir.
	Label, Call string
	// Path is what it works on; To is the new name of a rename.
	Path, To string
	// Size is the number of bytes of a write.
	Size int
}

func (o Op) String() string {
	s := o.Label + ": " + o.Call + " " + o.Path
	if o.To != "" {
		s += " " + o.To
	}
	return s
}

// ErrTorn, returned by OS.Before for a write, makes the first half of the bytes
// reach the file before the write fails.
var ErrTorn = errors.New("write torn by a test")

// OS performs the operations. Its methods may be called by many goroutines.
type OS struct {
	// Before is called ahead of each operation; when it fails the operation is
	// not performed and has that error. nil lets everything pass.
	Before func(Op) error
}

func (o *OS) before(op Op) error {
	if o == nil || o.Before == nil {
		return nil
	}
	if err := o.Before(op); err != nil {
		return &os.PathError{Op: op.Call, Path: op.Path, Err: err}
	}
	return nil
}

// OpenFile opens a file for writing, as os.OpenFile does. The label goes with
// the operations on the file. The caller closes it.
func (o *OS) OpenFile(label, path string, flag int, perm os.FileMode) (*File, error) {
	if err := o.before(Op{Label: label, Call: "open", Path: path}); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, err
	}
	return &File{f: f, os: o, label: label}, nil
}

// OpenTemp opens a new file that has no name, on the file system of a directory.
// It is gone when it is closed, or the process dies, unless Link has given it
// a name. errors.ErrUnsupported where the file system has no such files.
func (o *OS) OpenTemp(label, dir string, perm os.FileMode) (*File, error) {
	if err := o.before(Op{Label: label, Call: "opentemp", Path: dir}); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, perm)
	// EISDIR is what kernels say that do not know the flag.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	return &File{f: f, os: o, label: label}, nil
}

// WriteFile makes or overwrites a file, neither atomically nor durably.
func (o *OS) WriteFile(label, path string, data []byte, perm os.FileMode) error {
	f, err := o.OpenFile(label, path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Mkdir makes one directory.
func (o *OS) Mkdir(label, path string, perm os.FileMode) error {
	if err := o.before(Op{Label: label, Call: "mkdir", Path: path}); err != nil {
		return err
	}
	return os.Mkdir(path, perm)
}

// MkdirAll makes a directory and its parents, each of them durable: the
// directory that holds a new one is synced.
func (o *OS) MkdirAll(label, path string, perm os.FileMode) error {
	err := o.Mkdir(label, path, perm)
	switch {
	case errors.Is(err, os.ErrExist):
		info, serr := os.Stat(path)
		if serr != nil {
			return serr
		}
		if !info.IsDir() {
			return &os.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil
	case errors.Is(err, os.ErrNotExist) && filepath.Dir(path) != path:
		if err := o.MkdirAll(label, filepath.Dir(path), perm); err != nil {
			return err
		}
		return o.MkdirAll(label, path, perm)
	case err != nil:
		return err
	}
	return o.SyncDir(label, filepath.Dir(path))
}

// Rename renames, replacing what has the new name.
func (o *OS) Rename(label, from, to string) error {
	if err := o.before(Op{Label: label, Call: "rename", Path: from, To: to}); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// RenameNoReplace renames unless the new name exists: os.ErrExist.
func (o *OS) RenameNoReplace(label, from, to string) error {
	if err := o.before(Op{Label: label, Call: "rename", Path: from, To: to}); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without the flag (NFS): the check and the rename are
		// two steps there.
		if _, err := os.Lstat(to); err == nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: unix.EEXIST}
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Remove removes a file or an empty directory.
func (o *OS) Remove(label, path string) error {
	if err := o.before(Op{Label: label, Call: "remove", Path: path}); err != nil {
		return err
	}
	return os.Remove(path)
}

// RemoveAll removes a tree; none is no error.
func (o *OS) RemoveAll(label, path string) error {
	if err := o.before(Op{Label: label, Call: "removeall", Path: path}); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// SyncDir makes what was created, renamed and removed in a directory durable.
func (o *OS) SyncDir(label, path string) error {
	if err := o.before(Op{Label: label, Call: "syncdir", Path: path}); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: no fsync of directories here
		return err
	}
	return nil
}

// File is an open file whose changes pass the seam. It is used by one
// goroutine at a time.
type File struct {
	f     *os.File
	os    *OS
	label string
}

func (f *File) op(call string, size int) error {
	if f.os == nil || f.os.Before == nil {
		return nil
	}
	return f.os.before(Op{Label: f.label, Call: call, Path: f.f.Name(), Size: size})
}

// Name is the path the file was opened with.
func (f *File) Name() string { return f.f.Name() }

func (f *File) Write(p []byte) (int, error) {
	if err := f.op("write", len(p)); err != nil {
		if !errors.Is(err, ErrTorn) {
			return 0, err
		}
		n, werr := f.f.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return f.f.Write(p)
}

// Read, Seek, Stat and Close pass through to the file.
func (f *File) Read(p []byte) (int, error)                { return f.f.Read(p) }
func (f *File) ReadAt(p []byte, off int64) (int, error)   { return f.f.ReadAt(p, off) }
func (f *File) Seek(off int64, whence int) (int64, error) { return f.f.Seek(off, whence) }
func (f *File) Stat() (os.FileInfo, error)                { return f.f.Stat() }
func (f *File) Close() error                              { return f.f.Close() }

// Truncate cuts or extends the file.
func (f *File) Truncate(size int64) error {
	if err := f.op("truncate", 0); err != nil {
		return err
	}
	return f.f.Truncate(size)
}

// Sync makes the bytes durable, and the metadata needed to read them
// (fdatasync). After it failed the kernel may have dropped the bytes: the file
// is to be written anew, a second Sync proves nothing.
func (f *File) Sync() error {
	if err := f.op("sync", 0); err != nil {
		return err
	}
	for {
		err := unix.Fdatasync(int(f.f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.f.Name(), Err: err}
		}
		return nil
	}
}

// Link gives a file of OpenTemp a name; os.ErrExist when there is one already.
func (f *File) Link(path string) error {
	if f.os != nil && f.os.Before != nil {
		if err := f.os.before(Op{Label: f.label, Call: "link", Path: path}); err != nil {
			return err
		}
	}
	fd := int(f.f.Fd())
	err := unix.Linkat(fd, "", unix.AT_FDCWD, path, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		// Without CAP_DAC_READ_SEARCH the way leads through /proc.
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: f.f.Name(), New: path, Err: err}
	}
	return nil
}

// Chmod sets the permissions.
func (f *File) Chmod(mode os.FileMode) error {
	if err := f.op("chmod", 0); err != nil {
		return err
	}
	return f.f.Chmod(mode)
}

// SetTime sets the times of last access and modification.
func (f *File) SetTime(t time.Time) error {
	if err := f.op("chtimes", 0); err != nil {
		return err
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Futimes(int(f.f.Fd()), []unix.Timeval{tv, tv}); err != nil {
		return &os.PathError{Op: "futimes", Path: f.f.Name(), Err: err}
	}
	return nil
}

// StartWriteback asks the kernel to begin writing a range to the disk and does
// not wait for it. It is a hint: it makes nothing durable and does not fail.
func (f *File) StartWriteback(off, n int64) {
	_ = unix.SyncFileRange(int(f.f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

var _ io.ReadWriteCloser = (*File)(nil)
