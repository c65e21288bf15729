package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/registry/registrytest"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func threeLayers() [][]byte {
	return [][]byte{layer("a", 1_500_000), layer("b", 100_000), layer("c", 700_000)}
}

func TestPull(t *testing.T) {
	for _, rebase := range []bool{true, false} {
		t.Run(fmt.Sprintf("rebase=%v", rebase), func(t *testing.T) {
			srv := registrytest.New(t)
			img := build(srv, "a/b", "v1", threeLayers()...)
			s := newStores(t, func(s *stores, _ *transfer.Options) {
				if !rebase {
					s.snaps.caps = nil
				}
			})
			got, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil)
			if err != nil {
				t.Fatal(err)
			}
			s.clean()
			if got.Target.Digest != img.target.Digest || got.Name != srv.Host+"/a/b:v1" {
				t.Errorf("recorded %+v", got)
			}
			if f := s.snaps.chain(img.chain.String()); !slices.Equal(f, []string{"a", "b", "c"}) {
				t.Errorf("unpacked %v", f)
			}
			if s.snaps.syncs != 1 {
				t.Errorf("%d barriers", s.snaps.syncs)
			}
			ref := "containerd.io/gc.ref.content."
			l := s.labels[img.target.Digest]
			if l[ref+"config"] != img.manifest.Config.Digest.String() || l[ref+"l.2"] != img.manifest.Layers[2].Digest.String() || l["containerd.io/distribution.source.127.0.0.1"] != "a/b" {
				t.Errorf("labels of the manifest: %v", l)
			}
			if l := s.labels[img.manifest.Config.Digest]; l["containerd.io/gc.ref.snapshot.fake"] != img.chain.String() {
				t.Errorf("labels of the config: %v", l)
			}
			if l := s.labels[img.manifest.Layers[0].Digest]; l["containerd.io/uncompressed"] != img.config.RootFS.DiffIDs[0].String() {
				t.Errorf("labels of a layer: %v", l)
			}
			before := len(srv.Requests())
			if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
				t.Fatal(err)
			}
			if n := len(srv.Requests()) - before; n > 2 {
				t.Errorf("a second pull asked %d times", n)
			}
		})
	}
}

func TestPullIndex(t *testing.T) {
	srv := registrytest.New(t)
	amd := build(srv, "a/b", "amd", layer("a", 1000))
	arm := build(srv, "a/b", "arm", layer("z", 1000))
	arm.target.Platform = &ispec.Platform{OS: "linux", Architecture: "arm64"}
	idx := srv.AddManifest("a/b", ispec.MediaTypeImageIndex, ispec.Index{MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{arm.target, amd.target}}, "v1")
	s := newStores(t)
	got, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil)
	if err != nil || got.Target.Digest != idx.Digest {
		t.Fatal(got, err)
	}
	if l := s.labels[idx.Digest]; l["containerd.io/gc.ref.content.m.0"] != arm.target.Digest.String() || l["containerd.io/gc.ref.content.m.1"] != amd.target.Digest.String() {
		t.Errorf("labels of the index: %v", l)
	}
	for d, want := range map[string]bool{
		string(amd.manifest.Layers[0].Digest): true, string(arm.target.Digest): true, string(arm.manifest.Config.Digest): true, string(arm.manifest.Layers[0].Digest): false,
	} {
		_, err := s.Info(t.Context(), digest.Digest(d))
		if (err == nil) != want {
			t.Errorf("%s there: %v, want %v", d, err == nil, want)
		}
	}
	to := target(true)
	to.Platforms = []ispec.Platform{{OS: "linux", Architecture: "s390x"}}
	s = newStores(t)
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", to, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("platform that there is not: %v", err)
	}
	s.clean()
	s = newStores(t)
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", transfer.ImageTarget{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Info(t.Context(), arm.manifest.Layers[0].Digest); err != nil {
		t.Errorf("pull of all platforms: %v", err)
	}
}

