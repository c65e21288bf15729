package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"berth/internal/mount"
	"berth/internal/object"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The name is the digest of what containerd's client digests, so that each finds
// the other's snapshots.
func TestRemappedName(t *testing.T) {
	m := idMaps{
		UIDs: []specs.LinuxIDMapping{{ContainerID: 1, HostID: 100001, Size: 10}, {ContainerID: 0, HostID: 100000, Size: 1}},
		GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}},
	}
	name, err := m.name("sha256:abc")
	if want := "sha256:ef4d0e51b71d9f1473672dec36424df43cddb700b81f76bfc0cfeb7b10195a5a"; err != nil || name != want {
		t.Errorf("%s, %v, want %s", name, err, want)
	}
}

func TestShift(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change owners")
	}
	m := idMaps{
		UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}},
		GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 1000}},
	}
	// revision 2, effective, CAP_NET_RAW
	capability := []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	fill := func(t *testing.T, dir string) {
		for _, err := range []error{
			os.WriteFile(dir+"/a", []byte("x"), 0o644), os.Chown(dir+"/a", 7, 8), os.Chmod(dir+"/a", 0o755|os.ModeSetuid),
			os.Mkdir(dir+"/sub", 0o700), os.Link(dir+"/a", dir+"/sub/b"), os.Link(dir+"/a", dir+"/c"),
			os.Symlink("/etc/passwd", dir+"/link"), os.Lchown(dir+"/link", 5, 5),
			os.WriteFile(dir+"/ping", []byte("p"), 0o755), unix.Setxattr(dir+"/ping", "security.capability", capability, 0),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(t *testing.T, dir string) {
		t.Helper()
		if err := m.shift(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		var inodes []uint64
		for name, want := range map[string][2]uint32{
			"a": {100007, 200008}, "c": {100007, 200008}, "sub/b": {100007, 200008}, "sub": {100000, 200000}, "link": {100005, 200005}, "ping": {100000, 200000},
		} {
			fi, err := os.Lstat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			if st.Uid != want[0] || st.Gid != want[1] {
				t.Errorf("%s belongs to %d:%d, want %v", name, st.Uid, st.Gid, want)
			}
			if want[0] == 100007 {
				inodes = append(inodes, st.Ino)
				if fi.Mode()&os.ModeSetuid == 0 {
					t.Errorf("%s has lost its setuid bit", name)
				}
			}
		}
		if inodes[0] != inodes[1] || inodes[0] != inodes[2] {
			t.Errorf("the names are no longer of one file: inodes %v", inodes)
		}
		got := make([]byte, 64)
		n, err := unix.Getxattr(dir+"/ping", "security.capability", got)
		if err != nil || n != 24 || got[3] != 3 || got[20] != 0xa0 || got[21] != 0x86 || got[22] != 1 {
			t.Errorf("capabilities: %x, %v", got[:max(n, 0)], err)
		}
	}
	t.Run("plain", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		check(t, dir)
	})
	t.Run("overlay", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"lower", "upper", "work"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, dir+"/lower")
		err := mount.WithTemp(t.Context(), []object.Mount{{
			Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=" + dir + "/lower", "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"},
		}}, func(root string) error {
			check(t, root)
			return nil
		})
		if err != nil {
			t.Skip("no overlay here: ", err)
		}
	})
	t.Run("unmapped", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/x", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir+"/x", 5000, 0); err != nil {
			t.Fatal(err)
		}
		if err := m.shift(t.Context(), dir); err == nil || err.Error() != "--uidmap does not map user 5000, who owns /x in the image" {
			t.Errorf("%v", err)
		}
	})
}
