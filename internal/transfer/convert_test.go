package transfer_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	tarfile "berth/internal/archive"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/registry/registrytest"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerImage is an index of Docker's with an image of one gzip layer for each architecture.
func dockerImage(r *registrytest.Registry) ispec.Descriptor {
	idx := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: image.DockerIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		l := layer(arch, 50_000)
		cfg := r.AddBlob("", []byte(`{"architecture":"`+arch+`","os":"linux","unknown":{"x":1},"config":{"Image":"sha256:old","Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["`+digest.FromBytes(l).String()+`"]}}`))
		cfg.MediaType = image.DockerConfig
		blob := r.AddBlob("", gz(l))
		blob.MediaType = image.DockerLayerGzip
		m := r.AddManifest("a/b", image.DockerManifest, ispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: image.DockerManifest, Config: cfg, Layers: []ispec.Descriptor{blob}})
		m.Platform = &ispec.Platform{OS: "linux", Architecture: arch}
		idx.Manifests = append(idx.Manifests, m)
	}
	return r.AddManifest("a/b", image.DockerIndex, idx, "v1")
}

func (s *stores) document(t *testing.T, desc ispec.Descriptor, v any) {
	t.Helper()
	b, err := s.blob(desc.Digest)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestConvert(t *testing.T) {
	srv := registrytest.New(t)
	dockerImage(srv)
	s := newStores(t)
	ref := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), ref, transfer.ImageTarget{}, nil); err != nil {
		t.Fatal(err)
	}
	convert := func(opts transfer.ConvertOptions) (object.Image, ispec.Index, ispec.Manifest, ispec.Image) {
		t.Helper()
		img, err := s.svc.Convert(t.Context(), "test", "", ref, "converted", opts, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.clean()
		var idx ispec.Index
		var m ispec.Manifest
		var cfg ispec.Image
		s.document(t, img.Target, &idx)
		s.document(t, idx.Manifests[0], &m)
		s.document(t, m.Config, &cfg)
		if st, _ := s.ListStatuses(t.Context()); len(st) > 0 {
			t.Errorf("ingests stayed behind: %v", st)
		}
		return img, idx, m, cfg
	}

	before, _ := s.images.Get(t.Context(), ref)
	if img, _, _, _ := convert(transfer.ConvertOptions{}); img.Target.Digest != before.Target.Digest || img.Name != "converted" {
		t.Errorf("converted to nothing else, the image is %+v", img)
	}

	img, idx, m, cfg := convert(transfer.ConvertOptions{OCI: true, Layers: transfer.Recompressed(tarfile.Zstd)})
	if img.Target.MediaType != ispec.MediaTypeImageIndex || idx.MediaType != ispec.MediaTypeImageIndex || len(idx.Manifests) != 2 || m.MediaType != ispec.MediaTypeImageManifest ||
		m.Config.MediaType != ispec.MediaTypeImageConfig || m.Layers[0].MediaType != ispec.MediaTypeImageLayerZstd {
		t.Errorf("%+v\n%+v", idx, m)
	}
	b, _ := s.blob(m.Layers[0].Digest)
	plain, _, err := tarfile.Decompress(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := digest.FromReader(plain); d != cfg.RootFS.DiffIDs[0] {
		t.Errorf("the layer has the diff ID %s", d)
	}
	if l := s.labels[m.Layers[0].Digest]; l["containerd.io/uncompressed"] != cfg.RootFS.DiffIDs[0].String() {
		t.Errorf("labels of the layer: %v", l)
	}
	if l := s.labels[idx.Manifests[0].Digest]; l["containerd.io/gc.ref.content.l.0"] != m.Layers[0].Digest.String() || l["containerd.io/gc.ref.content.config"] != m.Config.Digest.String() {
		t.Errorf("labels of the manifest: %v", l)
	}
	if l := s.labels[img.Target.Digest]; l["containerd.io/gc.ref.content.m.1"] != idx.Manifests[1].Digest.String() {
		t.Errorf("labels of the index: %v", l)
	}

	_, idx, m, _ = convert(transfer.ConvertOptions{Platforms: []ispec.Platform{linuxAMD64}, Layers: transfer.Recompressed(tarfile.Uncompressed)})
	if len(idx.Manifests) != 1 || idx.MediaType != image.DockerIndex || m.Layers[0].MediaType != image.DockerLayer || m.Layers[0].Digest != cfg.RootFS.DiffIDs[0] {
		t.Errorf("%+v\n%+v", idx, m)
	}

	// A format that changes the diff IDs changes the config and the platform, and keeps what it does not know.
	_, idx, m, cfg = convert(transfer.ConvertOptions{Layers: &transfer.LayerFormat{
		Name: "test", OSFeature: "test", MediaType: func(string) string { return "application/vnd.test" },
		Write: func(_ context.Context, _ io.Reader, d digest.Digest, w io.Writer) (digest.Digest, error) {
			io.WriteString(w, "layer of "+d.String())
			return digest.FromString("other"), nil
		},
	}})
	if cfg.RootFS.DiffIDs[0] != digest.FromString("other") || m.Layers[0].MediaType != "application/vnd.test" || idx.Manifests[0].Platform.OSFeatures[0] != "test" {
		t.Errorf("%+v\n%+v", m, cfg)
	}
	b, _ = s.blob(m.Config.Digest)
	if got := string(b); !strings.Contains(got, `"unknown":{"x":1}`) || strings.Contains(got, "sha256:old") || !strings.Contains(got, "A=b") || !strings.Contains(got, `"os.features":["test"]`) {
		t.Errorf("config %s", got)
	}
}

func TestConvertFails(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 10_000))
	img.config.RootFS.DiffIDs[0] = digest.FromString("wrong")
	img.manifest.Config = srv.AddBlob(ispec.MediaTypeImageConfig, mustJSON(img.config))
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, img.manifest, "wrong")
	s := newStores(t)
	ref := srv.Host + "/a/b:wrong"
	if _, err := s.pull(t.Context(), ref, target(false), nil); err != nil {
		t.Fatal(err)
	}
	failing := &transfer.LayerFormat{Name: "fails", MediaType: func(string) string { return "x" }, Write: func(context.Context, io.Reader, digest.Digest, io.Writer) (digest.Digest, error) {
		return "", errors.New("the tool failed")
	}}
	for says, f := range map[string]func() error{
		"but the image config says": func() error {
			_, err := s.svc.Convert(t.Context(), "test", "", ref, "to", transfer.ConvertOptions{Layers: transfer.Recompressed(tarfile.Zstd)}, nil)
			return err
		},
		"the tool failed": func() error {
			_, err := s.svc.Convert(t.Context(), "test", "", ref, "to", transfer.ConvertOptions{Layers: failing}, nil)
			return err
		},
		"not found": func() error {
			_, err := s.svc.Convert(t.Context(), "test", "", "none", "to", transfer.ConvertOptions{}, nil)
			return err
		},
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		s.clean()
		if _, err := s.images.Get(t.Context(), "to"); !errdefs.IsNotFound(err) {
			t.Error("there is an image")
		}
		if st, _ := s.ListStatuses(t.Context()); len(st) > 0 {
			t.Errorf("ingests stayed behind: %v", st)
		}
	}
}

