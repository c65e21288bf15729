package transfer_test

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/events"
	"berth/internal/image"
	"berth/internal/meta"
	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/registry/registrytest"
	"berth/internal/snapshot"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"
	"berth/internal/transfer"
)

// daemon is the service over the stores that the daemon has.
type daemon struct {
	root string
	db   *meta.DB
	svc  *transfer.Service
}

func newDaemon(t testing.TB, change ...func(*transfer.Options)) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root")
	}
	d := &daemon{root: t.TempDir()}
	local, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(d.root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	over, err := overlay.New(filepath.Join(d.root, "overlayfs"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { over.Close() })
	nat, err := native.New(filepath.Join(d.root, "native"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nat.Close() })
	d.db, err = meta.Open(t.Context(), meta.Options{
		Path: filepath.Join(d.root, "meta.db"), Content: local, Events: events.New(),
		Snapshotters: map[string]snapshot.Backend{"overlayfs": over, "native": nat},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.db.Close() })
	if err := d.db.Namespaces().Create(t.Context(), object.Namespace{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	opts := transfer.Options{
		Snapshotter: "overlayfs", TempDir: d.root, Differ: diff.NewWalking(d.db.Scope("test", "").Content()),
		Scope: func(ns, lease string) transfer.Stores {
			s := d.db.Scope(ns, lease)
			return transfer.Stores{Namespace: ns, Images: s.Images(), Leases: s.Leases(), Content: s.Content(), Snapshotter: s.Snapshotter}
		},
	}
	for _, c := range change {
		c(&opts)
	}
	d.svc = transfer.New(opts)
	return d
}

// view lists the files below a committed chain, with modes and contents.
func (d *daemon) view(t *testing.T, snapshotter, name string) (out []string) {
	t.Helper()
	sn, err := d.db.Scope("test", "").Snapshotter(snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sn.View(t.Context(), "view", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Remove(t.Context(), "view")
	err = mount.WithTemp(t.Context(), m, func(root string) error {
		return filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
			if err != nil || p == root {
				return err
			}
			rel, _ := filepath.Rel(root, p)
			line := fi.Mode().String() + " " + rel
			if fi.Mode().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				line += " " + string(b)
			}
			out = append(out, line)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tarOf(entries ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := h.Name
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		h.ModTime = time.Unix(1700000000, 0)
		w.WriteHeader(&h)
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, data)
		}
	}
	w.Close()
	return b.Bytes()
}

func reg(name string) tar.Header {
	return tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}
}
func dir(name string, mode int64) tar.Header {
	return tar.Header{Name: name, Mode: mode, Typeflag: tar.TypeDir}
}

// withApplier leaves all unpacking to the Applier of a scope, as a client of a
// daemon must.
func withApplier(o *transfer.Options) {
	scope := o.Scope
	o.Differ = nil
	o.Scope = func(ns, lease string) transfer.Stores {
		s := scope(ns, lease)
		s.Applier = diff.NewWalking(s.Content)
		return s
	}
}

// Layers that are unpacked apart come out as if each had been put onto the one
// before: whiteouts, opaque directories, attributes of directories that a layer
// only passes through.
func TestPullIntoDaemon(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1",
		tarOf(dir("etc", 0o750), reg("etc/a"), reg("etc/b"), dir("old", 0o755), reg("old/x"), reg("top")),
		tarOf(reg("etc/c"), reg("etc/.wh.a"), reg(".wh.top"), dir("new", 0o700)),
		tarOf(dir("old", 0o755), reg("old/.wh..wh..opq"), reg("old/y"), reg("new/z")),
	)
	want := []string{"drwxr-x--- etc", "-rw-r--r-- etc/b etc/b", "-rw-r--r-- etc/c etc/c", "drwx------ new", "-rw-r--r-- new/z new/z", "drwxr-xr-x old", "-rw-r--r-- old/y old/y"}
	for _, c := range []struct {
		snapshotter string
		change      func(*transfer.Options)
	}{
		{"overlayfs", func(*transfer.Options) {}}, {"native", func(*transfer.Options) {}},
		{"overlayfs", withApplier}, {"native", withApplier},
	} {
		t.Run(c.snapshotter, func(t *testing.T) {
			snapshotter := c.snapshotter
			d := newDaemon(t, c.change)
			r, err := registry.NewRemote(srv.Host+"/a/b:v1", registry.Options{})
			if err != nil {
				t.Fatal(err)
			}
			to := target(true)
			to.Unpacks[0].Snapshotter = snapshotter
			if _, err := d.svc.Pull(t.Context(), "test", "", r, to, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := d.db.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := d.view(t, snapshotter, img.chain.String()); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			s := d.db.Scope("test", "")
			leases, err := s.Leases().List(t.Context())
			if err != nil || len(leases) > 0 {
				t.Errorf("leases %v, %v", leases, err)
			}
			for _, l := range img.manifest.Layers {
				if _, err := s.Content().Info(t.Context(), l.Digest); err != nil {
					t.Errorf("after a collection: %v", err)
				}
			}
			// Without its record everything goes.
			if err := s.Images().Delete(t.Context(), srv.Host+"/a/b:v1", meta.ImageDelete{Sync: true}); err != nil {
				t.Fatal(err)
			}
			n := 0
			s.Content().Walk(t.Context(), func(object.BlobInfo) error { n++; return nil })
			sn, _ := s.Snapshotter(snapshotter)
			sn.Walk(t.Context(), func(object.SnapshotInfo) error { n++; return nil })
			if n > 0 {
				t.Errorf("%d blobs and snapshots stay", n)
			}
		})
	}
}

// TestPullFromRealRegistry needs the one at 127.0.0.1:5000.
func TestPullFromRealRegistry(t *testing.T) {
	c, err := net.DialTimeout("tcp", "127.0.0.1:5000", time.Second)
	if err != nil {
		t.Skip("no registry at 127.0.0.1:5000: ", err)
	}
	c.Close()
	for _, name := range []string{"busybox:latest", "containerd/busybox:1.36", "pause:3.10", "containerd/whiteout-test:1.0"} {
		d := newDaemon(t)
		r, err := registry.NewRemote("127.0.0.1:5000/"+name, registry.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Resolve(t.Context()); err != nil {
			t.Skip("the registry has no ", name, ": ", err)
		}
		img, err := d.svc.Pull(t.Context(), "test", "", r, target(true), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var archive bytes.Buffer
		if err := d.svc.Export(t.Context(), "test", []string{img.Name}, &archive, transfer.ExportOptions{}, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		other := newDaemon(t)
		if imgs, err := other.svc.Import(t.Context(), "test", "", &archive, transfer.ImportOptions{}, importTarget(), nil); err != nil || len(imgs) != 1 || imgs[0].Target.Digest != img.Target.Digest && image.IsManifest(img.Target.MediaType) {
			t.Errorf("%s: import of its export: %v, %v", name, imgs, err)
		}
	}
}
