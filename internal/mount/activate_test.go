package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestPlan(t *testing.T) {
	a := NewActivator(map[string]Handler{"erofs": Erofs()})
	erofs := live.Mount{Type: "erofs"}
	for _, c := range []struct {
		types     []string
		opts      ActivateOptions
		performed int
		own       int // of the first mount that is left to the caller
	}{
		{[]string{"overlay"}, ActivateOptions{}, -1, 0},
		{[]string{"overlay"}, ActivateOptions{Temporary: true}, 1, 0},
		{[]string{"erofs"}, ActivateOptions{}, 1, 0},
		{[]string{"erofs"}, ActivateOptions{Types: []string{"erofs"}}, -1, 0},
		{[]string{"erofs", "format/mkdir/overlay"}, ActivateOptions{}, 1, 2},
		{[]string{"erofs", "format/mkdir/overlay"}, ActivateOptions{Transforms: []string{"mkdir"}}, 1, 1},
		{[]string{"erofs", "format/mkdir/overlay"}, ActivateOptions{Transforms: []string{"format"}}, 1, 2},
		{[]string{"erofs", "format/mkdir/overlay"}, ActivateOptions{Transforms: []string{"format", "mkdir"}}, 1, 0},
		{[]string{"erofs", "format/mkdir/overlay"}, ActivateOptions{Types: []string{"erofs"}, Transforms: []string{"format", "mkdir"}}, -1, 0},
		{[]string{"mkfs/ext4", "format/bind"}, ActivateOptions{}, 1, 1},
		{[]string{"mkfs/ext4", "format/bind"}, ActivateOptions{Types: []string{"format/bind"}}, 0, 1},
		{[]string{"other/bind"}, ActivateOptions{}, -1, 0},
		{[]string{"bind", "erofs", "bind"}, ActivateOptions{}, 2, 0},
	} {
		var mounts []live.Mount
		for _, fstype := range c.types {
			mounts = append(mounts, live.Mount{Type: fstype})
		}
		p := a.plan(mounts, c.opts)
		own := 0
		if p.performed >= 0 && p.performed < len(mounts) {
			own = p.own[p.performed]
		}
		if p.performed != c.performed || own != c.own {
			t.Errorf("%v %+v: performs %d, then %d transformations; want %d, %d", c.types, c.opts, p.performed, own, c.performed, c.own)
		}
	}
	if _, _, err := a.Activate(t.Context(), t.TempDir(), []live.Mount{erofs}, ActivateOptions{Types: []string{"erofs"}}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("nothing to do: %v", err)
	}
}

func TestExpand(t *testing.T) {
	active := []live.ActiveMount{
		{Mount: live.Mount{Source: "/s0", Target: "/t0"}, MountPoint: "/m0"},
		{Mount: live.Mount{Source: "/s1"}, MountPoint: "/m1"},
		{MountPoint: "/m2"},
	}
	for in, want := range map[string]string{
		"plain":                               "plain",
		"{{ mount 0 }}/upper":                 "/m0/upper",
		"lowerdir={{overlay 0 2}}:/x":         "lowerdir=/m0:/m1:/m2:/x",
		"{{ overlay 2 0 }}":                   "/m2:/m1:/m0",
		"{{ overlay 1 1 }}":                   "/m1",
		"{{ source 1 }}{{ target 0 }}}} {x {": "/s1/t0}} {x {",
	} {
		if got, err := expand(in, active); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"{{ mount 3 }}", "{{ mount -1 }}", "{{ mount }}", "{{ mount 0", "{{ overlay 0 3 }}", "{{ exec 0 }}", "{{}}", "{{ mount 0 1 }}", "{{ 0 }}"} {
		if got, err := expand(in, active); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("lowerdir={{ overlay 0 2 }}:{{ mount 1 }}")
	f.Add("{{{{ mount 0 }}")
	active := []live.ActiveMount{{MountPoint: "/a"}, {MountPoint: "/b"}}
	f.Fuzz(func(t *testing.T, s string) {
		if out, err := expand(s, active); err == nil && !strings.Contains(s, "{{") && out != s {
			t.Errorf("%q became %q", s, out)
		}
		_, _ = parseMkdir(s)
		_, _ = ParseSize(s)
	})
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "512": 512, "64k": 64 << 10, "10M": 10 << 20, "2GiB": 2 << 30, "1.5kb": 1536, "7b": 7} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1x", "1kk", "1ib", "99999999P", "1e5"} {
		if got, err := ParseSize(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %d %v", in, got, err)
		}
	}
}

