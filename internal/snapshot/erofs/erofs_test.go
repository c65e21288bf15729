package erofs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/internal/diff"
	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/snapshottest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	_ snapshot.Backend = (*Snapshotter)(nil)
	_ snapshot.Cleaner = (*Snapshotter)(nil)
	_ snapshot.Syncer  = (*Snapshotter)(nil)
)

func open(t *testing.T, root string, opts Options) *Snapshotter {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, program := range []string{"mkfs.erofs", "mkfs.ext4"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
	s, err := New(root, opts)
	if errdefs.IsNotImplemented(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	for name, c := range map[string]struct {
		opts  Options
		depth int
	}{
		"default": {Options{OverlayOptions: []string{"metacopy=off"}}, 20},
		"images":  {Options{DefaultSize: 16 << 20}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			snapshottest.Run(t, snapshottest.Config{
				Rebase: true, Images: true, NoHoles: true, Slack: c.opts.DefaultSize / 2, Depth: c.depth,
				MaxName: 254, // mkfs.erofs 1.5 cuts longer ones
				New:     func(t *testing.T) snapshot.Snapshotter { return open(t, t.TempDir(), c.opts) },
			})
		})
	}
}

// A sealed layer, or an immutable one, is committed, shown and removed like others.
func TestProtectedLayers(t *testing.T) {
	for name, opts := range map[string]Options{"immutable": {Immutable: true}, "verity": {Verity: true}} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), opts)
			defer s.Close()
			if _, err := s.Prepare(t.Context(), "a", "", nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), "base", "a", snapshot.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
			layer := s.path("1", "layer.erofs")
			if err := os.WriteFile(layer, nil, 0o600); err == nil {
				t.Error("the layer can be written")
			}
			if opts.Verity {
				if err := requireVerity(layer); err != nil {
					t.Error(err)
				}
			}
			m, err := s.View(t.Context(), "v", "base", nil)
			if err == nil {
				err = mount.WithTemp(t.Context(), m, func(string) error { return nil })
			}
			if err == nil {
				err = errors.Join(s.Remove(t.Context(), "v"), s.Remove(t.Context(), "base"))
			}
			if err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(layer); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("stays: %v", err)
				_ = setImmutable(layer, false)
			}
		})
	}
}

func show(mounts []object.Mount) string {
	var out []string
	for _, m := range mounts {
		out = append(out, m.Type+" "+m.Source+" "+strings.Join(m.Options, ","))
	}
	return strings.Join(out, "\n")
}

