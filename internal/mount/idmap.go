package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// attachMapped mounts, at path and with its owners mapped by the user namespace,
// a copy of the tree at source (a bind), or a filesystem.
func attachMapped(source, path, fstype string, opts options, userns *os.File) error {
	if opts.flags&unix.MS_BIND != 0 {
		return attachCopy(source, path, opts, userns)
	}
	if err := mountData(source, path, fstype, opts); err != nil {
		return err
	}
	// The copy takes the place of the mount, which must not stay below it.
	err := attachCopy(path, path, opts, userns)
	if err != nil {
		return errors.Join(err, unix.Unmount(path, unix.MNT_DETACH))
	}
	return nil
}

// attachCopy mounts a mapped copy of the mount at source, and what is mounted below
// it if the options say so. Where path is source, the mount there goes.
func attachCopy(source, path string, opts options, userns *os.File) error {
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP | uint64(attributesOf(opts.flags)),
		Propagation: unix.MS_PRIVATE,
		Userns_fd:   uint64(userns.Fd()),
	}
	if opts.flags&(unix.MS_NOATIME|unix.MS_STRICTATIME|unix.MS_RELATIME) != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME // one of several, not a bit
	}
	clone := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	at := uint(unix.AT_EMPTY_PATH)
	if opts.flags&unix.MS_REC != 0 {
		clone |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, clone)
	if err != nil {
		return fmt.Errorf("clone mount %s: %w", source, err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", at, &attr); err != nil {
		return fmt.Errorf("map owners of %s (does its filesystem support idmapped mounts?): %w", source, err)
	}
	if path == source {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return propagate(path, opts)
}

// mapLowers makes an idmapped, read-only copy of the mount that holds an
// overlay's lower directories, and returns the options with them replaced.
// done undoes it after the overlay is mounted: overlayfs keeps what it needs.
func mapLowers(data []string, userns *os.File) (_ []string, done func() error, err error) {
	i := slices.IndexFunc(data, func(o string) bool { return strings.HasPrefix(o, "lowerdir=") })
	if i < 0 {
		return nil, nil, fmt.Errorf("idmapped overlay without lowerdir: %w", errdefs.ErrInvalidArgument)
	}
	lowers := splitLower(strings.TrimPrefix(data[i], "lowerdir="))
	dir := parent(lowers)
	if dir == "" {
		return nil, nil, fmt.Errorf("lower directories %q have no directory in common to map: %w", data[i], errdefs.ErrInvalidArgument)
	}
	tmp, remove, err := tempDir()
	if err != nil {
		return nil, nil, err
	}
	// With what is mounted there: lower directories may be mounts themselves.
	if err := attachCopy(unescape(dir), tmp, options{flags: unix.MS_RDONLY | unix.MS_REC}, userns); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	for j, l := range lowers {
		lowers[j] = tmp + "/" + l[len(dir):]
	}
	data = slices.Clone(data)
	data[i] = "lowerdir=" + strings.Join(lowers, ":")
	return data, remove, nil
}

// userNamespace makes a user namespace with the mappings, which are lists of
// container:host:size separated by commas.
func userNamespace(uidmap, gidmap string) (*os.File, error) {
	uids, err := parseIDMap(uidmap)
	if err != nil {
		return nil, err
	}
	gids, err := parseIDMap(gidmap)
	if err != nil {
		return nil, err
	}
	// A namespace needs a process to be born in. This one is traced, so it
	// stops at its exec and never runs an instruction of the program.
	pidfd := -1
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: uids,
		GidMappings: gids,
		Ptrace:      true,
		Pdeathsig:   unix.SIGKILL,
		PidFD:       &pidfd,
	}})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace for mappings %s and %s: %w", uidmap, gidmap, err)
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	if pidfd >= 0 {
		// Still that process: then what was opened is its namespace.
		err = errors.Join(err, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0))
		unix.Close(pidfd)
	} else {
		err = errors.Join(err, p.Kill())
	}
	_, _ = p.Wait() // ECHILD when a reaper of orphans was faster
	if err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, fmt.Errorf("open the user namespace for mappings %s and %s: %w", uidmap, gidmap, err)
	}
	return ns, nil
}

func parseIDMap(list string) ([]syscall.SysProcIDMap, error) {
	var out []syscall.SysProcIDMap
	for entry := range strings.SplitSeq(list, ",") {
		var n [3]uint64
		parts := strings.Split(entry, ":")
		ok := len(parts) == len(n)
		for i := 0; ok && i < len(n); i++ {
			var err error
			n[i], err = strconv.ParseUint(parts[i], 10, 32)
			ok = err == nil
		}
		if !ok || n[2] == 0 {
			return nil, fmt.Errorf("id mapping %q: want container:host:size: %w", entry, errdefs.ErrInvalidArgument)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: int(n[0]), HostID: int(n[1]), Size: int(n[2])})
	}
	return out, nil
}
