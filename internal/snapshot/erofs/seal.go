package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot/store"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// seal makes the layer of what an active snapshot has, unless a differ has
// written it, and returns where it is.
func (e *Snapshotter) seal(ctx context.Context, id string, labels map[string]string) (string, error) {
	layer, err := e.layer(id, labels)
	if labels[labelSource] != "" {
		return layer, err
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	written, werr := e.written(id)
	if werr != nil {
		return "", werr
	}
	// With files beside it the layer is of a commit that failed: there may be
	// more of them now.
	if err != nil || written {
		layer = e.path(id, "layer.erofs")
		if err := e.convert(ctx, id, layer); err != nil {
			return "", err
		}
	}
	if e.opts.Verity {
		if err := enableVerity(layer); err != nil {
			return "", err
		}
	}
	if e.opts.Immutable {
		if err := setImmutable(layer, true); err != nil {
			return "", err
		}
	}
	return layer, nil
}

// written tells whether an active snapshot has files that a layer is made of.
func (e *Snapshotter) written(id string) (bool, error) {
	if _, err := os.Lstat(e.path(id, writableImage)); err == nil {
		return true, nil
	}
	f, err := os.Open(e.path(id, "fs"))
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return true, err
}

func (e *Snapshotter) convert(ctx context.Context, id, layer string) error {
	if err := setImmutable(layer, false); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	image := e.path(id, writableImage)
	if _, err := os.Lstat(image); errors.Is(err, os.ErrNotExist) {
		return makeImage(ctx, layer, e.path(id, "fs"))
	} else if err != nil {
		return err
	}
	// Two devices of one image would each have an idea of their own of it.
	if err := mount.Released(ctx, image); err != nil {
		return err
	}
	// Writable, for the journal of one that was not unmounted.
	m := []object.Mount{{Type: "ext4", Source: image, Options: []string{"loop"}}}
	return mount.WithTemp(ctx, m, func(root string) error {
		upper := filepath.Join(root, "upper")
		if _, err := os.Lstat(upper); errors.Is(err, os.ErrNotExist) {
			upper = e.path(id, "fs")
		}
		return makeImage(ctx, layer, upper)
	})
}

// makeImage makes an erofs of a directory.
func makeImage(ctx context.Context, layer, dir string) error {
	draft := layer + ".new"
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", "-Enoinline_data", draft, dir).CombinedOutput()
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%w (install erofs-utils)", err)
		}
		return errors.Join(fmt.Errorf("mkfs.erofs of %s: %w: %s", dir, err, strings.TrimSpace(string(out))), os.RemoveAll(draft))
	}
	return publish(draft, layer)
}

// publish gives a whole layer its name, durably: what it was made of, which may have
// been on the disk for long, is deleted when the record says committed.
func publish(draft, layer string) error {
	if err := syncPath(draft); err != nil {
		return err
	}
	if err := os.Rename(draft, layer); err != nil {
		return err
	}
	return syncPath(filepath.Dir(layer))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// clearUpper deletes what a committed layer was made of.
func (e *Snapshotter) clearUpper(id string) error {
	if err := os.Remove(e.path(id, writableImage)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	upper := e.path(id, "fs")
	f, err := os.Open(upper)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, store.RemoveTree(filepath.Join(upper, name)))
	}
	return errors.Join(errs...)
}

// setImmutable is content where the filesystem has no such attribute, and
// changes nothing that is as it should be.
func setImmutable(path string, on bool) error {
	const immutable = 0x10 // FS_IMMUTABLE_FL
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", path, err)
	}
	want := flags &^ immutable
	if on {
		want |= immutable
	}
	if want == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, want); err != nil {
		return fmt.Errorf("immutable attribute of %s: %w", path, err)
	}
	return nil
}

// verityArg is struct fsverity_enable_arg of linux/fsverity.h.
type verityArg struct {
	version, hash, blockSize, saltSize uint32
	salt                               uint64
	sigSize, _                         uint32
	sig                                uint64
	_                                  [11]uint64
}

// enableVerity seals a file; it is content with a sealed one.
func enableVerity(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	block := unix.Getpagesize()
	if st.Blksize > 0 && int(st.Blksize) < block {
		block = int(st.Blksize)
	}
	arg := verityArg{version: 1, hash: 1 /* SHA-256 */, blockSize: uint32(block)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("fs-verity of %s: %w", path, errno)
	}
	return nil
}

func requireVerity(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&unix.FS_VERITY_FL == 0 {
		err = errdefs.ErrFailedPrecondition
	}
	if err != nil {
		return fmt.Errorf("layer %s is not sealed by fs-verity: %w", path, err)
	}
	return nil
}

// checkVerity tries it on the filesystem of root.
func checkVerity(root string) error {
	f, err := os.CreateTemp(root, ".probe-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	if err := enableVerity(f.Name()); err != nil {
		return fmt.Errorf("the filesystem of %s has no fs-verity: %w: %w", root, err, errdefs.ErrNotImplemented)
	}
	return nil
}
