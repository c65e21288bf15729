package compat

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/manager"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ground is a root and state directory on which daemons run one after the other.
type ground struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	log  *bytes.Buffer
	mm   mount.Manager // containerd's: the judge of both daemons' mounts
	n    int           // of activations
	last string        // the daemon's programs
}

func newGround(t *testing.T, extra string) *ground {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, err := os.MkdirTemp("", "bs")
	if err != nil {
		t.Fatal(err)
	}
	g := &ground{t: t, dir: dir, log: new(bytes.Buffer)}
	t.Cleanup(g.remove)
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.podsandbox.controller.v1.podsandbox', 'io.containerd.nri.v1.nri']\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n%s",
		dir+"/root", dir+"/state", dir+"/c.sock", dir+"/c.sock.ttrpc", dir+"/opt", strings.ReplaceAll(extra, "DIR", dir))
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "mounts.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if g.mm, err = manager.NewManager(db, filepath.Join(dir, "targets"), manager.WithAllowedRoot(dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return g
}

func (g *ground) start(bin string) snapshotClient {
	g.t.Helper()
	g.last = bin
	fmt.Fprintf(g.log, "--- %s\n", bin)
	g.cmd = exec.Command(filepath.Join(bin, "containerd"), "-c", g.dir+"/config.toml")
	g.cmd.Env = append(os.Environ(), "PATH="+bin+":"+peerBin+":/usr/sbin:/usr/bin:/sbin:/bin")
	g.cmd.Stdout, g.cmd.Stderr, g.cmd.WaitDelay = g.log, g.log, 5*time.Second
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	c, err := client.New(g.dir+"/c.sock", client.WithTimeout(60*time.Second))
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.log)
	}
	g.t.Cleanup(func() { c.Close() })
	ctx := namespaces.WithNamespace(g.t.Context(), "test")
	if ok, err := c.IsServing(ctx); !ok {
		g.t.Fatalf("the daemon does not serve: %v\n%s", err, g.log)
	}
	return snapshotClient{g, c, ctx}
}

func (g *ground) stop() {
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	_ = g.cmd.Wait()
	g.cmd = nil
}

func (g *ground) remove() {
	g.stop()
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], g.dir+"/") {
			g.t.Errorf("mount left behind: %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if g.t.Failed() {
		g.t.Logf("the daemons' log:\n%s", g.log)
	}
	os.RemoveAll(g.dir)
}

// snapshotClient is a client of one of the daemons.
type snapshotClient struct {
	*ground
	c   *client.Client
	ctx context.Context
}

func (s snapshotClient) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", s.last, err)
	}
}

// in mounts as containerd does and calls fn.
func (s snapshotClient) in(mounts []mount.Mount, fn func(root string)) {
	s.t.Helper()
	ctx := context.WithoutCancel(s.ctx)
	s.n++
	name := fmt.Sprint("activation", s.n)
	info, err := s.mm.Activate(ctx, name, mounts)
	switch {
	case err == nil:
		mounts = info.System
		defer func() { s.must(s.mm.Deactivate(ctx, name)) }()
	case !errdefs.IsNotImplemented(err):
		s.must(err)
	}
	s.must(mount.WithTempMount(ctx, mounts, func(root string) error {
		fn(root)
		return nil
	}))
}

var keep = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "x"})

// layer commits a snapshot above parent in which files are written; a file
// without content is removed.
func (s snapshotClient) layer(snapshotter, name, parent string, files map[string]string) {
	s.t.Helper()
	s.prepare(snapshotter, name+"-active", parent, files)
	s.must(s.c.SnapshotService(snapshotter).Commit(s.ctx, name, name+"-active", keep))
}

func (s snapshotClient) prepare(snapshotter, key, parent string, files map[string]string) {
	s.t.Helper()
	m, err := s.c.SnapshotService(snapshotter).Prepare(s.ctx, key, parent, keep)
	s.must(err)
	s.write(m, files)
}

