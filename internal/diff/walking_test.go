package diff

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	_ Applier  = (*Walking)(nil)
	_ Comparer = (*Walking)(nil)
	_ Unpacker = (*Walking)(nil)
)

// blobs is a content store in memory, as far as a differ needs one.
type blobs struct {
	content.Store
	mu    sync.Mutex
	data  map[digest.Digest][]byte
	label map[digest.Digest]map[string]string
	open  int
}

func newBlobs() *blobs {
	return &blobs{data: map[digest.Digest][]byte{}, label: map[digest.Digest]map[string]string{}}
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }

func (b *blobs) ReaderAt(_ context.Context, desc ispec.Descriptor) (content.ReaderAt, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.data[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return blobReader{bytes.NewReader(data)}, nil
}

func (b *blobs) Info(_ context.Context, d digest.Digest) (object.BlobInfo, error) {
	return object.BlobInfo{Digest: d, Labels: b.label[d]}, nil
}

func (b *blobs) Update(_ context.Context, info object.BlobInfo, fieldpaths ...string) (object.BlobInfo, error) {
	for _, p := range fieldpaths {
		key := strings.TrimPrefix(p, "labels.")
		b.label[info.Digest][key] = info.Labels[key]
	}
	return info, nil
}

func (b *blobs) Abort(context.Context, string) error { b.open--; return nil }

func (b *blobs) Writer(context.Context, content.WriteOptions) (content.Writer, error) {
	b.open++
	return &blobWriter{b: b}, nil
}

type blobWriter struct {
	content.Writer
	bytes.Buffer
	b *blobs
}

func (w *blobWriter) Write(p []byte) (int, error) { return w.Buffer.Write(p) }
func (w *blobWriter) Close() error                { return nil }
func (w *blobWriter) Truncate(int64) error        { w.Reset(); return nil }
func (w *blobWriter) Digest() digest.Digest       { return digest.FromBytes(w.Bytes()) }

func (w *blobWriter) Commit(_ context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	w.b.open--
	d := w.Digest()
	if d != expected || size != int64(w.Len()) {
		return errdefs.ErrFailedPrecondition
	}
	if _, ok := w.b.data[d]; ok {
		return errdefs.ErrAlreadyExists
	}
	w.b.data[d], w.b.label[d] = w.Bytes(), labels
	return nil
}

func (b *blobs) put(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	b.data[d] = data
	return d
}

// pack makes an archive: "name/" is a directory, "name" a file that holds its
// name, "name->to" a symbolic link, "name=>to" a hard link.
func pack(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name)), ModTime: time.Unix(1_500_000_000, 0)}
		if from, to, ok := strings.Cut(name, "->"); ok {
			h.Typeflag, h.Name, h.Linkname, h.Size = tar.TypeSymlink, from, to, 0
		} else if from, to, ok := strings.Cut(name, "=>"); ok {
			h.Typeflag, h.Name, h.Linkname, h.Size = tar.TypeLink, from, to, 0
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o750, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, c archive.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := archive.Compress(&b, c)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newOverlay(t testing.TB) *overlay.Snapshotter {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("snapshots belong to root")
	}
	s, err := overlay.New(t.TempDir(), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newNative(t testing.TB) *native.Snapshotter {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("snapshots belong to root")
	}
	s, err := native.New(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func show(t testing.TB, s snapshot.Snapshotter, name string) []string {
	t.Helper()
	m, err := s.View(t.Context(), "view-"+name, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	if err := mount.WithTemp(t.Context(), m, func(root string) error {
		return filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && p != root {
				info, ierr := d.Info()
				out = append(out, fmt.Sprintf("%s %o", p[len(root)+1:], info.Mode().Perm()))
				err = ierr
			}
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// layers of the image that the tests unpack, and what it comes to.
var (
	layers = [][]string{
		{"etc/", "etc/a", "etc/gone", "usr/", "usr/lib/", "usr/lib/x", "lib->usr/lib", "old/", "old/a"},
		{"etc/b", "etc/.wh.gone", "lib/y", "etc/c=>etc/b"},
		{"old/.wh..wh..opq", "old/b", "etc/a"},
	}
	merged = []string{
		"etc 750", "etc/a 644", "etc/b 644", "etc/c 644", "lib 777", "old 750", "old/b 644",
		"usr 750", "usr/lib 750", "usr/lib/x 644", "usr/lib/y 644",
	}
)

func TestApplyLayers(t *testing.T) {
	for name, s := range map[string]snapshot.Snapshotter{"overlay": newOverlay(t), "native": newNative(t)} {
		t.Run(name, func(t *testing.T) {
			store := newBlobs()
			w := NewWalking(store)
			parent := ""
			for i, names := range layers {
				data := pack(t, names...)
				c := []archive.Compression{archive.Gzip, archive.Zstd, archive.Uncompressed}[i]
				mediaType := []string{ispec.MediaTypeImageLayerGzip, ispec.MediaTypeImageLayerZstd, ispec.MediaTypeImageLayer}[i]
				d := store.put(compress(t, c, data))
				m, err := s.Prepare(t.Context(), fmt.Sprint("key", i), parent, nil)
				if err != nil {
					t.Fatal(err)
				}
				desc, err := w.Apply(t.Context(), ispec.Descriptor{MediaType: mediaType, Digest: d}, m, ApplyOptions{Sync: i == 0})
				if err != nil {
					t.Fatal(err)
				}
				if desc.Digest != digest.FromBytes(data) || desc.Size != int64(len(data)) || desc.MediaType != ispec.MediaTypeImageLayer {
					t.Errorf("applied %+v", desc)
				}
				parent = fmt.Sprint("layer", i)
				if err := s.Commit(t.Context(), parent, fmt.Sprint("key", i), snapshot.CommitOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := show(t, s, parent); !slices.Equal(got, merged) {
				t.Errorf("files\n%q, want\n%q", got, merged)
			}
		})
	}
}

// TestUnpackApart unpacks all layers at once and commits them in order, as a
// pull does.
func TestUnpackApart(t *testing.T) {
	s := newOverlay(t)
	w := NewWalking(nil)
	mounts := make([][]object.Mount, len(layers))
	unpacked := make([]Unpacked, len(layers))
	errs := make([]error, len(layers))
	var wg sync.WaitGroup
	for i, names := range layers {
		data := pack(t, names...)
		blob := compress(t, archive.Gzip, data)
		wg.Go(func() {
			if mounts[i], errs[i] = s.Prepare(t.Context(), fmt.Sprint("key", i), "", nil); errs[i] != nil {
				return
			}
			unpacked[i], errs[i] = w.Unpack(t.Context(), "application/vnd.docker.image.rootfs.diff.tar.gzip", bytes.NewReader(blob), mounts[i], i > 0)
			if unpacked[i].DiffID != digest.FromBytes(data) {
				errs[i] = errors.Join(errs[i], errors.New("wrong diff ID"))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	parent := ""
	for i := range layers {
		var below []object.Mount
		if parent != "" {
			var err error
			if below, err = s.View(t.Context(), fmt.Sprint("below", i), parent, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.FixImplied(t.Context(), mounts[i], below, unpacked[i].Implied); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("layer", i)
		if err := s.Commit(t.Context(), name, fmt.Sprint("key", i), snapshot.CommitOptions{Parent: parent}); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	if got := show(t, s, parent); !slices.Equal(got, merged) {
		t.Errorf("files\n%q, want\n%q", got, merged)
	}
}

func TestUnpackReadsToTheEnd(t *testing.T) {
	s := newOverlay(t)
	m, err := s.Prepare(t.Context(), "a", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append(pack(t, "f"), make([]byte, 1<<20)...) // padding counts for the diff ID
	blob := bytes.NewReader(compress(t, archive.Gzip, data))
	un, err := NewWalking(nil).Unpack(t.Context(), ispec.MediaTypeImageLayerGzip, blob, m, false)
	if err != nil || un.DiffID != digest.FromBytes(data) || un.Size != int64(len(data)) || blob.Len() > 0 {
		t.Errorf("%+v, %d bytes left, %v", un, blob.Len(), err)
	}
}

func TestApplyErrors(t *testing.T) {
	s := newOverlay(t)
	store := newBlobs()
	w := NewWalking(store)
	good := pack(t, "f")
	for name, c := range map[string]struct {
		desc ispec.Descriptor
		want error
	}{
		"no such blob":   {ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromString("none")}, errdefs.ErrNotFound},
		"encrypted":      {ispec.Descriptor{MediaType: ispec.MediaTypeImageLayerGzip + "+encrypted", Digest: store.put(good)}, errdefs.ErrNotImplemented},
		"not a layer":    {ispec.Descriptor{MediaType: ispec.MediaTypeImageConfig, Digest: store.put(good)}, errdefs.ErrNotImplemented},
		"not an archive": {ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: store.put(bytes.Repeat([]byte("x"), 2000))}, errdefs.ErrInvalidArgument},
		"truncated gzip": {ispec.Descriptor{MediaType: ispec.MediaTypeImageLayerGzip, Digest: store.put(compress(t, archive.Gzip, good)[:40])}, errdefs.ErrInvalidArgument},
		"escape":         {ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: store.put(pack(t, "../f"))}, errdefs.ErrInvalidArgument},
	} {
		m, err := s.Prepare(t.Context(), name, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Apply(t.Context(), c.desc, m, ApplyOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	desc := ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: store.put(good)}
	if _, err := w.Apply(t.Context(), desc, nil, ApplyOptions{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("nowhere: %v", err)
	}
}

func TestCompare(t *testing.T) {
	for name, s := range map[string]snapshot.Snapshotter{"overlay": newOverlay(t), "native": newNative(t)} {
		t.Run(name, func(t *testing.T) {
			store := newBlobs()
			w := NewWalking(store)
			m, err := s.Prepare(t.Context(), "a", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Unpack(t.Context(), ispec.MediaTypeImageLayer, bytes.NewReader(pack(t, layers[0]...)), m, false); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), "base", "a", snapshot.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
			upper, err := s.Prepare(t.Context(), "a", "base", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := mount.WithTemp(t.Context(), upper, func(root string) error {
				return errors.Join(
					os.Remove(filepath.Join(root, "etc/gone")),
					os.RemoveAll(filepath.Join(root, "old")),
					os.WriteFile(filepath.Join(root, "usr/lib/z"), []byte("z"), 0o600))
			}); err != nil {
				t.Fatal(err)
			}
			lower, err := s.View(t.Context(), "v", "base", nil)
			if err != nil {
				t.Fatal(err)
			}
			desc, err := w.Compare(t.Context(), lower, upper, CompareOptions{Labels: map[string]string{"x": "y"}})
			if err != nil {
				t.Fatal(err)
			}
			again, err := w.Compare(t.Context(), lower, upper, CompareOptions{Labels: map[string]string{"z": "1"}})
			if err != nil || again.Digest != desc.Digest {
				t.Errorf("the second time %+v, %v; at first %+v", again, err, desc)
			}
			if l := store.label[desc.Digest]; l["x"] != "y" || l["z"] != "1" || l[labelUncompressed] == "" || store.open != 0 {
				t.Errorf("labels %v, %d ingests open", l, store.open)
			}
			m, err = s.Prepare(t.Context(), "copy", "base", nil)
			if err != nil {
				t.Fatal(err)
			}
			un, err := w.Apply(t.Context(), desc, m, ApplyOptions{})
			if err != nil || un.Digest.String() != store.label[desc.Digest][labelUncompressed] {
				t.Fatalf("%+v %v", un, err)
			}
			if err := s.Commit(t.Context(), "copied", "copy", snapshot.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
			want := []string{"etc 750", "etc/a 644", "lib 777", "usr 750", "usr/lib 750", "usr/lib/x 644", "usr/lib/z 600"}
			if got := show(t, s, "copied"); !slices.Equal(got, want) {
				t.Errorf("files\n%q, want\n%q", got, want)
			}
		})
	}
}

// BenchmarkUnpack unpacks a gzip layer of 1,000 files of 32 KiB, half of it
// incompressible.
func BenchmarkUnpack(b *testing.B) {
	s := newOverlay(b)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := make([]byte, 32<<10)
	for i := range content[:len(content)/2] {
		content[i] = byte(i * i >> 7)
	}
	for i := range 1000 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/d%d/f%d", i%50, i), Mode: 0o644, Size: int64(len(content))}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	blob := compress(b, archive.Gzip, buf.Bytes())
	b.SetBytes(int64(buf.Len()))
	differ := NewWalking(nil)
	for i := 0; b.Loop(); i++ {
		m, err := s.Prepare(b.Context(), fmt.Sprint(i), "", nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := differ.Unpack(b.Context(), ispec.MediaTypeImageLayerGzip, bytes.NewReader(blob), m, true); err != nil {
			b.Fatal(err)
		}
	}
}
