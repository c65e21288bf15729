package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// checkKernel looks at its version, file systems and system calls.
func checkKernel(_ context.Context, e *exam) {
	release := e.text("proc/sys/kernel/osrelease")
	major, minor, ok := version(release)
	switch {
	case !ok:
		e.add("version", Warning, fmt.Sprintf("%q cannot be understood", release), "")
	case major < 4 || major == 4 && minor < 18:
		e.add("version", Problem, release+" is older than 4.18", "upgrade the kernel")
	case major == 4 || major == 5 && minor < 10:
		e.add("version", Warning, release+": idmapped mounts, cgroup v2's full control and pidfds need 5.12", "upgrade the kernel where user namespaces or cgroup v2 matter")
	default:
		e.ok("version", "%s", release)
	}
	checkFilesystems(e)
	checkNamespaces(e)
	checkSyscalls(e)
}

func version(release string) (major, minor int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(strings.TrimRight(strings.SplitN(parts[1], "-", 2)[0], "+"))
	return major, minor, err1 == nil && err2 == nil
}

func checkFilesystems(e *exam) {
	known := map[string]bool{}
	for line := range strings.Lines(e.text("proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 {
			known[f[len(f)-1]] = true
		}
	}
	switch {
	case known["overlay"]:
		e.ok("overlayfs", "available")
	case e.module("overlay"):
		e.add("overlayfs", OK, "a module that is loaded when it is needed", "")
	default:
		e.add("overlayfs", Problem, "not in this kernel; images can only be copied (snapshotter native)", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS")
	}
	for _, fs := range []string{"erofs", "btrfs"} {
		if known[fs] || e.module(fs) {
			e.ok(fs, "available")
		} else {
			e.add(fs, Info, "not in this kernel: the snapshotter "+fs+" cannot be used", "")
		}
	}
	for _, fs := range []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue"} {
		if !known[fs] {
			e.add(fs, Problem, "not in this kernel; every container mounts it", "a kernel with this file system")
		}
	}
}

// module tells whether the running kernel has a module of that name to load.
func (e *exam) module(name string) bool {
	release := e.text("proc/sys/kernel/osrelease")
	list := e.text("lib/modules/" + release + "/modules.dep")
	return strings.Contains(list, "/"+name+".ko")
}

func checkNamespaces(e *exam) {
	var missing []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		if _, err := os.Lstat(e.path("proc/self/ns/" + ns)); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		e.add("namespaces", Problem, "this kernel has no "+strings.Join(missing, ", "), "a kernel with CONFIG_NAMESPACES and all below it")
	} else {
		e.ok("namespaces", "mnt, pid, net, ipc, uts")
	}
	switch n := e.text("proc/sys/user/max_user_namespaces"); {
	case n == "0":
		e.add("user namespaces", Warning, "none may be made: --uidmap and pods with hostUsers: false fail", "sysctl -w user.max_user_namespaces=15000")
	case n == "":
		e.add("user namespaces", Warning, "not in this kernel", "a kernel with CONFIG_USER_NS")
	default:
		e.ok("user namespaces", "up to %s", n)
	}
}

// checkSyscalls asks for system calls that a seccomp filter around this host (it
// may be a container itself) or an old kernel may refuse. None of them does anything.
func checkSyscalls(e *exam) {
	for _, c := range []struct {
		name, fix string
		call      func() error
	}{
		{"openat2", "", func() error {
			fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"pidfd_open", "", func() error {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"open_tree", "", func() error {
			fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLOEXEC)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
	} {
		switch err := c.call(); {
		case err == nil:
		case errors.Is(err, unix.ENOSYS):
			e.add(c.name, Info, "this kernel does not have it; slower ways are used", "")
		case errors.Is(err, unix.EPERM):
			e.add(c.name, Warning, "it is refused: this seems to be a container with an old seccomp profile", "run the daemon on the host, or with a newer profile")
		}
	}
}