func (s snapshotClient) write(m []mount.Mount, files map[string]string) {
	s.t.Helper()
	s.in(m, func(root string) {
		for name, content := range files {
			path := filepath.Join(root, name)
			s.must(os.MkdirAll(filepath.Dir(path), 0o755))
			if content == "" {
				s.must(os.RemoveAll(path))
			} else {
				s.must(os.WriteFile(path, []byte(content), 0o640))
			}
		}
	})
}

// files checks what the mounts of a snapshot show.
func (s snapshotClient) files(snapshotter, key string, want map[string]string) {
	s.t.Helper()
	m, err := s.c.SnapshotService(snapshotter).Mounts(s.ctx, key)
	s.must(err)
	s.in(m, func(root string) {
		got := map[string]string{}
		s.must(filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			got[strings.TrimPrefix(path, root+"/")] = string(b)
			return err
		}))
		if !maps.Equal(got, want) {
			s.t.Errorf("%s: %s of %s has files %q, want %q", s.last, key, snapshotter, got, want)
		}
	})
}

// names checks which snapshots there are.
func (s snapshotClient) names(snapshotter string, want ...string) {
	s.t.Helper()
	var got []string
	s.must(s.c.SnapshotService(snapshotter).Walk(s.ctx, func(_ context.Context, i snapshots.Info) error {
		got = append(got, fmt.Sprintf("%s %s %s", i.Name, i.Kind, i.Parent))
		return nil
	}))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Errorf("%s: snapshots of %s: %q, want %q", s.last, snapshotter, got, want)
	}
}

func programs(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
}

func has(t *testing.T, filesystem string) {
	t.Helper()
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "\t"+filesystem+"\n") {
		t.Skip("the kernel has no ", filesystem)
	}
}

// makeImage makes the image of an empty filesystem.
func makeImage(t *testing.T, path, size string, mkfs ...string) {
	t.Helper()
	if out, err := exec.Command("truncate", "-s", size, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// btrfsPeer builds containerd with its btrfs snapshotter, which needs cgo and
// the kernel's headers of btrfs.
func btrfsPeer(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(peerBin, "btrfs")
	cmd := exec.Command("go", "build", "-tags", strings.ReplaceAll(peerTags, "no_btrfs,", ""), "-o", filepath.Join(dir, "containerd"), "github.com/containerd/containerd/v2/cmd/containerd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("containerd with btrfs cannot be built here: %v: %.300s", err, out)
	}
	return dir
}

// TestSnapshotterTakeover has the daemons take turns on the directory of each
// snapshotter, each beginning once: what the one has made the other goes on
// with, in every kind of snapshot.
func TestSnapshotterTakeover(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		setup  func(t *testing.T, g *ground) (peer string)
	}{
		"overlayfs": {},
		"native":    {},
		"erofs": {setup: func(t *testing.T, g *ground) string {
			has(t, "erofs")
			programs(t, "mkfs.erofs")
			return peerBin
		}},
		"erofs/images": {config: "[plugins.'io.containerd.snapshotter.v1.erofs']\ndefault_size = '32M'\n", setup: func(t *testing.T, g *ground) string {
			has(t, "erofs")
			programs(t, "mkfs.erofs", "mkfs.ext4")
			return peerBin
		}},
		"blockfile": {config: "[plugins.'io.containerd.snapshotter.v1.blockfile']\nscratch_file = 'DIR/scratch'\n", setup: func(t *testing.T, g *ground) string {
			programs(t, "mkfs.ext4")
			makeImage(t, g.dir+"/scratch", "8M", "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0")
			m := []mount.Mount{{Type: "ext4", Source: g.dir + "/scratch", Options: []string{"loop"}}}
			if err := mount.WithTempMount(t.Context(), m, func(root string) error { return os.Remove(root + "/lost+found") }); err != nil {
				t.Fatal(err)
			}
			return peerBin
		}},
		"btrfs": {setup: func(t *testing.T, g *ground) string {
			has(t, "btrfs")
			programs(t, "mkfs.btrfs")
			peer := btrfsPeer(t)
			makeImage(t, g.dir+"/image", "256M", "mkfs.btrfs", "-q")
			root := g.dir + "/root/io.containerd.snapshotter.v1.btrfs"
			if err := os.MkdirAll(root, 0o700); err != nil {
				t.Fatal(err)
			}
			m := mount.Mount{Type: "btrfs", Source: g.dir + "/image", Options: []string{"loop"}}
			if err := m.Mount(root); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				g.stop()
				if err := mount.Unmount(root, 0); err != nil {
					t.Error(err)
				}
			})
			return peer
		}},
	} {
		for _, first := range []string{"containerd", "berth"} {
			t.Run(name+"/"+first+" first", func(t *testing.T) {
				g := newGround(t, c.config)
				peer := peerBin
				if c.setup != nil {
					peer = c.setup(t, g)
				}
				bins := []string{peer, oursBin}
				if first == "berth" {
					slices.Reverse(bins)
				}
				snapshotter, _, _ := strings.Cut(name, "/")
				takeTurns(g, snapshotter, bins)
			})
		}
	}
}