func TestVerifier(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 10_000))
	var asked []string
	s := newStores(t, func(_ *stores, o *transfer.Options) {
		o.Verify = func(_ context.Context, name string, d ispec.Descriptor) error {
			asked = append(asked, name+" "+d.Digest.String())
			return errdefs.ErrPermissionDenied
		}
	})
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("%v", err)
	}
	s.clean()
	if len(asked) != 1 || asked[0] != srv.Host+"/a/b:v1 "+img.target.Digest.String() {
		t.Errorf("asked for %q", asked)
	}
	if n := srv.Count("GET", "/blobs/"); n > 0 {
		t.Errorf("%d blobs were fetched", n)
	}
}

// Pulls of the same image in two namespaces fetch each blob once.
func TestNamespacesShareDownloads(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 3_000_000), layer("b", 100_000))
	build(srv, "c/d", "v2", layer("a", 3_000_000)) // shares a layer
	d := newDaemon(t)
	if err := d.db.Namespaces().Create(t.Context(), object.Namespace{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range []struct{ ns, ref string }{{"test", "/a/b:v1"}, {"other", "/a/b:v1"}, {"other", "/c/d:v2"}, {"test", "/a/b:v1"}} {
		wg.Go(func() {
			r, err := registry.NewRemote(srv.Host+c.ref, registry.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := d.svc.Pull(t.Context(), c.ns, "", r, target(true), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range img.manifest.Layers {
		if n := srv.Count("GET", "/blobs/"+l.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	// What one namespace has is taken over by the import of an archive into another.
	if err := d.db.Namespaces().Create(t.Context(), object.Namespace{Name: "third"}); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(d.svc.Export(t.Context(), "test", []string{srv.Host + "/a/b:v1"}, pw, transfer.ExportOptions{}, nil))
	}()
	to := importTarget()
	if _, err := d.svc.Import(t.Context(), "third", "", pr, transfer.ImportOptions{}, to, nil); err != nil {
		t.Error(err)
	}
}