// TestMisbehaviour: each ends in success, since a healthy answer follows, or in
// an error of the right kind, and leaves nothing behind.
func TestMisbehaviour(t *testing.T) {
	type action = func(http.ResponseWriter, *http.Request, http.Handler)
	for _, tc := range []struct {
		name string
		path string
		do   func(*registrytest.Registry) action
		kind func(error) bool // when it goes on for ever
	}{
		{"401", "", status(401), errdefs.IsUnauthorized},
		{"404 of a layer", "layer", status(404), errdefs.IsNotFound},
		{"429 of a layer", "layer", status(429), errdefs.IsResourceExhausted},
		{"500 of a layer", "layer", status(500), errdefs.IsUnavailable},
		{"500 of the config", "config", status(500), errdefs.IsUnavailable},
		{"manifest hangs", "/manifests/", func(r *registrytest.Registry) action { return r.Hang() }, errdefs.IsUnavailable},
		{"layer hangs", "layer", func(r *registrytest.Registry) action { return r.HangAfter(100) }, errdefs.IsUnavailable},
		{"layer is cut", "layer", func(r *registrytest.Registry) action { return registrytest.Cut(100) }, errdefs.IsUnavailable},
		{"layer is reset", "layer", func(r *registrytest.Registry) action { return registrytest.Cut(0) }, errdefs.IsUnavailable},
		{"layer is corrupt at the start", "layer", func(r *registrytest.Registry) action { return registrytest.Corrupt(1) }, errdefs.IsFailedPrecondition},
		{"layer is corrupt in the middle", "layer", func(r *registrytest.Registry) action { return registrytest.Corrupt(40_000) }, errdefs.IsFailedPrecondition},
		{"config is corrupt", "config", func(r *registrytest.Registry) action { return registrytest.Corrupt(2) }, errdefs.IsFailedPrecondition},
		{"layer is short", "layer", func(r *registrytest.Registry) action { return registrytest.Short(1000) }, errdefs.IsFailedPrecondition},
	} {
		for _, forever := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/forever=%v", tc.name, forever), func(t *testing.T) {
				if !forever && strings.Contains(tc.name, "40") || !forever && tc.name == "layer is short" {
					return // not worth asking again
				}
				srv := registrytest.New(t)
				img := build(srv, "a/b", "v1", threeLayers()...)
				path := tc.path
				switch path {
				case "layer":
					path = img.manifest.Layers[0].Digest.String()
				case "config":
					path = img.manifest.Config.Digest.String()
				}
				f := registrytest.Fault{Path: path, Do: tc.do(srv)}
				if !forever {
					f.Times = 1
				}
				srv.AddFault(f)
				s := newStores(t)
				_, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil)
				if forever || err != nil {
					if !tc.kind(err) {
						t.Errorf("%v: wrong kind", err)
					}
					if len(s.images.m) > 0 {
						t.Error("an image was recorded")
					}
				}
				if forever {
					// What failed does not stand in the way when it is healthy again.
					s.clean()
					srv.ClearFaults()
					if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
						t.Errorf("afterwards: %v", err)
					}
				}
				if f := s.snaps.chain(img.chain.String()); err == nil && !slices.Equal(f, []string{"a", "b", "c"}) {
					t.Errorf("unpacked %v", f)
				}
				s.clean()
			})
		}
	}
}

func status(code int) func(*registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(*registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler) {
		return registrytest.Status(code)
	}
}

func TestPullWrongDiffID(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	img.config.RootFS.DiffIDs[1] = img.config.RootFS.DiffIDs[0]
	img.manifest.Config = srv.AddBlob(ispec.MediaTypeImageConfig, mustJSON(img.config))
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, img.manifest, "v1")
	s := newStores(t)
	_, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "diff ID") {
		t.Errorf("%v", err)
	}
	if len(s.images.m) > 0 {
		t.Error("an image was recorded")
	}
	if _, err := s.Info(t.Context(), img.manifest.Layers[1].Digest); !errdefs.IsNotFound(err) {
		t.Errorf("the layer was committed: %v", err)
	}
	s.clean()

	img.config.RootFS.DiffIDs = img.config.RootFS.DiffIDs[:2]
	img.manifest.Config = srv.AddBlob(ispec.MediaTypeImageConfig, mustJSON(img.config))
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, img.manifest, "v1")
	if _, err = s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too few diff IDs: %v", err)
	}
	s.clean()
}

func TestPullFailsLocally(t *testing.T) {
	for _, op := range []string{"prepare", "commit", "sync", "unpack"} {
		t.Run(op, func(t *testing.T) {
			srv := registrytest.New(t)
			build(srv, "a/b", "v1", threeLayers()...)
			s := newStores(t)
			full := fmt.Errorf("write: %w", syscall.ENOSPC)
			s.snaps.fail = func(what, key string) error {
				if what == op {
					return full
				}
				return nil
			}
			if op == "unpack" {
				s.diff.err = full
			}
			_, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil)
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%v", err)
			}
			if len(s.images.m) > 0 {
				t.Error("an image was recorded")
			}
			s.clean()
			s.snaps.fail, s.diff.err = nil, nil
			if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestPullIsResumed(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	l := img.manifest.Layers[0]
	data, _ := srv.Blob(l.Digest)
	s := newStores(t)
	w, err := s.Writer(t.Context(), content.WriteOptions{Ref: image.RefKey(l), Size: l.Size, Expected: l.Digest})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data[:10_000])
	w.Close()
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
		t.Fatal(err)
	}
	ranged := false
	for _, q := range srv.Requests() {
		ranged = ranged || q.Range == "bytes=10000-"
	}
	if f := s.snaps.chain(img.chain.String()); !ranged || !slices.Equal(f, []string{"a", "b", "c"}) {
		t.Errorf("range asked for: %v; unpacked %v", ranged, f)
	}
	s.clean()

	// What was there is wrong: it is fetched anew.
	s = newStores(t)
	w, _ = s.Writer(t.Context(), content.WriteOptions{Ref: image.RefKey(l), Size: l.Size, Expected: l.Digest})
	w.Write(make([]byte, 10_000))
	w.Close()
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
		t.Fatal(err)
	}
	s.clean()
}

