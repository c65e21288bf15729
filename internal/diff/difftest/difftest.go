// Package difftest is the contract of diff.Applier and diff.Comparer as a suite
// of tests, which every differ passes.
package difftest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/mount"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fixture is what a differ is tested with.
type Fixture struct {
	Differ diff.Differ
	// Store is where the differ has its blobs.
	Store content.Store
	// Prepare, View and Commit are a snapshotter's.
	Prepare, View func(ctx context.Context, key, parent string) ([]object.Mount, error)
	Commit        func(ctx context.Context, name, key string) error
}

// Run runs the suite; open makes an empty fixture that ends with the test.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for name, test := range map[string]func(*testing.T, Fixture){
		"MediaTypes":  testMediaTypes,
		"RoundTrip":   testRoundTrip,
		"Labels":      testLabels,
		"Epoch":       testEpoch,
		"ApplyErrors": testApplyErrors,
		"DiffErrors":  testDiffErrors,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1_000_000_000, 0), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(files[name]))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func compress(t *testing.T, c archive.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := archive.Compress(&b, c)
	must(t, err)
	_, err = z.Write(data)
	must(t, err)
	must(t, z.Close())
	return b.Bytes()
}

func (f Fixture) put(t *testing.T, blob []byte) ispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(blob)
	w, err := f.Store.Writer(t.Context(), content.WriteOptions{Ref: "put-" + d.Encoded()})
	must(t, err)
	_, err = w.Write(blob)
	must(t, err)
	if err := w.Commit(t.Context(), int64(len(blob)), d, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return ispec.Descriptor{Digest: d, Size: int64(len(blob))}
}

func (f Fixture) get(t *testing.T, desc ispec.Descriptor) []byte {
	t.Helper()
	r, err := f.Store.ReaderAt(t.Context(), desc)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	must(t, err)
	return b
}

func (f Fixture) prepare(t *testing.T, key, parent string) []object.Mount {
	t.Helper()
	m, err := f.Prepare(t.Context(), key, parent)
	must(t, err)
	return m
}

func (f Fixture) commit(t *testing.T, name, key string) {
	t.Helper()
	must(t, f.Commit(t.Context(), name, key))
}

func (f Fixture) view(t *testing.T, key, parent string) []object.Mount {
	t.Helper()
	m, err := f.View(t.Context(), key, parent)
	must(t, err)
	return m
}

// files reads what mounts show.
func files(t *testing.T, mounts []object.Mount) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, mount.WithTemp(context.WithoutCancel(t.Context()), mounts, func(root string) error {
		return filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			out[strings.TrimPrefix(path, root+"/")] = string(b)
			return err
		})
	}))
	return out
}

func testMediaTypes(t *testing.T, f Fixture) {
	want := map[string]string{"a": "1", "b": "2"}
	tarball := pack(t, want)
	const docker = "application/vnd.docker.image.rootfs."
	for mediaType, c := range map[string]archive.Compression{
		ispec.MediaTypeImageLayer:                                      archive.Uncompressed,
		ispec.MediaTypeImageLayerGzip:                                  archive.Gzip,
		ispec.MediaTypeImageLayerZstd:                                  archive.Zstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":      archive.Uncompressed,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": archive.Gzip,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": archive.Zstd,
		docker + "diff.tar":                                            archive.Uncompressed,
		docker + "diff.tar.gzip":                                       archive.Gzip,
		docker + "diff.tar.zstd":                                       archive.Zstd,
		docker + "foreign.diff.tar":                                    archive.Uncompressed,
		docker + "foreign.diff.tar.gzip":                               archive.Gzip,
	} {
		desc := f.put(t, compress(t, c, tarball))
		desc.MediaType = mediaType
		m := f.prepare(t, mediaType, "")
		got, err := f.Differ.Apply(t.Context(), desc, m, diff.ApplyOptions{Sync: c == archive.Zstd})
		if err != nil {
			t.Errorf("%s: %v", mediaType, err)
			continue
		}
		if got.Digest != digest.FromBytes(tarball) || got.Size != int64(len(tarball)) || got.MediaType != ispec.MediaTypeImageLayer {
			t.Errorf("%s: applied %+v", mediaType, got)
		}
		f.commit(t, "layer-"+mediaType, mediaType)
		if got := files(t, f.view(t, "view-"+mediaType, "layer-"+mediaType)); len(got) != 2 || got["a"] != "1" || got["b"] != "2" {
			t.Errorf("%s: files %v", mediaType, got)
		}
	}
}

