package transfer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry/registrytest"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// file is an entry of an archive that a test makes.
type file struct {
	name string
	data []byte
	link string
}

func archive(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o644, Typeflag: tar.TypeReg}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		w.WriteHeader(h)
		w.Write(f.data)
	}
	w.Close()
	return b.Bytes()
}

// saved is what docker save wrote before version 25: layers in directories.
func saved(tags ...string) []byte {
	a, b := layer("a", 5000), layer("b", 3000)
	cfg := mustJSON(ispec.Image{Platform: linuxAMD64, RootFS: ispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(a), digest.FromBytes(b), digest.FromBytes(a)}}})
	return archive(
		file{name: "1/layer.tar", data: a}, file{name: "1/VERSION", data: []byte("1.0")}, file{name: "2/layer.tar", data: b},
		file{name: "3/layer.tar", link: "../1/layer.tar"}, file{name: "config.json", data: cfg}, file{name: "repositories", data: []byte("{}")},
		file{name: "manifest.json", data: mustJSON([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": []string{"1/layer.tar", "2/layer.tar", "3/layer.tar"}}})},
	)
}

func importTarget() transfer.ImageTarget {
	t := target(true)
	t.ExtraReferences = []transfer.Reference{{Name: "import-today", IsPrefix: true, AllowOverwrite: true}}
	return t
}

func (s *stores) load(b []byte, to transfer.ImageTarget, opts transfer.ImportOptions) ([]object.Image, error) {
	return s.svc.Import(context.Background(), "test", "", bytes.NewReader(b), opts, to, nil)
}

func names(imgs []object.Image) (out []string) {
	for _, i := range imgs {
		out = append(out, i.Name)
	}
	slices.Sort(out)
	return out
}

func TestImportDockerSave(t *testing.T) {
	plain := saved("busybox:1", "r.example/x/y:z")
	for name, b := range map[string][]byte{"plain": plain, "gzip": gz(plain), "zstd": zst(plain)} {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprint(name, compress), func(t *testing.T) {
				s := newStores(t)
				imgs, err := s.load(b, importTarget(), transfer.ImportOptions{ForceCompress: compress})
				if err != nil {
					t.Fatal(err)
				}
				if n := names(imgs); !slices.Equal(n, []string{"docker.io/library/busybox:1", "r.example/x/y:z"}) {
					t.Errorf("names %v", n)
				}
				doc, err := s.blob(imgs[0].Target.Digest)
				if err != nil {
					t.Fatal(err)
				}
				m, err := image.ParseManifest(doc, imgs[0].Target.MediaType)
				if err != nil || len(m.Layers) != 3 || (m.Layers[0].MediaType == image.DockerLayerGzip) != compress {
					t.Fatalf("%+v, %v", m, err)
				}
				cfg, _ := s.blob(m.Config.Digest)
				c, _ := image.ParseConfig(cfg)
				ids := image.ChainIDs(c.RootFS.DiffIDs)
				if f := s.snaps.chain(ids[2].String()); !slices.Equal(f, []string{"a", "b", "a"}) {
					t.Errorf("unpacked %v", f)
				}
				s.clean()
			})
		}
	}
}