// The mounts are those that containerd makes.
func TestMounts(t *testing.T) {
	for _, c := range []struct {
		opts Options
		want map[string]string // by what is mounted; R is the directory of the snapshots, N that of its own
	}{
		{Options{OverlayOptions: []string{"xino=off"}}, map[string]string{
			"empty":     "bind R/N/fs rw,rbind",
			"on one":    "erofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay workdir=R/N/work,upperdir=R/N/fs,lowerdir={{ mount 0 }},xino=off",
			"on two":    "erofs R/2/layer.erofs ro,loop\nerofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay workdir=R/N/work,upperdir=R/N/fs,lowerdir={{ overlay 0 1 }},xino=off",
			"view":      "bind R/N/fs ro,rbind",
			"view one":  "erofs R/1/layer.erofs ro,loop",
			"view two":  "erofs R/2/layer.erofs ro,loop\nerofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay lowerdir={{ overlay 0 1 }},xino=off",
			"max on on": "erofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay workdir=R/N/work,upperdir=R/N/fs,lowerdir={{ mount 0 }},xino=off",
		}},
		{Options{DefaultSize: 32 << 20}, map[string]string{
			"empty":     "mkfs/ext4 R/N/rwlayer.img X-containerd.mkfs.fs=ext4,X-containerd.mkfs.size=33554432,rw,loop\nformat/mkdir/bind {{ mount 0 }}/upper X-containerd.mkdir.path={{ mount 0 }}/upper:0755,rw,rbind",
			"on one":    "mkfs/ext4 R/N/rwlayer.img X-containerd.mkfs.fs=ext4,X-containerd.mkfs.size=33554432,rw,loop\nerofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay X-containerd.mkdir.path={{ mount 0 }}/upper:0755,X-containerd.mkdir.path={{ mount 0 }}/work:0755,workdir={{ mount 0 }}/work,upperdir={{ mount 0 }}/upper,lowerdir={{ mount 1 }}",
			"view two":  "erofs R/2/layer.erofs ro,loop\nerofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay lowerdir={{ overlay 0 1 }}",
			"max on on": "mkfs/ext4 R/N/rwlayer.img X-containerd.mkfs.fs=ext4,X-containerd.mkfs.size=16777216,rw,loop\nerofs R/1/layer.erofs ro,loop\nformat/mkdir/overlay overlay X-containerd.mkdir.path={{ mount 0 }}/upper:0755,X-containerd.mkdir.path={{ mount 0 }}/work:0755,workdir={{ mount 0 }}/work,upperdir={{ mount 0 }}/upper,lowerdir={{ mount 1 }}",
		}},
	} {
		root := t.TempDir()
		s := open(t, root, c.opts)
		defer s.Close()
		parent := ""
		for _, name := range []string{"one", "two"} {
			if _, err := s.Prepare(t.Context(), name+"-", parent, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), name, name+"-", snapshot.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
			parent = name
		}
		for key, want := range c.want {
			do, parent, labels := s.Prepare, "", map[string]string(nil)
			if strings.HasPrefix(key, "view") {
				do = s.View
			}
			if strings.HasPrefix(key, "max") {
				labels, parent = map[string]string{labelMaxSize: "16777216"}, "one"
			}
			if last := key[strings.LastIndexByte(key, ' ')+1:]; last == "one" || last == "two" {
				parent = last
			}
			m, err := do(t.Context(), key, parent, labels)
			if err != nil {
				t.Fatal(key, err)
			}
			snap, err := s.Store.Get(key)
			if err != nil {
				t.Fatal(err)
			}
			want = strings.NewReplacer("R/N", s.Store.Dir(snap.ID), "R/", filepath.Join(root, "snapshots")+"/").Replace(want)
			if show(m) != want {
				t.Errorf("%s:\n%s\nwant\n%s", key, show(m), want)
			}
		}
	}
}

// What a differ wrote is committed as it is; what a commit that failed made is
// made again; the files that a layer was made of are gone.
func TestCommitSources(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, Options{})
	defer s.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	src := t.TempDir()
	must(os.WriteFile(filepath.Join(src, "by-differ"), nil, 0o600))
	_, err := s.Prepare(t.Context(), "a", "", nil)
	must(err)
	must(makeImage(t.Context(), s.path("1", "layer.erofs"), src))
	before, err := os.ReadFile(s.path("1", "layer.erofs"))
	must(err)
	must(s.Commit(t.Context(), "differ", "a", snapshot.CommitOptions{}))
	after, err := os.ReadFile(s.path("1", "layer.erofs"))
	must(err)
	if !slices.Equal(before, after) {
		t.Error("the layer of a differ was changed")
	}
	_, err = s.Prepare(t.Context(), "b", "differ", nil)
	must(err)
	must(makeImage(t.Context(), s.path("2", "layer.erofs"), src))
	must(os.WriteFile(s.path("2", "fs/new"), nil, 0o600))
	must(s.Commit(t.Context(), "again", "b", snapshot.CommitOptions{}))
	if left, err := os.ReadDir(s.path("2", "fs")); err != nil || len(left) > 0 {
		t.Errorf("left in the upper directory: %v %v", left, err)
	}
	must(os.WriteFile(s.path("2", "fs/of-a-crash"), nil, 0o600))
	must(s.Cleanup(t.Context()))
	if left, err := os.ReadDir(s.path("2", "fs")); err != nil || len(left) > 0 {
		t.Errorf("left after a cleanup: %v %v", left, err)
	}
	must(os.WriteFile(s.path("1", "fs/precious"), nil, 0o600))
	must(os.Rename(s.path("1", "layer.erofs"), s.path("1", "lost")))
	must(s.Cleanup(t.Context()))
	if _, err := os.Stat(s.path("1", "fs/precious")); err != nil {
		t.Error("deleted although the layer is lost: ", err)
	}
	must(os.Rename(s.path("1", "lost"), s.path("1", "layer.erofs")))
	m, err := s.View(t.Context(), "v", "again", nil)
	must(err)
	must(mount.WithTemp(t.Context(), m, func(root string) error {
		for _, name := range []string{"by-differ", "new"} {
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Error(err)
			}
		}
		return nil
	}))
}