func TestPullIsCancelled(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	reached := make(chan struct{})
	var once sync.Once
	hang := srv.HangAfter(20_000)
	srv.AddFault(registrytest.Fault{Path: img.manifest.Layers[0].Digest.String(), Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		once.Do(func() { close(reached) })
		hang(w, r, next)
	}})
	s := newStores(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	start := time.Now()
	_, err := s.pull(ctx, srv.Host+"/a/b:v1", target(true), nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %s", d)
	}
	s.clean()
}

func TestPullsShareWork(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	s := newStores(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range img.manifest.Layers {
		if n := srv.Count("GET", l.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	s.clean()
}

func TestPullsOfChainsThatCross(t *testing.T) {
	srv := registrytest.New(t)
	var layers [][]byte
	for i := range 12 {
		layers = append(layers, layer(string(rune('a'+i)), 1000*(i%5+1)))
	}
	var tags []string
	for i := range 12 {
		tag := fmt.Sprint("v", i)
		build(srv, "a/b", tag, append(slices.Clone(layers[:i+1]), layers[i:]...)...)
		tags = append(tags, tag)
	}
	s := newStores(t, func(_ *stores, o *transfer.Options) { o.MaxDownloads = 2 })
	var wg sync.WaitGroup
	for _, tag := range tags {
		wg.Go(func() {
			if _, err := s.pull(t.Context(), srv.Host+"/a/b:"+tag, target(true), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.clean()
}

func TestPullProgress(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	s := newStores(t)
	var all []transfer.Progress
	name := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, target(true), func(p transfer.Progress) { all = append(all, p) }); err != nil {
		t.Fatal(err)
	}
	first, last := all[0], all[len(all)-1]
	if first.Event != "Resolving from OCI Registry ("+name+")" || last.Event != "Completed pull from OCI Registry ("+name+")" {
		t.Errorf("begins with %q, ends with %q", first.Event, last.Event)
	}
	events := map[string][]string{}
	for _, p := range all {
		events[p.Name] = append(events[p.Name], p.Event)
	}
	if e := events[name]; !slices.Equal(e, []string{"fetching image content", "saved"}) {
		t.Errorf("image: %v", e)
	}
	for _, d := range append([]ispec.Descriptor{img.target, img.manifest.Config}, img.manifest.Layers...) {
		e := events[image.RefKey(d)]
		if len(e) < 2 || e[0] != "waiting" || !slices.Contains(e, "complete") {
			t.Errorf("%s: %v", image.RefKey(d), e)
		}
	}
	for _, p := range all {
		if p.Name == image.RefKey(img.manifest.Layers[0]) && !slices.Equal(p.Parents, []string{image.RefKey(img.target)}) {
			t.Errorf("parents of a layer: %v", p.Parents)
		}
	}
}

func TestPullBadImages(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 10))
	for tag, doc := range map[string]any{
		"both":      map[string]any{"schemaVersion": 2, "config": img.manifest.Config, "layers": img.manifest.Layers, "manifests": []any{img.target}},
		"lie":       map[string]any{"schemaVersion": 2, "mediaType": ispec.MediaTypeImageManifest, "manifests": []any{img.target}},
		"neither":   map[string]any{"hello": "world"},
		"digest":    map[string]any{"schemaVersion": 2, "config": map[string]any{"digest": "sha256:../../etc", "size": 1}},
		"not JSON":  []byte("hello"),
		"negative":  map[string]any{"schemaVersion": 2, "config": map[string]any{"digest": img.target.Digest, "size": -1}},
		"schema 1":  map[string]any{"schemaVersion": 1, "fsLayers": []any{}},
		"loop-free": map[string]any{"schemaVersion": 2, "manifests": "x"},
	} {
		tag := strings.ReplaceAll(tag, " ", "-")
		mt := ispec.MediaTypeImageManifest
		srv.AddManifest("a/b", mt, doc, tag)
		s := newStores(t)
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:"+tag, target(true), nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", tag, err)
		}
		s.clean()
	}
}

func TestUnpackLater(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", append(threeLayers(), layer("dir/d", 10))...)
	s := newStores(t)
	rec, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(false), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.snaps.m) > 0 {
		t.Error("it was unpacked unasked")
	}
	if err := s.svc.Unpack(t.Context(), "test", "", rec, transfer.UnpackTarget{Platform: linuxAMD64}, nil); err != nil {
		t.Fatal(err)
	}
	if f := s.snaps.chain(img.chain.String()); !slices.Equal(f, []string{"a", "b", "c", "d"}) {
		t.Errorf("unpacked %v", f)
	}
	if !slices.Equal(s.diff.fixed, []string{"dir"}) {
		t.Errorf("fixed %v", s.diff.fixed)
	}
	s.clean()
	if err := s.svc.Unpack(t.Context(), "test", "", rec, transfer.UnpackTarget{Platform: linuxAMD64, Snapshotter: "none"}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("unknown snapshotter: %v", err)
	}
}
