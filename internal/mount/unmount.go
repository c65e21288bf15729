package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const unmountFlags = unix.MNT_FORCE | unix.MNT_DETACH | unix.MNT_EXPIRE | unix.UMOUNT_NOFOLLOW

// Unmount undoes every mount that is stacked on target with umount2 flags, and
// is content when there is none, or no target. A mount that stays busy for a
// moment is detached: it is gone from target, and the kernel lets go of it when
// its last user does.
func Unmount(target string, flags int) error {
	if target == "" {
		return nil
	}
	if flags&^unmountFlags != 0 {
		return fmt.Errorf("unmount %s: unknown flags %#x: %w", target, flags&^unmountFlags, errdefs.ErrInvalidArgument)
	}
	for {
		err := unmountTop(target, flags)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil // not a mount (any more)
		case err != nil:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// unmountTop undoes one mount. Who keeps it busy is mostly a process about to
// end, so it waits a little: 31 ms in all. The kernel gives no sign when a mount is
// not busy any more.
func unmountTop(target string, flags int) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Unmount(target, flags)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if wait > 16*time.Millisecond {
			return unix.Unmount(target, flags&^unix.MNT_EXPIRE|unix.MNT_DETACH)
		}
		time.Sleep(wait)
	}
}

// UnmountRecursive undoes every mount at and below target, deepest first. It
// goes on after a failure and returns what failed.
func UnmountRecursive(target string, flags int) error {
	if target == "" {
		return nil
	}
	abs, err := filepath.Abs(target)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount below %s: %w", target, err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(abs))
	if err != nil {
		return fmt.Errorf("unmount below %s: read mountinfo: %w", target, err)
	}
	points := make([]string, len(infos))
	for i, info := range infos {
		points[i] = info.Mountpoint
	}
	slices.SortFunc(points, func(a, b string) int { return len(b) - len(a) })
	var errs []error
	for _, p := range slices.Compact(points) {
		errs = append(errs, Unmount(p, flags))
	}
	return errors.Join(errs...)
}

// IsThere tells whether something is mounted at path, or path is there but is no
// directory: then it is for a Handler to know. A kernel that does not tell (before
// Linux 5.8), or a mount that does not answer, counts as there.
func IsThere(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if err != nil {
		return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)
	}
	const root = unix.STATX_ATTR_MOUNT_ROOT
	return st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Attributes_mask&root == 0 || st.Attributes&root != 0
}