// A layer that a cache has is used where it is, first or above others, and stays.
func TestCaches(t *testing.T) {
	cache := t.TempDir()
	src := t.TempDir()
	id := digest.FromString("a layer")
	layer := filepath.Join(cache, "sha256", id.Encoded()[:2], id.Encoded()+".erofs")
	if err := errors.Join(os.WriteFile(filepath.Join(src, "cached"), []byte("x"), 0o600), os.MkdirAll(filepath.Dir(layer), 0o700)); err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir(), Options{Caches: []string{"/not/there", cache}})
	defer s.Close()
	if err := makeImage(t.Context(), layer, src); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{snapshot.LabelRef: "chain", labelDiffID: id.String()}
	parent := ""
	for _, name := range []string{"one", "two"} {
		m, err := s.Prepare(t.Context(), name+"-", parent, labels)
		if err != nil {
			t.Fatal(err)
		}
		if last := m[len(m)-1]; !slices.Contains(last.Options, "ro") {
			t.Errorf("%s is writable: %v", name, m)
		}
		un, err := diff.NewWalking(nil).Unpack(t.Context(), ispec.MediaTypeImageLayer, strings.NewReader("a layer"), m, false)
		if err != nil || un.DiffID != id || un.Size != 7 {
			t.Errorf("%+v %v", un, err)
		}
		if err := s.Commit(t.Context(), name, name+"-", snapshot.CommitOptions{Labels: map[string]string{"l": "v", labelSourceRef: "/etc/passwd"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Update(t.Context(), object.SnapshotInfo{Name: name, Labels: map[string]string{"new": "v"}}); err != nil {
			t.Fatal(err)
		}
		info, err := s.Stat(t.Context(), name)
		if err != nil || info.Labels[labelSourceRef] != layer || info.Labels["new"] != "v" {
			t.Errorf("%+v %v", info, err)
		}
		if m, err = s.View(t.Context(), name+"-view", name, nil); err != nil {
			t.Fatal(err)
		}
		if err := mount.WithTemp(t.Context(), m, func(root string) error {
			_, err := os.Stat(filepath.Join(root, "cached"))
			return err
		}); err != nil {
			t.Error(err)
		}
		parent = name
	}
	// Without the labels of an unpack, and by a client's own private label, nothing is taken.
	for _, l := range []map[string]string{{labelDiffID: id.String()}, {labelSource: sourceCache, labelSourceRef: "/etc/passwd"}, {snapshot.LabelRef: "c", labelDiffID: "sha256:../../x"}} {
		m, err := s.Prepare(t.Context(), fmt.Sprint(l), "", l)
		if err != nil || m[0].Type != "bind" {
			t.Errorf("%v: %v %v", l, m, err)
		}
	}
	for _, key := range []string{"two-view", "two", "one-view", "one"} {
		if err := s.Remove(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(layer); err != nil {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	if _, err := New(t.TempDir(), Options{DMVerity: "on"}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Error(err)
	}
	for _, opts := range []Options{{Caches: []string{"relative"}}, {Caches: []string{"/c"}, Immutable: true}, {Caches: []string{"/c"}, Verity: true}} {
		if _, err := New(t.TempDir(), opts); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
	if _, err := New(t.TempDir(), Options{DMVerity: "maybe"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
}
