package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// room is a directory whose mounts are gone after the test; one that the test
// itself left is a failure.
func room(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", filepath.Join(dir, "tmp")) // for what WithTemp makes
	if err := os.Mkdir(os.TempDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			t.Error(err)
		}
		for _, m := range left {
			t.Errorf("left mounted: %s", m.Mountpoint)
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
	})
	return dir
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestBindReadOnlyKeepsAttributes(t *testing.T) {
	dir := room(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	mkdirs(t, src, dst)
	if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1m"}}}, src); err != nil {
		t.Fatal(err)
	}
	defer UnmountRecursive(dir, 0)
	if err := All([]live.Mount{{Type: "bind", Source: src, Options: []string{"rbind", "ro", "noexec"}}}, dst); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dst, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only bind: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dst, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_RDONLY); st.Flags&want != want {
		t.Errorf("flags %#x lack some of %#x", st.Flags, want)
	}
	write(t, filepath.Join(src, "f"), "still writable at the source")
}

func TestStackedAndRepeatedUnmount(t *testing.T) {
	dir := room(t)
	for range 3 {
		if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs"}}, dir); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds nothing, and is content
		if err := Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unmount(filepath.Join(dir, "missing"), 0); err != nil {
		t.Error(err)
	}
	if err := Unmount("", 0); err != nil {
		t.Error(err)
	}
	if err := Unmount(dir, 1<<20); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown flag: %v", err)
	}
}

func TestUnmountDetachesWhatIsBusy(t *testing.T) {
	dir := room(t)
	if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs"}}, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(dir, "busy")) {
		t.Error("still mounted")
	}
}

func TestUnmountRecursive(t *testing.T) {
	dir := room(t)
	tmpfs := live.Mount{Type: "tmpfs", Source: "tmpfs"}
	if err := All([]live.Mount{tmpfs}, dir); err != nil {
		t.Fatal(err)
	}
	a := filepath.Join(dir, "a")
	mkdirs(t, filepath.Join(a, "b"))
	for _, p := range []string{a, a} {
		if err := All([]live.Mount{tmpfs}, p); err != nil {
			t.Fatal(err)
		}
	}
	mkdirs(t, filepath.Join(a, "deep"))
	if err := All([]live.Mount{tmpfs}, filepath.Join(a, "deep")); err != nil {
		t.Fatal(err)
	}
	if err := UnmountRecursive(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := UnmountRecursive(filepath.Join(dir, "missing"), 0); err != nil {
		t.Error(err)
	}
}

func TestFailureUndoesEarlierMounts(t *testing.T) {
	dir := room(t)
	err := All([]live.Mount{
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "bind", Source: filepath.Join(dir, "missing"), Options: []string{"rbind"}},
	}, dir)
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("want ENOENT, got %v", err)
	}
}

func TestTargetStaysBeneathRoot(t *testing.T) {
	dir := room(t)
	root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	mkdirs(t, filepath.Join(root, "inside"), outside, filepath.Join(root, outside))
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	defer UnmountRecursive(root, 0)
	for _, target := range []string{"inside", "/link", "../../inside"} {
		if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs", Target: target}}, root); err != nil {
			t.Fatalf("%s: %v", target, err)
		}
	}
	for path, want := range map[string]bool{
		outside:                       false,
		filepath.Join(root, outside):  true,
		filepath.Join(root, "inside"): true,
	} {
		if got, err := mountinfo.Mounted(path); err != nil || got != want {
			t.Errorf("%s mounted: %v, %v; want %v", path, got, err, want)
		}
	}
	if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs", Target: "missing"}}, root); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing target: %v", err)
	}
}

// overlayOf makes n lower directories with one file each.
func overlayOf(t *testing.T, dir string, n int) live.Mount {
	t.Helper()
	var lowers []string
	for i := range n {
		l := filepath.Join(dir, fmt.Sprint(i), "fs")
		mkdirs(t, l)
		write(t, filepath.Join(l, fmt.Sprint("f", i)), "x")
		lowers = append(lowers, l)
	}
	upper, work := filepath.Join(dir, "up", "fs"), filepath.Join(dir, "up", "work")
	mkdirs(t, upper, work)
	return live.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + work, "upperdir=" + upper, "lowerdir=" + strings.Join(lowers, ":"),
	}}
}

