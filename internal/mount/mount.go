// Package mount performs and undoes mounts.
//
// It owns the meaning of the option strings that snapshotters emit: fstab
// words become mount(2) flags, loop, uidmap= and gidmap= are carried out here,
// everything else is data for the filesystem, passed on as it is written
// (overlay's backslash escapes included).
//
// Targets of mounts are resolved beneath the root that they are mounted at, so
// a symbolic link in an image cannot lead a mount out of it. The package keeps
// no state and starts no goroutine that outlives a call; the process's working
// directory never changes.
package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// All mounts in order below (or at) target; each mount's own Target is relative
// to it and must exist. A failure undoes what was mounted.
func All(mounts []live.Mount, target string) error {
	for i, m := range mounts {
		if err := one(m, target); err != nil {
			return errors.Join(err, undo(mounts[:i], target))
		}
	}
	return nil
}

// undo takes away what All has mounted, the last first. It detaches: nobody
// was told of the mounts yet, so nobody can be using them.
func undo(mounts []live.Mount, target string) error {
	for _, m := range slices.Backward(mounts) {
		err := at(target, m.Target, func(path string) error { return unix.Unmount(path, unix.MNT_DETACH) })
		if err != nil {
			return fmt.Errorf("undo mount of %s at %s: %w", m.Source, target, err)
		}
	}
	return nil
}

func one(m live.Mount, root string) error {
	err := at(root, m.Target, func(path string) error { return attach(m, path) })
	if err != nil {
		return fmt.Errorf("mount %s %q at %s: %w", m.Type, m.Source, describe(root, m.Target), err)
	}
	return nil
}

func describe(root, sub string) string {
	if sub == "" {
		return root
	}
	return root + " (below it: " + sub + ")"
}

// at calls fn with a path for sub beneath root. The path stays right whatever
// happens to the tree meanwhile, but only for the duration of the call.
func at(root, sub string, fn func(path string) error) error {
	if sub == "" || sub == "/" || sub == "." {
		return fn(root)
	}
	base, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(base)
	fd, err := unix.Openat2(base, sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // before Linux 5.6, or an old seccomp profile
		path, err := securejoin.SecureJoin(root, sub)
		if err != nil {
			return fmt.Errorf("resolve %s below %s: %w", sub, root, err)
		}
		return fn(path)
	}
	if err != nil {
		return fmt.Errorf("resolve %s below %s: %w", sub, root, err)
	}
	defer unix.Close(fd)
	return fn("/proc/self/fd/" + strconv.Itoa(fd))
}

// attach mounts m at path. When it fails nothing is mounted there.
func attach(m live.Mount, path string) (err error) {
	if helper, fstype, ok := fuseHelper(m.Type); ok {
		return runHelper(helper, fstype, m, path)
	}
	opts, err := parse(m)
	if err != nil {
		return err
	}
	source := m.Source
	if opts.loop {
		device, shared, err := attachLoop(source, opts.flags&unix.MS_RDONLY != 0, opts.directIO)
		if err != nil {
			return fmt.Errorf("loop device: %w", err)
		}
		defer device.Close() // the mount holds the device; it clears itself after the unmount
		source, opts.shared = device.Name(), shared
	}
	if opts.uidmap != "" {
		userns, err := userNamespace(opts.uidmap, opts.gidmap)
		if err != nil {
			return err
		}
		defer userns.Close()
		if m.Type != "overlay" {
			return attachMapped(source, path, m.Type, opts, userns)
		}
		data, done, err := mapLowers(opts.data, userns)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
		opts.data = data
	}
	if opts.flags&unix.MS_BIND != 0 && opts.flags&unix.MS_REMOUNT == 0 {
		return bind(source, path, opts)
	}
	if err := mountData(source, path, m.Type, opts); err != nil {
		return err
	}
	return propagate(path, opts)
}