func (s *stores) blob(d digest.Digest) ([]byte, error) {
	ra, err := s.ReaderAt(context.Background(), ispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	return io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
}

func TestExportImport(t *testing.T) {
	srv := registrytest.New(t)
	amd := build(srv, "a/b", "amd", threeLayers()...)
	arm := build(srv, "a/b", "arm", layer("z", 1000))
	arm.target.Platform = &ispec.Platform{OS: "linux", Architecture: "arm64"}
	srv.AddManifest("a/b", ispec.MediaTypeImageIndex, ispec.Index{MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{arm.target, amd.target}}, "v1")
	s := newStores(t)
	name := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, target(false), nil); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	opts := transfer.ExportOptions{Platforms: []ispec.Platform{linuxAMD64}}
	for _, w := range []io.Writer{&one, &two} {
		if err := s.svc.Export(t.Context(), "test", []string{name}, w, opts, nil); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two exports of the same image differ")
	}
	var docker []struct{ RepoTags []string }
	tr := tar.NewReader(bytes.NewReader(one.Bytes()))
	for h, err := tr.Next(); err == nil; h, err = tr.Next() {
		if h.Name == "manifest.json" {
			json.NewDecoder(tr).Decode(&docker)
		}
	}
	if len(docker) != 1 || !slices.Equal(docker[0].RepoTags, []string{name}) {
		t.Errorf("manifest.json: %+v", docker)
	}

	other := newStores(t)
	imgs, err := other.load(one.Bytes(), importTarget(), transfer.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := names(imgs); !slices.Equal(n, []string{name}) {
		t.Errorf("names %v", n)
	}
	if f := other.snaps.chain(amd.chain.String()); !slices.Equal(f, []string{"a", "b", "c"}) {
		t.Errorf("unpacked %v", f)
	}
	other.clean()

	opts.AllPlatforms = true
	if err := s.svc.Export(t.Context(), "test", []string{name}, io.Discard, opts, nil); !errdefs.IsNotFound(err) {
		t.Errorf("export of platforms that are not there: %v", err)
	}
	if err := s.svc.Export(t.Context(), "test", []string{"nothing"}, io.Discard, opts, nil); !errdefs.IsNotFound(err) {
		t.Errorf("export of nothing: %v", err)
	}
	opts = transfer.ExportOptions{Platforms: []ispec.Platform{{OS: "linux", Architecture: "s390x"}}}
	if err := s.svc.Export(t.Context(), "test", []string{name}, io.Discard, opts, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("export of a platform that it has not: %v", err)
	}
	s.clean()
}

func TestImportNames(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 100))
	s := newStores(t)
	s.pull(t.Context(), srv.Host+"/a/b:v1", target(false), nil)
	s.svc.Tag(t.Context(), "test", srv.Host+"/a/b:v1", "import-today:x", nil)
	s.svc.Tag(t.Context(), "test", srv.Host+"/a/b:v1", "odd", nil)
	digested := "import-today@" + img.target.Digest.String()
	for _, tc := range []struct {
		name string
		to   transfer.ImageTarget
		from string
		want []string
	}{
		{"own name", transfer.ImageTarget{ExtraReferences: []transfer.Reference{{Name: "import-today", IsPrefix: true, AllowOverwrite: true}}}, srv.Host + "/a/b:v1", []string{srv.Host + "/a/b:v1"}},
		{"prefix fits", transfer.ImageTarget{ExtraReferences: []transfer.Reference{{Name: "import-today", IsPrefix: true}}}, "import-today:x", []string{"import-today:x"}},
		{"index too", transfer.ImageTarget{Name: "whole", ExtraReferences: []transfer.Reference{{Name: "import-today", IsPrefix: true}}}, "import-today:x", []string{"import-today:x", "whole"}},
		{"digest", transfer.ImageTarget{ExtraReferences: []transfer.Reference{{Name: "import-today", IsPrefix: true, AddDigest: true, SkipNamedDigest: true}}}, srv.Host + "/a/b:v1", []string{digested}},
	} {
		var b bytes.Buffer
		if err := s.svc.Export(t.Context(), "test", []string{tc.from}, &b, transfer.ExportOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		imgs, err := newStores(t).load(b.Bytes(), tc.to, transfer.ImportOptions{})
		got := slices.DeleteFunc(names(imgs), func(n string) bool { return strings.HasPrefix(n, "import-today@") && n != digested })
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v; want %v", tc.name, got, err, tc.want)
		}
		if _, err := newStores(t).load(b.Bytes(), transfer.ImageTarget{ExtraReferences: []transfer.Reference{{Name: "unrelated", IsPrefix: true}}}, transfer.ImportOptions{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: no name: %v", tc.name, err)
		}
	}
}