func takeTurns(g *ground, snapshotter string, bins []string) {
	one := map[string]string{"same": "1", "changed": "1", "gone/x": "1", "dir/old": "1"}
	s := g.start(bins[0])
	service := func() snapshots.Snapshotter { return s.c.SnapshotService(snapshotter) }
	s.layer(snapshotter, "one", "", one)
	s.layer(snapshotter, "two", "one", map[string]string{"changed": "2", "gone": "", "dir/new": "2"})
	two := map[string]string{"same": "1", "changed": "2", "dir/old": "1", "dir/new": "2"}
	s.prepare(snapshotter, "on-two", "two", map[string]string{"mine": "a"})
	s.prepare(snapshotter, "on-none", "", map[string]string{"mine": "b"})
	for key, parent := range map[string]string{"view-one": "one", "view-two": "two"} {
		_, err := service().View(s.ctx, key, parent, keep)
		s.must(err)
	}
	usage, err := service().Usage(s.ctx, "two")
	s.must(err)
	g.stop()

	s = g.start(bins[1])
	s.names(snapshotter, "on-none Active ", "on-two Active two", "one Committed ", "two Committed one", "view-one View one", "view-two View two")
	s.files(snapshotter, "view-one", one)
	s.files(snapshotter, "view-two", two)
	s.files(snapshotter, "on-none", map[string]string{"mine": "b"})
	if again, err := service().Usage(s.ctx, "two"); err != nil || again != usage && snapshotter != "blockfile" {
		s.t.Errorf("%s: usage %+v %v, at first %+v", s.last, again, err, usage)
	}
	m, err := service().Mounts(s.ctx, "on-two")
	s.must(err)
	s.write(m, map[string]string{"mine": "c", "dir": ""})
	s.must(service().Commit(s.ctx, "three", "on-two", keep))
	three := map[string]string{"same": "1", "changed": "2", "mine": "c"}
	s.must(service().Commit(s.ctx, "alone", "on-none", keep))
	s.prepare(snapshotter, "on-three", "three", map[string]string{"last": "d"})
	_, err = service().View(s.ctx, "view-three", "three", keep)
	s.must(err)
	s.must(service().Remove(s.ctx, "view-one"))
	g.stop()

	s = g.start(bins[0])
	s.files(snapshotter, "view-three", three)
	s.files(snapshotter, "on-three", map[string]string{"same": "1", "changed": "2", "mine": "c", "last": "d"})
	s.must(service().Commit(s.ctx, "four", "on-three", keep))
	s.prepare(snapshotter, "on-alone", "alone", nil)
	s.files(snapshotter, "on-alone", map[string]string{"mine": "b"})
	g.stop()

	s = g.start(bins[1])
	for _, key := range []string{"on-alone", "alone", "view-three", "four", "three", "view-two", "two", "one"} {
		s.must(service().Remove(s.ctx, key))
	}
	s.names(snapshotter)
	if c, ok := service().(snapshots.Cleaner); ok {
		if err := c.Cleanup(s.ctx); err != nil && !errdefs.IsNotImplemented(err) {
			s.t.Error(err)
		}
	}
	s.prepare(snapshotter, "fresh", "", map[string]string{"f": "x"})
	s.must(service().Remove(s.ctx, "fresh"))
	g.stop()
}
