package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Least free space and inodes, as parts of the whole and absolutely.
const (
	leastSpace  = 1 << 30
	leastInodes = 10000
)

// checkDisk looks at the file systems of the daemon's directories.
func checkDisk(_ context.Context, e *exam) {
	for _, d := range []struct{ name, dir string }{{"root", e.DataDir}, {"state", e.StateDir}} {
		dir := e.path(d.dir)
		for dir != "/" { // what is not there yet will be made in what is
			if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
				break
			}
			dir = filepath.Dir(dir)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			e.add(d.name, Problem, fmt.Sprintf("%s cannot be looked at: %v", d.dir, err), "")
			continue
		}
		e.space(d.name, d.dir, st)
		if d.name == "root" {
			e.filesystem(dir, d.dir, st)
		}
	}
}

func (e *exam) space(name, dir string, st unix.Statfs_t) {
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	percent := func(part, whole uint64) uint64 { return 100 * part / max(whole, 1) }
	fix := "ctr df shows what uses it; ctr images prune and ctr containers rm free it"
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		e.add(name, Problem, dir+" is on a file system that is read-only", "mount -o remount,rw, and look in dmesg why it became so")
	case name == "root" && free < leastSpace/10:
		e.add(name+" space", Problem, fmt.Sprintf("%s: %s free of %s", dir, size(free), size(total)), fix)
	case name == "root" && (free < leastSpace || percent(st.Bavail, st.Blocks) < 5):
		e.add(name+" space", Warning, fmt.Sprintf("%s: %s free of %s", dir, size(free), size(total)), fix)
	case name == "state" && free < 10<<20:
		e.add(name+" space", Problem, fmt.Sprintf("%s: %s free of %s", dir, size(free), size(total)), "containers cannot be started without some: look with du -x "+dir)
	default:
		e.ok(name+" space", "%s: %s free of %s", dir, size(free), size(total))
	}
	if st.Files > 0 { // some file systems have no bound
		if st.Ffree < leastInodes || percent(st.Ffree, st.Files) < 3 {
			e.add(name+" inodes", Warning, fmt.Sprintf("%s: %d free of %d", dir, st.Ffree, st.Files), fix)
		} else {
			e.ok(name+" inodes", "%s: %d free", dir, st.Ffree)
		}
	}
}

// filesystem tells whether overlayfs can stand on it.
func (e *exam) filesystem(path, dir string, st unix.Statfs_t) {
	switch st.Type {
	case unix.OVERLAYFS_SUPER_MAGIC:
		e.add("root file system", Problem, dir+" is on overlayfs, which cannot carry another overlay's upper layer", "put it on a volume, or use --snapshotter native")
	case unix.NFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		e.add("root file system", Warning, dir+" is on a network file system or FUSE: overlayfs and file locks may fail there", "a local disk with ext4 or xfs")
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		e.add("root file system", Warning, dir+" is in memory: images are gone after a reboot", "a disk")
	default:
		e.ok("root file system", "%s is on a local disk", dir)
	}
	if known, err := entryTypes(path); err == nil && !known {
		e.add("d_type", Problem, dir+" is on a file system that does not tell the types of directory entries, which overlayfs needs", "an xfs made with -n ftype=1, or ext4")
	}
}

// entryTypes tells whether a directory's entries come with their types. A
// directory without entries tells nothing.
func entryTypes(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := unix.Getdents(int(f.Fd()), buf)
	if err != nil {
		return false, err
	}
	// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name
	for at := 0; at+19 <= n; {
		length := int(binary.NativeEndian.Uint16(buf[at+16:]))
		if buf[at+18] != unix.DT_UNKNOWN {
			return true, nil
		}
		if length == 0 {
			break
		}
		at += length
	}
	return n == 0, nil
}

func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// checkPrograms looks for what the daemon starts.
func checkPrograms(_ context.Context, e *exam) {
	const shim = "containerd-shim-runc-v2"
	if path := e.program(shim); path != "" {
		e.ok(shim, "%s", path)
	} else {
		e.add(shim, Problem, "neither beside containerd nor on the PATH: no container can be started", "make install, or put it beside containerd")
	}
	for _, p := range []struct{ name, use string }{
		{"criu", "checkpoint and restore"}, {"mkfs.erofs", "the snapshotter erofs"}, {"newuidmap", "rootless use"}, {"iptables", "the CNI plugin portmap"},
	} {
		if path := e.program(p.name); path != "" {
			e.ok(p.name, "%s", path)
		} else {
			e.add(p.name, Info, "not on the PATH; needed for "+p.use+" only", "")
		}
	}
}