func TestOverlayWithMoreOptionsThanAPage(t *testing.T) {
	dir := room(t)
	const layers = 200
	m := overlayOf(t, filepath.Join(dir, strings.Repeat("long", 20)), layers)
	target := filepath.Join(dir, "merged")
	mkdirs(t, target)
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := All([]live.Mount{m}, target); err != nil {
		t.Fatal(err)
	}
	defer Unmount(target, 0)
	names, err := os.ReadDir(target)
	if err != nil || len(names) != layers {
		t.Errorf("%d files, %v; want %d", len(names), err, layers)
	}
	write(t, filepath.Join(target, "new"), "x")
	if !exists(filepath.Join(dir, strings.Repeat("long", 20), "up/fs/new")) {
		t.Error("the write did not arrive in upperdir")
	}
	if after, err := os.Readlink("/proc/self/cwd"); err != nil || after != before {
		t.Errorf("working directory is now %s, %v", after, err)
	}
}

func TestWithTemp(t *testing.T) {
	dir := room(t)
	m := overlayOf(t, dir, 2)
	m.Options = append(m.Options, "volatile")
	var seen string
	for range 2 { // volatile would forbid the second
		err := WithTemp(t.Context(), []live.Mount{m}, func(root string) error {
			seen = root
			if !exists(filepath.Join(root, "f1")) {
				t.Error("not mounted")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if exists(seen) {
			t.Errorf("%s is left", seen)
		}
	}
	want := errors.New("own")
	if err := WithTemp(t.Context(), ReadOnly([]live.Mount{m}), func(root string) error {
		if err := os.Mkdir(filepath.Join(root, "d"), 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a read-only overlay: %v", err)
		}
		return want
	}); !errors.Is(err, want) {
		t.Errorf("the callback's error is lost: %v", err)
	}
	if err := WithTemp(t.Context(), []live.Mount{{Type: "no-such-filesystem"}}, nil); !errors.Is(err, unix.ENODEV) {
		t.Errorf("unknown type: %v", err)
	}
}

func TestIDMappedMounts(t *testing.T) {
	dir := room(t)
	m := overlayOf(t, dir, 2)
	mapping := []string{"uidmap=0:100000:65536", "gidmap=0:200000:65536"}
	m.Options = append(m.Options, mapping...)
	for name, m := range map[string]live.Mount{
		"overlay": m,
		"bind":    {Type: "bind", Source: filepath.Join(dir, "1/fs"), Options: append(mapping, "rbind", "ro")},
	} {
		err := WithTemp(t.Context(), []live.Mount{m}, func(root string) error {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, "f1"), &st); err != nil {
				return err
			}
			if st.Uid != 100000 || st.Gid != 200000 {
				t.Errorf("%s: owner %d:%d", name, st.Uid, st.Gid)
			}
			return nil
		})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			t.Skipf("%s: no idmapped mounts here: %v", name, err)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What an option forbids is forbidden in a mapped mount, too, and a filesystem can be
// mapped as well as a directory.
func TestIDMappedAttributes(t *testing.T) {
	dir := room(t)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	mkdirs(t, src, dst)
	mapped := []string{"uidmap=0:1000:65536", "gidmap=0:1000:65536", "nosuid", "nodev", "noexec", "noatime"}
	for _, m := range []live.Mount{
		{Type: "bind", Source: src, Options: append(mapped, "rbind", "ro")},
		{Type: "tmpfs", Source: "tmpfs", Options: append(mapped, "size=1m")},
	} {
		if err := All([]live.Mount{m}, dst); err != nil {
			t.Errorf("%s: %v", m.Type, err)
			continue
		}
		infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dst))
		if err != nil || len(infos) != 1 {
			t.Fatalf("%s: %v, %v", m.Type, infos, err)
		}
		for _, o := range []string{"nosuid", "nodev", "noexec", "noatime", "idmapped"} {
			if !strings.Contains(","+infos[0].Options+",", ","+o+",") {
				t.Errorf("%s: %s is not among %s", m.Type, o, infos[0].Options)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(dst, &st); err != nil || st.Uid != 1000 || st.Gid != 1000 {
			t.Errorf("%s: owner %d:%d, %v", m.Type, st.Uid, st.Gid, err)
		}
		if err := unix.Unmount(dst, 0); err != nil {
			t.Error(err)
		}
		if left, err := mountinfo.Mounted(dst); err != nil || left {
			t.Errorf("%s: a second mount was below it (%v)", m.Type, err)
		}
	}
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		typ  string
		in   []string
		want options
		err  error
	}{
		"bind type":        {"bind", []string{"ro"}, options{flags: unix.MS_BIND | unix.MS_RDONLY}, nil},
		"last wins":        {"", []string{"ro", "rw", "nosuid", "suid"}, options{}, nil},
		"data":             {"", []string{"size=1m", "rslave"}, options{data: []string{"size=1m"}, propagation: []int{unix.MS_SLAVE | unix.MS_REC}}, nil},
		"loop":             {"ext4", []string{"direct-io", "loop"}, options{loop: true, directIO: true}, nil},
		"half a mapping":   {"", []string{"uidmap=0:1:1"}, options{}, errdefs.ErrInvalidArgument},
		"internal options": {"", []string{"X-containerd.mkfs.fs=ext4"}, options{}, errdefs.ErrNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(live.Mount{Type: c.typ, Options: c.in})
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if len(got.data) == 0 {
				got.data = nil
			}
			if err == nil && fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestParseIDMap(t *testing.T) {
	for in, ok := range map[string]bool{
		"0:1000:10": true, "0:1000:10,10:5:1": true,
		"": false, "0:1": false, "0:1:0": false, "-1:0:1": false, "0:1:2:3": false, "a:1:1": false, "0:1:99999999999": false,
	} {
		if _, err := parseIDMap(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestRelativeTo(t *testing.T) {
	dir, data := relativeTo([]string{`lowerdir=/a/b/1/fs:/a/b/22/f\:s`, "upperdir=/a/b/3/fs", "workdir=/else", "index=off"})
	if dir != "/a/b/" || data != `lowerdir=1/fs:22/f\:s,upperdir=3/fs,workdir=/else,index=off` {
		t.Errorf("%q %q", dir, data)
	}
	for _, data := range [][]string{{"lowerdir=/a:/b"}, {"lowerdir=a/x:a/y"}, {"index=off"}} {
		if dir, _ := relativeTo(data); dir != "" {
			t.Errorf("%q: %q", data, dir)
		}
	}
}

func BenchmarkOverlay(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("mounting needs root")
	}
	dir := b.TempDir()
	target := filepath.Join(dir, "t")
	for _, d := range []string{"t", "l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	m := []live.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + dir + "/l", "upperdir=" + dir + "/u", "workdir=" + dir + "/w", "volatile"}}}
	for b.Loop() {
		if err := All(m, target); err != nil {
			b.Fatal(err)
		}
		if err := Unmount(target, 0); err != nil {
			b.Fatal(err)
		}
		_ = os.RemoveAll(dir + "/w/work/incompat")
	}
}

func TestRemoveTemps(t *testing.T) {
	room(t)
	dir, _, err := tempDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := All([]live.Mount{{Type: "tmpfs", Source: "tmpfs"}}, dir); err != nil {
		t.Fatal(err)
	}
	other, _, err := tempDir() // of mounts that were prepared
	if err != nil {
		t.Fatal(err)
	}
	mkdirs(t, filepath.Join(other, "1"))
	write(t, filepath.Join(other, "1-type"), "bind")
	if err := RemoveTemps(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLoop(t *testing.T) {
	dir := room(t)
	if exists("/dev/loop-control") == false {
		t.Skip("no loop devices here")
	}
	image, target := filepath.Join(dir, "image"), filepath.Join(dir, "t")
	mkdirs(t, target)
	write(t, image, "")
	if err := os.Truncate(image, 1<<20); err != nil {
		t.Fatal(err)
	}
	// No filesystem is made: that the kernel finds none in it, and not that it
	// has no block device, shows that the device was there.
	err := All([]live.Mount{{Type: "ext4", Source: image, Options: []string{"loop", "ro"}}}, target)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("mount of an empty image: %v", err)
	}
}

// An image that is mounted and written to has one device, whoever mounts it again.
func TestLoopIsShared(t *testing.T) {
	dir := room(t)
	image, a, b, c := filepath.Join(dir, "image"), filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	mkdirs(t, a, b, c)
	write(t, image, "")
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	if err := All([]live.Mount{{Type: "ext4", Source: image, Options: []string{"loop", "rw"}}}, a); err != nil {
		t.Skip("no loop devices here: ", err)
	}
	defer UnmountRecursive(dir, 0)
	write(t, filepath.Join(a, "f"), "x")
	for target, mode := range map[string]string{b: "ro", c: "rw"} {
		if err := All([]live.Mount{{Type: "ext4", Source: image, Options: []string{"loop", mode}}}, target); err != nil {
			t.Fatal(err)
		}
		if !exists(filepath.Join(target, "f")) {
			t.Errorf("%s: what was written is not there", mode)
		}
	}
	if err := os.WriteFile(filepath.Join(b, "g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to the read-only mount: %v", err)
	}
	write(t, filepath.Join(c, "g"), "x")
	if !exists(filepath.Join(a, "g")) || !exists(filepath.Join(b, "g")) {
		t.Error("what one wrote the others do not see")
	}
	if err := errors.Join(Unmount(a, 0), Unmount(b, 0), Unmount(c, 0), Released(t.Context(), image)); err != nil {
		t.Error(err)
	}
}