// What Compare writes, applied to the same parent, gives the same files.
func testRoundTrip(t *testing.T, f Fixture) {
	must(t, mount.WithTemp(t.Context(), f.prepare(t, "base-", ""), func(root string) error {
		return errors.Join(os.WriteFile(root+"/same", []byte("s"), 0o644), os.WriteFile(root+"/gone", []byte("g"), 0o644), os.WriteFile(root+"/changed", []byte("1"), 0o644),
			os.Mkdir(root+"/dir", 0o750), os.WriteFile(root+"/dir/x", nil, 0o600))
	}))
	f.commit(t, "base", "base-")
	upper := f.prepare(t, "change", "base")
	must(t, mount.WithTemp(t.Context(), upper, func(root string) error {
		return errors.Join(os.Remove(root+"/gone"), os.WriteFile(root+"/changed", []byte("22"), 0o644), os.RemoveAll(root+"/dir"),
			os.Mkdir(root+"/dir", 0o755), os.WriteFile(root+"/dir/y", []byte("y"), 0o600))
	}))
	want := map[string]string{"same": "s", "changed": "22", "dir/y": "y"}
	lower := f.view(t, "lower", "base")
	for i, mediaType := range []string{"", ispec.MediaTypeImageLayer, ispec.MediaTypeImageLayerGzip, ispec.MediaTypeImageLayerZstd} {
		desc, err := f.Differ.Compare(t.Context(), lower, upper, diff.CompareOptions{MediaType: mediaType})
		must(t, err)
		if mediaType == "" {
			mediaType = ispec.MediaTypeImageLayerGzip
		}
		blob := f.get(t, desc)
		if desc.MediaType != mediaType || desc.Size != int64(len(blob)) || desc.Digest != digest.FromBytes(blob) {
			t.Errorf("%s: %+v for %d bytes", mediaType, desc, len(blob))
		}
		key := string(rune('a' + i))
		applied, err := f.Differ.Apply(t.Context(), desc, f.prepare(t, key, "base"), diff.ApplyOptions{})
		must(t, err)
		info, err := f.Store.Info(t.Context(), desc.Digest)
		must(t, err)
		if got := info.Labels["containerd.io/uncompressed"]; got != applied.Digest.String() {
			t.Errorf("%s: uncompressed label %q, diff ID %s", mediaType, got, applied.Digest)
		}
		f.commit(t, "again-"+key, key)
		got := files(t, f.view(t, "v"+key, "again-"+key))
		if len(got) != len(want) {
			t.Errorf("%s: files %q, want %q", mediaType, got, want)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s holds %q, want %q", mediaType, k, got[k], v)
			}
		}
	}
}

// change prepares a snapshot with a new file and the mounts to compare.
func (f Fixture) change(t *testing.T) (lower, upper []object.Mount) {
	t.Helper()
	f.prepare(t, "base-", "")
	f.commit(t, "base", "base-")
	upper = f.prepare(t, "change", "base")
	must(t, mount.WithTemp(t.Context(), upper, func(root string) error { return os.WriteFile(root+"/new", []byte("n"), 0o644) }))
	return f.view(t, "lower", "base"), upper
}

func testLabels(t *testing.T, f Fixture) {
	lower, upper := f.change(t)
	for _, label := range []string{"one", "two"} { // the second time the blob exists
		desc, err := f.Differ.Compare(t.Context(), lower, upper, diff.CompareOptions{Ref: "my-ref", Labels: map[string]string{label: "x"}})
		must(t, err)
		if label == "two" {
			continue // whether an existing blob gets labels is up to the store
		}
		info, err := f.Store.Info(t.Context(), desc.Digest)
		must(t, err)
		if info.Labels[label] != "x" {
			t.Errorf("labels %v", info.Labels)
		}
	}
	if _, err := f.Store.Status(t.Context(), "my-ref"); !errdefs.IsNotFound(err) {
		t.Errorf("the ingest is still there: %v", err)
	}
}

func testEpoch(t *testing.T, f Fixture) {
	lower, upper := f.change(t)
	epoch := int64(1_111_111_111)
	desc, err := f.Differ.Compare(t.Context(), lower, upper, diff.CompareOptions{MediaType: ispec.MediaTypeImageLayer, SourceDateEpoch: &epoch})
	must(t, err)
	r := tar.NewReader(bytes.NewReader(f.get(t, desc)))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.ModTime.Unix() > epoch {
			t.Errorf("%s: %v", h.Name, h.ModTime)
		}
	}
}

func testApplyErrors(t *testing.T, f Fixture) {
	good := pack(t, map[string]string{"f": "x"})
	for name, c := range map[string]struct {
		blob      []byte // none when nil
		mediaType string
		is        func(error) bool
	}{
		"no blob":   {nil, ispec.MediaTypeImageLayer, errdefs.IsNotFound},
		"encrypted": {good, ispec.MediaTypeImageLayer + "+encrypted", errdefs.IsNotImplemented},
		"no layer":  {good, ispec.MediaTypeImageConfig, errdefs.IsNotImplemented},
		"garbage":   {bytes.Repeat([]byte("x"), 2000), ispec.MediaTypeImageLayer, errdefs.IsInvalidArgument},
		"cut gzip":  {compress(t, archive.Gzip, good)[:40], ispec.MediaTypeImageLayerGzip, errdefs.IsInvalidArgument},
	} {
		desc := ispec.Descriptor{Digest: digest.FromString("none"), Size: 4}
		if c.blob != nil {
			desc = f.put(t, c.blob)
		}
		desc.MediaType = c.mediaType
		if _, err := f.Differ.Apply(t.Context(), desc, f.prepare(t, name, ""), diff.ApplyOptions{}); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testDiffErrors(t *testing.T, f Fixture) {
	lower, upper := f.change(t)
	if _, err := f.Differ.Compare(t.Context(), lower, upper, diff.CompareOptions{MediaType: ispec.MediaTypeImageConfig}); !errdefs.IsNotImplemented(err) {
		t.Errorf("media type of no layer: %v", err)
	}
	statuses, err := f.Store.ListStatuses(t.Context())
	if err != nil || len(statuses) > 0 {
		t.Errorf("ingests are left: %v %v", statuses, err)
	}
}
