package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"berth/internal/snapshot/store"

	"golang.org/x/sys/unix"
)

// The ioctls are those of linux/btrfs.h.
const (
	subvolCreate = 0x5000940e // _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	snapDestroy  = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	inoLookup    = 0xd0009412 // _IOWR(0x94, 18, struct btrfs_ioctl_ino_lookup_args)
	snapCreateV2 = 0x50009417 // _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY

	superMagic = 0x9123683e
	// firstObject is the inode number of the root of every subvolume, and the
	// least identifier of a tree of files.
	firstObject = 256
)

type volArgs struct {
	fd   int64
	name [4088]byte
}

type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	unused  [4]uint64
	name    [4040]byte
}

type inoLookupArgs struct {
	treeid   uint64
	objectid uint64
	name     [4080]byte
}

func ioctl(fd uintptr, request uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// inParent calls fn with the directory that path is in, and path's name there.
func inParent(path string, fn func(dir *os.File, name string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return fn(dir, filepath.Base(path))
}

// createSubvolume makes an empty subvolume.
func createSubvolume(path string) error {
	err := inParent(path, func(dir *os.File, name string) error {
		var args volArgs
		copy(args.name[:len(args.name)-1], name)
		return ioctl(dir.Fd(), subvolCreate, unsafe.Pointer(&args))
	})
	if err != nil {
		return fmt.Errorf("create subvolume %s: %w", path, err)
	}
	return nil
}

// snapshotSubvolume makes path a snapshot of the subvolume source.
func snapshotSubvolume(path, source string, readOnly bool) error {
	src, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("snapshot subvolume: %w", err)
	}
	defer src.Close()
	err = inParent(path, func(dir *os.File, name string) error {
		args := volArgsV2{fd: int64(src.Fd())}
		if readOnly {
			args.flags = subvolReadOnly
		}
		copy(args.name[:len(args.name)-1], name)
		return ioctl(dir.Fd(), snapCreateV2, unsafe.Pointer(&args))
	})
	if err != nil {
		return fmt.Errorf("snapshot subvolume %s as %s: %w", source, path, err)
	}
	return nil
}

// deleteSubvolume deletes a subvolume, with those that a container has made in
// it. It is content when there is none. What is no subvolume is removed.
func deleteSubvolume(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("delete subvolume %s: %w", path, err)
	}
	if !isSubvolume(&st) {
		return store.RemoveTree(path)
	}
	err := destroy(path)
	if errors.Is(err, unix.ENOTEMPTY) {
		if err = deleteNested(path); err == nil {
			err = destroy(path)
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // somebody else was faster
		return fmt.Errorf("delete subvolume %s: %w", path, err)
	}
	return nil
}

func isSubvolume(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Ino == firstObject
}

func destroy(path string) error {
	return inParent(path, func(dir *os.File, name string) error {
		var args volArgs
		copy(args.name[:len(args.name)-1], name)
		return ioctl(dir.Fd(), snapDestroy, unsafe.Pointer(&args))
	})
}

// deleteNested deletes the subvolumes below path, of which it has to be walked:
// nothing else tells where they are. What somebody has mounted there is not ours.
func deleteNested(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		sub := filepath.Join(path, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(sub, &st); err != nil {
			return err
		}
		if isMounted(sub) {
			return fmt.Errorf("something is mounted at %s: %w", sub, unix.EBUSY)
		}
		if isSubvolume(&st) {
			err = deleteSubvolume(sub)
		} else {
			err = deleteNested(sub)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isMounted tells whether path is a mount's root; never before Linux 5.8.
func isMounted(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// subvolumeID is what the mount option subvolid= wants.
func subvolumeID(path string) (uint64, error) {
	dir, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	args := inoLookupArgs{objectid: firstObject}
	if err := ioctl(dir.Fd(), inoLookup, unsafe.Pointer(&args)); err != nil {
		return 0, fmt.Errorf("identifier of subvolume %s: %w", path, err)
	}
	return args.treeid, nil
}
