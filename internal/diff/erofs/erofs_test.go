package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	snapshots "berth/internal/snapshot/erofs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type fixture struct {
	*Differ
	store content.Store
	snaps *snapshots.Snapshotter
}

func open(t *testing.T, opts Options) fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip(err)
	}
	store, err := content.OpenLocal(content.LocalOptions{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := snapshots.New(t.TempDir(), snapshots.Options{})
	if errdefs.IsNotImplemented(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snaps.Close() })
	return fixture{New(store, diff.NewWalking(store), opts), store, snaps}
}

func (f fixture) put(t *testing.T, mediaType string, blob []byte) ispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(blob)
	w, err := f.store.Writer(t.Context(), content.WriteOptions{Ref: d.Encoded()})
	if err == nil {
		_, err = w.Write(blob)
	}
	if err == nil {
		err = w.Commit(t.Context(), int64(len(blob)), d, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
}

// apply commits a snapshot with the layer and reads the file f of it.
func (f fixture) apply(t *testing.T, key, parent string, desc ispec.Descriptor) (ispec.Descriptor, string) {
	t.Helper()
	m, err := f.snaps.Prepare(t.Context(), key, parent, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Apply(t.Context(), desc, m, diff.ApplyOptions{Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.snaps.Commit(t.Context(), "layer-"+key, key, snapshot.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	if m, err = f.snaps.View(t.Context(), "view-"+key, "layer-"+key, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := mount.WithTemp(t.Context(), m, func(root string) (err error) {
		got, err = os.ReadFile(filepath.Join(root, "f"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out, string(got)
}

func compress(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := archive.Compress(&b, archive.Zstd)
	if err == nil {
		_, err = z.Write(data)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestNativeLayers(t *testing.T) {
	f := open(t, Options{})
	src, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.erofs", "--quiet", image, src).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, desc := range map[string]ispec.Descriptor{
		"plain": f.put(t, "application/vnd.erofs.layer.v1", data),
		"zstd":  f.put(t, "application/vnd.erofs.layer.v1+zstd", compress(t, data)),
	} {
		out, got := f.apply(t, name, "", desc)
		if got != "content" || out.MediaType != "application/vnd.erofs.layer.v1" || out.Digest != digest.FromBytes(data) || out.Size != int64(len(data)) {
			t.Errorf("%s: %q, %+v", name, got, out)
		}
	}
}

func tarball(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: 7, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "content"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTarLayers(t *testing.T) {
	if err := Check(t.Context()); err != nil {
		t.Skip(err)
	}
	for name, opts := range map[string]Options{"converted": {}, "index": {TarIndex: true}} {
		f := open(t, opts)
		data := tarball(t)
		parent := ""
		for _, mediaType := range []string{ispec.MediaTypeImageLayer, ispec.MediaTypeImageLayerZstd} {
			blob := data
			if mediaType == ispec.MediaTypeImageLayerZstd {
				blob = compress(t, data)
			}
			out, got := f.apply(t, mediaType, parent, f.put(t, mediaType, blob))
			if got != "content" || out.Digest != digest.FromBytes(data) || out.MediaType != ispec.MediaTypeImageLayer {
				t.Errorf("%s %s: %q, %+v", name, mediaType, got, out)
			}
			parent = "layer-" + mediaType
		}
	}
}

func TestRefuses(t *testing.T) {
	f := open(t, Options{})
	layer := f.put(t, "application/vnd.erofs.layer.v1", []byte("x"))
	other := t.TempDir()
	prepared, err := f.snaps.Prepare(t.Context(), "a", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	readOnly := []object.Mount{{Type: "bind", Source: prepared[0].Source, Options: []string{"rbind", "ro"}}}
	for name, c := range map[string]struct {
		desc   ispec.Descriptor
		mounts []object.Mount
		want   error
	}{
		"no mounts":      {layer, nil, errdefs.ErrNotImplemented},
		"another's":      {layer, []object.Mount{{Type: "bind", Source: other + "/fs"}}, errdefs.ErrNotImplemented},
		"another type":   {layer, []object.Mount{{Type: "btrfs", Source: "/dev/x"}}, errdefs.ErrNotImplemented},
		"read-only":      {layer, readOnly, errdefs.ErrFailedPrecondition},
		"no blob":        {ispec.Descriptor{MediaType: layer.MediaType, Digest: digest.FromString("none")}, prepared, errdefs.ErrNotFound},
		"bad suffix":     {ispec.Descriptor{MediaType: layer.MediaType + "+gzip", Digest: layer.Digest, Size: 1}, prepared, errdefs.ErrNotImplemented},
		"no layer":       {ispec.Descriptor{MediaType: ispec.MediaTypeImageConfig, Digest: layer.Digest, Size: 1}, prepared, errdefs.ErrNotImplemented},
		"damaged stream": {ispec.Descriptor{MediaType: layer.MediaType + "+zstd", Digest: f.put(t, "", compress(t, make([]byte, 1000))[:9]).Digest}, prepared, errdefs.ErrInvalidArgument},
	} {
		if _, err := f.Apply(t.Context(), c.desc, c.mounts, diff.ApplyOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(prepared[0].Source), "layer*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestUUID(t *testing.T) {
	// Of uuidgen --sha1 --namespace @url --name erofs:blobs/sha256:00
	if got, want := uuid("sha256:00"), "b8ece2c9-1c15-5f4a-9422-1e11f6033c87"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