func TestMkdir(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	tr := transformer{roots: []string{dir}}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	m, err := tr.apply(t.Context(), live.Mount{Type: "mkdir/bind", Options: []string{"ro", mkdirOption + "path=" + dir + "/a:0751:12:13", mkdirOption + "path=" + dir + "/b"}}, []string{"mkdir"}, nil)
	if err != nil || m.Type != "bind" || !slices.Equal(m.Options, []string{"ro"}) {
		t.Fatalf("%+v %v", m, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/a", &st); err != nil || st.Mode&0o7777 != 0o751 || st.Uid != 12 || st.Gid != 13 {
		t.Errorf("%+v %v", st, err)
	}
	for option, want := range map[string]error{
		"path=" + dir + "/a":            nil, // stays as it is
		"path=" + dir + "/a:0700":       nil,
		"path=" + outside + "/x":        errdefs.ErrNotImplemented,
		"path=" + dir + "/../x":         errdefs.ErrNotImplemented,
		"path=relative":                 errdefs.ErrInvalidArgument,
		"path=" + dir + "/c:0999":       errdefs.ErrInvalidArgument,
		"path=" + dir + "/c:7755":       errdefs.ErrInvalidArgument,
		"path=" + dir + "/c:0755:1":     errdefs.ErrInvalidArgument,
		"path=" + dir + "/c:0755:1:-1":  errdefs.ErrInvalidArgument,
		"path=" + dir + "/c:0755:1:1:1": errdefs.ErrInvalidArgument,
		"other=" + dir:                  errdefs.ErrInvalidArgument,
	} {
		if _, err := tr.apply(t.Context(), live.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + option}}, []string{"mkdir"}, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", option, err, want)
		}
	}
	if _, err := tr.apply(t.Context(), live.Mount{Options: []string{mkdirOption + "path=" + dir + "/link/x"}}, []string{"mkdir"}, nil); err == nil {
		t.Error("a link led out")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("made outside: %v %v", left, err)
	}
}

func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
}

func needLoop(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
}

// writable is what a snapshotter with a block image for the writable layer emits.
func writable(image string) []live.Mount {
	return []live.Mount{
		{Type: "mkfs/ext4", Source: image, Options: []string{mkfsOption + "fs=ext4", mkfsOption + "size=16M", "rw", "loop"}},
		{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{mkdirOption + "path={{ mount 0 }}/upper:0755", "rw", "rbind"}},
	}
}