func TestImportBad(t *testing.T) {
	good := saved("x:1")
	blob := func(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }
	layout := file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for name, b := range map[string][]byte{
		"empty":             {},
		"not a tar":         bytes.Repeat([]byte("hello"), 1000),
		"cut short":         good[:len(good)/2],
		"gzip cut short":    gz(good)[:200],
		"no manifest":       archive(file{name: "x", data: []byte("x")}),
		"no index":          archive(layout),
		"layout version":    archive(file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"9.0.0"}`)}, file{name: "index.json", data: []byte("{}")}),
		"wrong digest":      archive(layout, file{name: blob(digest.FromString("x")), data: []byte("y")}),
		"bad digest":        archive(layout, file{name: "blobs/sha256/../../x", data: []byte("y")}, file{name: "blobs/sha256/xyz", data: []byte("y")}),
		"index of nonsense": archive(layout, file{name: "index.json", data: []byte(`{"manifests":[{"digest":"x"}]}`)}),
		"missing config":    archive(file{name: "manifest.json", data: []byte(`[{"Config":"c","Layers":[]}]`)}),
		"link loop":         archive(file{name: "a", link: "b"}, file{name: "b", link: "a"}, file{name: "manifest.json", data: []byte(`[{"Config":"a","Layers":[]}]`)}),
		"bad tag":           archive(file{name: "c", data: []byte("{}")}, file{name: "manifest.json", data: []byte(`[{"Config":"c","RepoTags":["A B"],"Layers":[]}]`)}),
		"manifest no JSON":  archive(file{name: "manifest.json", data: []byte(`[{`)}),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStores(t)
			_, err := s.load(b, importTarget(), transfer.ImportOptions{})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v", err)
			}
			if len(s.images.m) > 0 {
				t.Error("an image was recorded")
			}
			st, err := s.ListStatuses(t.Context())
			if err != nil || len(st) > 0 {
				t.Errorf("ingests stayed behind: %v, %v", st, err)
			}
			s.clean()
		})
	}
}

func TestImportMissingParts(t *testing.T) {
	layout := file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	gone := ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString("gone"), Size: 4, Annotations: map[string]string{"org.opencontainers.image.ref.name": "x"}}
	s := newStores(t)
	_, err := s.load(archive(layout, file{name: "index.json", data: mustJSON(ispec.Index{Manifests: []ispec.Descriptor{gone}})}), importTarget(), transfer.ImportOptions{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), gone.Digest.String()) {
		t.Errorf("%v", err)
	}
	s.clean()
}

func TestPush(t *testing.T) {
	from, to := registrytest.New(t), registrytest.New(t)
	img := build(from, "a/b", "v1", threeLayers()...)
	s := newStores(t)
	name := from.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, target(false), nil); err != nil {
		t.Fatal(err)
	}
	to.RequireToken(registrytest.NewTokenServer(t, "", ""))
	var events []transfer.Progress
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(to.Host+"/c/d:v2"), func(p transfer.Progress) { events = append(events, p) }); err != nil {
		t.Fatal(err)
	}
	if m, ok := to.Manifest("c/d", "v2"); !ok || digest.FromBytes(m) != img.target.Digest {
		t.Error("the manifest did not arrive under its tag")
	}
	for _, l := range append(img.manifest.Layers, img.manifest.Config) {
		if b, ok := to.Blob(l.Digest); !ok || digest.FromBytes(b) != l.Digest {
			t.Errorf("blob %s did not arrive", l.Digest)
		}
	}
	if events[0].Event != "Pushing to OCI Registry ("+to.Host+"/c/d:v2)" || !strings.HasPrefix(events[len(events)-1].Event, "Completed push") {
		t.Errorf("events %v", events)
	}
	puts := to.Count("PUT", "")
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(to.Host+"/c/d:v2"), nil); err != nil || to.Count("PUT", "") != puts {
		t.Errorf("a second push sent %d: %v", to.Count("PUT", "")-puts, err)
	}
	// To the registry it came from, blobs are mounted.
	from.AddFault(registrytest.Fault{Method: "HEAD", Path: "/e/f/blobs/", Do: registrytest.Status(404)})
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(from.Host+"/e/f:v2"), nil); err != nil {
		t.Fatal(err)
	}
	if n := from.Count("PUT", "/blobs/"); n != 0 {
		t.Errorf("%d blobs were sent that could be mounted", n)
	}
	to.AddFault(registrytest.Fault{Method: "POST", Do: registrytest.Status(403)})
	to.AddFault(registrytest.Fault{Method: "HEAD", Path: "/g/", Do: registrytest.Status(404)})
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(to.Host+"/g/h:v2"), nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("%v", err)
	}
	if _, ok := to.Manifest("g/h", "v2"); ok {
		t.Error("the manifest was sent without its blobs")
	}
	s.clean()
}

func TestPushIncomplete(t *testing.T) {
	srv, other := registrytest.New(t), registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	s := newStores(t)
	name := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, target(false), nil); err != nil {
		t.Fatal(err)
	}
	gone := img.manifest.Layers[1].Digest
	s.Delete(t.Context(), gone)
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(other.Host+"/c/d:v2"), nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("%v", err)
	}
	if n := other.Count("PUT", "") + other.Count("PATCH", ""); n > 0 {
		t.Errorf("%d things were sent", n)
	}
	// Where it came from it may be had under another name without a copy here.
	// As long as the registry does not give it, nothing is begun and left.
	srv.AddFault(registrytest.Fault{Method: "HEAD", Path: "/c/d/blobs/", Do: registrytest.Status(404)})
	srv.AddFault(registrytest.Fault{Method: "POST", Query: "mount=", Times: 1, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		q.URL.RawQuery = ""
		next.ServeHTTP(w, q)
	}})
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(srv.Host+"/c/d:v2"), nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("%v", err)
	}
	if n := srv.Count("DELETE", "/c/d/blobs/uploads/"); n != 1 {
		t.Errorf("the upload that was begun for nothing was ended %d times", n)
	}
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(srv.Host+"/c/d:v2"), nil); err != nil {
		t.Error(err)
	}
	if m, ok := srv.Manifest("c/d", "v2"); !ok || digest.FromBytes(m) != img.target.Digest {
		t.Error("the manifest did not arrive")
	}
	// The next pull makes it whole again.
	if _, err := s.pull(t.Context(), name, target(true), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Info(t.Context(), img.manifest.Layers[1].Digest); err != nil {
		t.Error(err)
	}
}

func TestTag(t *testing.T) {
	s := newStores(t)
	s.images.m["a"] = object.Image{Name: "a", Labels: map[string]string{"x": "y"}, Target: ispec.Descriptor{Digest: "d"}}
	s.images.m["b"] = object.Image{Name: "b"}
	if got, err := s.svc.Tag(t.Context(), "test", "a", "b", nil); err != nil || got.Name != "b" || got.Target.Digest != "d" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.svc.Tag(t.Context(), "test", "none", "c", nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add(saved("x:1"))
	f.Add(archive(file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, file{name: "index.json", data: []byte(`{"manifests":[]}`)}))
	f.Add(archive(file{name: "a", link: "a"}, file{name: "manifest.json", data: []byte(`[{"Config":"a","Layers":["a"]}]`)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStores(t)
		_, err := s.load(b, importTarget(), transfer.ImportOptions{})
		if err != nil && errors.Is(err, context.Canceled) {
			t.Errorf("%v hides the cause", err)
		}
		s.clean()
	})
}
