package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Rootfs reads files of a container's root filesystem without mounting it: a
// directory, or the layers of an overlay, the uppermost first. Mounting would
// cost a few system calls more, a mount namespace's lock, and a mount to clean
// up after a crash; what is read here are two small files.
//
// The content is hostile. Symbolic links are followed by hand, beneath the
// layers; every open is relative to a directory that is held open and follows
// no link. Close releases the layers.
type Rootfs struct{ layers []int }

// OpenRootfs opens the root filesystem that mounts describe: a bind or overlay
// mount. errdefs.ErrNotImplemented for anything else; it has to be mounted.
func OpenRootfs(mounts []object.Mount) (*Rootfs, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("reading a root filesystem of %d mounts without mounting it: %w", len(mounts), errdefs.ErrNotImplemented)
	}
	m := mounts[0]
	switch m.Type {
	case "bind", "rbind":
		return openLayers(m.Source)
	case "overlay":
		dirs, err := overlayDirs(m.Options)
		if err != nil {
			return nil, err
		}
		return openLayers(dirs...)
	}
	return nil, fmt.Errorf("reading a %s file system without mounting it: %w", m.Type, errdefs.ErrNotImplemented)
}

// OpenRootfsDir opens the root filesystem in a directory.
func OpenRootfsDir(path string) (*Rootfs, error) { return openLayers(path) }

func overlayDirs(options []string) ([]string, error) {
	var dirs []string
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir":
			dirs = append([]string{value}, dirs...)
		case "lowerdir":
			if strings.Contains(value, `\`) || strings.Contains(value, "::") {
				return nil, fmt.Errorf("overlay with escaped or data-only layers: %w", errdefs.ErrNotImplemented)
			}
			dirs = append(dirs, strings.Split(value, ":")...)
		case "metacopy", "redirect_dir":
			if value != "off" && value != "nofollow" {
				return nil, fmt.Errorf("overlay with %s, whose files may be elsewhere: %w", o, errdefs.ErrNotImplemented)
			}
		}
	}
	return dirs, nil
}

func openLayers(dirs ...string) (*Rootfs, error) {
	r := &Rootfs{}
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("opening a layer of the root filesystem: %w", &fs.PathError{Op: "open", Path: dir, Err: err})
		}
		r.layers = append(r.layers, fd)
	}
	return r, nil
}

func (r *Rootfs) Close() error {
	closeAll(r.layers)
	r.layers = nil
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// maxLinks is the kernel's own bound on the links of one path (path_resolution(7)).
const maxLinks = 40

// ReadFile returns the content of the regular file at name, at most limit
// bytes. fs.ErrNotExist when there is none.
func (r *Rootfs) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.open(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name + " in the container", Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in the container is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s of the container: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s in the container is larger than %d bytes", name, limit)
	}
	return b, nil
}

// open walks to name. A merged directory is the list of the directories of that
// path in the layers, uppermost first; stack holds those from the root down.
func (r *Rootfs) open(name string) (*os.File, error) {
	stack := [][]int{r.layers}
	defer func() {
		for _, dirs := range stack[1:] {
			closeAll(dirs)
		}
	}()
	pending, links := splitPath(name), 0
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if top := len(stack) - 1; top > 0 {
				closeAll(stack[top])
				stack = stack[:top]
			}
			continue
		}
		e, err := lookup(stack[len(stack)-1], part)
		if err != nil {
			return nil, err
		}
		switch {
		case e.dirs != nil:
			stack = append(stack, e.dirs)
		case e.target != "":
			if links++; links > maxLinks {
				return nil, unix.ELOOP
			}
			if filepath.IsAbs(e.target) {
				for _, dirs := range stack[1:] {
					closeAll(dirs)
				}
				stack = stack[:1]
			}
			pending = append(splitPath(e.target), pending...)
		case len(pending) > 0:
			e.file.Close()
			return nil, unix.ENOTDIR
		default:
			return e.file, nil
		}
	}
	return nil, unix.EISDIR
}

func splitPath(name string) []string { return strings.Split(name, "/") }

// entry is what a name in a merged directory stands for; one field is set.
type entry struct {
	dirs   []int
	target string
	file   *os.File
}

func lookup(dirs []int, name string) (e entry, err error) {
	defer func() {
		if err != nil {
			closeAll(e.dirs)
		}
	}()
	for i, dir := range dirs {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return e, err
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFDIR && e.dirs != nil {
			return e, nil // a file, or a whiteout, hides what is below it
		}
		switch kind {
		case unix.S_IFDIR:
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return e, err
			}
			e.dirs = append(e.dirs, fd)
			if i < len(dirs)-1 && opaque(fd) {
				return e, nil
			}
		case unix.S_IFLNK:
			var buf [unix.PathMax]byte
			n, err := unix.Readlinkat(dir, name, buf[:])
			if err != nil {
				return e, err
			}
			return entry{target: string(buf[:n])}, nil
		case unix.S_IFREG:
			// O_NONBLOCK, because it may have become a FIFO since.
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return e, err
			}
			return entry{file: os.NewFile(uintptr(fd), name)}, nil
		case unix.S_IFCHR:
			if st.Rdev == 0 {
				return e, unix.ENOENT // a whiteout
			}
			return e, unix.EINVAL
		default:
			return e, unix.EINVAL
		}
	}
	if e.dirs == nil {
		return e, unix.ENOENT
	}
	return e, nil
}

// opaque tells whether a directory of a layer hides those of lower layers.
func opaque(dir int) bool {
	var v [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Fgetxattr(dir, name, v[:]); err == nil && n == 1 && v[0] == 'y' {
			return true
		}
	}
	return false
}