func TestActivateAndDeactivate(t *testing.T) {
	dir := room(t)
	needProgram(t, "mkfs.ext4")
	needLoop(t)
	image, place, target := filepath.Join(dir, "rw.img"), filepath.Join(dir, "t"), filepath.Join(dir, "root")
	mkdirs(t, place, target)
	a := NewActivator(nil, dir)
	active, system, err := a.Activate(t.Context(), place, writable(image), ActivateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(active) != 1 || active[0].MountPoint != place+"/1" || active[0].Type != "ext4" || active[0].MountedAt.IsZero() ||
		len(system) != 1 || system[0].Type != "bind" || system[0].Source != place+"/1/upper" {
		t.Fatalf("active %+v, system %+v", active, system)
	}
	if err := All(system, target); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(target, "f"), "kept")
	if err := Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	// By another one, as after a restart; and once more.
	for range 2 {
		if err := NewActivator(nil).Deactivate(t.Context(), place); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(place); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stays: %v", err)
	}
	// The image is made once; WithTemp does all of it by itself.
	if err := WithTemp(t.Context(), writable(image), func(root string) error {
		got, err := os.ReadFile(filepath.Join(root, "f"))
		if string(got) != "kept" {
			t.Errorf("content %q", got)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestActivateTemporary(t *testing.T) {
	dir := room(t)
	place := filepath.Join(dir, "t")
	mkdirs(t, place, dir+"/a", dir+"/b")
	a := NewActivator(nil)
	var mounts []live.Mount
	for range 12 {
		mounts = append(mounts, live.Mount{Type: "bind", Source: dir + "/a", Options: []string{"rbind"}})
	}
	active, system, err := a.Activate(t.Context(), place, mounts, ActivateOptions{Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(active) != 12 || active[0].MountPoint != place+"/12" || len(system) != 1 || system[0].Source != place+"/01" {
		t.Errorf("active %+v, system %+v", active, system)
	}
	if err := a.Deactivate(t.Context(), place); err != nil {
		t.Fatal(err)
	}
}

func TestFailedActivationLeavesNothing(t *testing.T) {
	dir := room(t)
	place := filepath.Join(dir, "t")
	mkdirs(t, place, dir+"/a")
	bind := live.Mount{Type: "bind", Source: dir + "/a", Options: []string{"rbind"}}
	for name, bad := range map[string]live.Mount{
		"no source":     {Type: "bind", Source: dir + "/none"},
		"format":        {Type: "format/bind", Source: "{{ mount 7 }}"},
		"mkdir outside": {Type: "format/mkdir/bind", Source: "{{ mount 0 }}", Options: []string{mkdirOption + "path=/proc/x"}},
		"mkfs":          {Type: "mkfs/ext4", Source: place + "/x", Options: []string{mkfsOption + "fs=ntfs", mkfsOption + "size=1M"}},
		"mkfs no size":  {Type: "mkfs/ext4", Source: place + "/x"},
	} {
		if _, _, err := NewActivator(nil, dir).Activate(t.Context(), place, []live.Mount{bind, bad, bind}, ActivateOptions{Temporary: true}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if left, err := os.ReadDir(place); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v %v", name, left, err)
		}
	}
}

func erofsImage(t *testing.T, path string, files map[string]string) {
	t.Helper()
	needProgram(t, "mkfs.erofs")
	src := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(src, name), content)
	}
	if out, err := exec.Command("mkfs.erofs", "--quiet", path, src).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestErofsHandler(t *testing.T) {
	dir := room(t)
	needLoop(t)
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "\terofs\n") {
		t.Skip("the kernel has no erofs")
	}
	var mounts []live.Mount
	for i := range 3 {
		image := fmt.Sprintf("%s/%d.erofs", dir, i)
		erofsImage(t, image, map[string]string{"same": fmt.Sprint(i), fmt.Sprint("own", i): "x"})
		mounts = append(mounts, live.Mount{Type: "erofs", Source: image, Options: []string{"ro", "loop"}})
	}
	mkdirs(t, dir+"/up", dir+"/work", dir+"/root")
	mounts = append(mounts, live.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
		"upperdir=" + dir + "/up", "workdir=" + dir + "/work", "lowerdir={{ overlay 0 2 }}",
	}})
	byLoop := &erofsHandler{}
	byLoop.needsLoop.Store(true)
	for name, h := range map[string]Handler{"file": Erofs(), "loop": byLoop} {
		place := filepath.Join(dir, "t-"+name)
		mkdirs(t, place)
		a := NewActivator(map[string]Handler{"erofs": h}, dir)
		_, system, err := a.Activate(t.Context(), place, mounts, ActivateOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		if err := All(system, dir+"/root"); err != nil {
			t.Fatal(name, err)
		}
		got, err := os.ReadFile(dir + "/root/same")
		if err != nil || string(got) != "0" {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if err := errors.Join(Unmount(dir+"/root", 0), a.Deactivate(context.Background(), place)); err != nil {
			t.Fatal(name, err)
		}
	}
}

// An overlay whose directories have no common parent and do not fit into a page.
func TestOverlayBeyondAPage(t *testing.T) {
	dir := room(t)
	other, err := os.MkdirTemp("/var", "berth-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(other)
	long := strings.Repeat("n", 100)
	var lowers []string
	for i := range 100 {
		parent := dir
		if i%2 == 1 {
			parent = other
		}
		lower := filepath.Join(parent, long, fmt.Sprint(i))
		mkdirs(t, lower)
		write(t, filepath.Join(lower, fmt.Sprint("f", i)), "x")
		lowers = append(lowers, lower)
	}
	err = WithTemp(t.Context(), []live.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lowers, ":")}}}, func(root string) error {
		entries, err := os.ReadDir(root)
		if len(entries) != 100 {
			t.Errorf("%d files", len(entries))
		}
		return err
	})
	if errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Skip("before Linux 6.7: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