// bind mounts source at path and gives the new mount its attributes, which the
// kernel ignores at the bind itself.
func bind(source, path string, opts options) error {
	if err := unix.Mount(source, path, "", uintptr(opts.flags&(unix.MS_BIND|unix.MS_REC)), ""); err != nil {
		return err
	}
	err := restrict(path, opts.flags)
	if err == nil {
		err = propagate(path, opts)
	}
	if err != nil {
		return errors.Join(err, unix.Unmount(path, unix.MNT_DETACH))
	}
	return nil
}

// attributes are the flags that belong to a mount, not to its filesystem.
const attributes = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC |
	unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_STRICTATIME

// restrict adds the attributes in flags to the mount at path (to the top one of
// a recursive bind). Those that it has already stay: inside a user namespace
// they may be locked, and dropping nosuid because ro was asked for helps nobody.
func restrict(path string, flags int) error {
	want := flags & attributes
	if want == 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	// ST_* and MS_* of these four are the same numbers; atime flags are kept by
	// the kernel when none is given.
	keep := int(st.Flags) & (unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", path, "", uintptr(unix.MS_REMOUNT|unix.MS_BIND|want|keep), ""); err != nil {
		return fmt.Errorf("set mount attributes %#x: %w", want, err)
	}
	return nil
}

func propagate(path string, opts options) error {
	for _, p := range opts.propagation {
		if err := unix.Mount("", path, "", uintptr(p), ""); err != nil {
			return errors.Join(fmt.Errorf("set propagation %#x: %w", p, err), unix.Unmount(path, unix.MNT_DETACH))
		}
	}
	return nil
}

// mountData mounts a filesystem. One on a device that others have mounted writable is
// writable for all, so a mount of it that is to be read-only is made so by itself.
func mountData(source, path, fstype string, opts options) error {
	if !opts.shared || opts.flags&unix.MS_RDONLY == 0 {
		return mountOld(source, path, fstype, opts)
	}
	opts.flags &^= unix.MS_RDONLY
	if err := mountOld(source, path, fstype, opts); err != nil {
		return err
	}
	if err := restrict(path, unix.MS_RDONLY); err != nil {
		return errors.Join(err, unix.Unmount(path, unix.MNT_DETACH))
	}
	return nil
}

// mountOld calls mount(2), which takes no more than a page of options: the
// paths of an overlay that has more are made relative to their parent, or given
// to the kernel one by one.
func mountOld(source, path, fstype string, opts options) error {
	data := strings.Join(opts.data, ",")
	limit := os.Getpagesize() - 1
	if len(data) <= limit {
		return unix.Mount(source, path, fstype, uintptr(opts.flags), data)
	}
	dir, compact := "", ""
	if fstype == "overlay" {
		dir, compact = relativeTo(opts.data)
	}
	if fstype == "overlay" && (dir == "" || len(compact) > limit) {
		opts.data = oneByOne(opts.data)
		err := newMount(source, path, fstype, opts)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) { // EINVAL before Linux 6.7
			return err
		}
	}
	if dir == "" || len(compact) > limit {
		return fmt.Errorf("options take %d bytes, the kernel accepts %d: the image has too many layers: %w", len(data), limit, errdefs.ErrInvalidArgument)
	}
	return inDirectory(dir, func() error {
		return unix.Mount(source, path, fstype, uintptr(opts.flags), compact)
	})
}

// oneByOne makes an option of each lower directory.
func oneByOne(data []string) []string {
	var out []string
	for _, o := range data {
		lowers, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			out = append(out, o)
			continue
		}
		for _, l := range splitLower(lowers) {
			out = append(out, "lowerdir+="+unescape(l))
		}
	}
	return out
}

// inDirectory runs fn on a thread of its own whose working directory is dir.
// The thread shares it with no other and ends with the call: a goroutine that
// returns while locked takes its thread along.
func inDirectory(dir string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and what it does shows in /proc of
			// the whole process. Hold it while another one does the work.
			defer runtime.UnlockOSThread()
			done <- inDirectory(dir, fn)
			return
		}
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare the working directory: %w", err)
			return
		}
		if err := unix.Chdir(dir); err != nil {
			done <- fmt.Errorf("change to %s: %w", dir, err)
			return
		}
		done <- fn()
	}()
	return <-done
}
