package transfer_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry/registrytest"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What a client of a daemon asks for beyond what the daemon's own transfers do.

func TestPullMetadataOnly(t *testing.T) {
	srv := registrytest.New(t)
	amd, arm := build(srv, "a/b", "amd", layer("a", 1000)), build(srv, "a/b", "arm", layer("z", 1000))
	arm.target.Platform = &ispec.Platform{OS: "linux", Architecture: "arm64"}
	srv.AddManifest("a/b", ispec.MediaTypeImageIndex, ispec.Index{MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{arm.target, amd.target}}, "v1")
	for tag, imgs := range map[string][]built{"v1": {amd, arm}, "amd": {amd}} {
		s := newStores(t)
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:"+tag, transfer.ImageTarget{MetadataOnly: true}, nil); err != nil {
			t.Fatal(err)
		}
		for _, img := range imgs {
			if _, err := s.Info(t.Context(), img.manifest.Config.Digest); err != nil {
				t.Errorf("%s: config: %v", tag, err)
			}
			if _, err := s.Info(t.Context(), img.manifest.Layers[0].Digest); !errdefs.IsNotFound(err) {
				t.Errorf("%s: a layer was fetched: %v", tag, err)
			}
		}
	}
}

func TestPushTarget(t *testing.T) {
	from, to := registrytest.New(t), registrytest.New(t)
	img := build(from, "a/b", "v1", threeLayers()...)
	foreign := img.manifest
	foreign.Layers = slices.Clone(foreign.Layers)
	foreign.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	desc := from.AddManifest("a/b", ispec.MediaTypeImageManifest, foreign, "foreign")
	s := newStores(t)
	if _, err := s.pull(t.Context(), from.Host+"/a/b:foreign", target(false), nil); err != nil {
		t.Fatal(err)
	}
	clear(s.images.m) // no record is needed
	what := object.Image{Name: "named", Target: desc}
	for everything, repo := range map[bool]string{false: "less", true: "more"} {
		if err := s.svc.PushTarget(t.Context(), "test", "", what, transfer.PushOptions{NonDistributable: everything}, s.remote(to.Host+"/"+repo+":v2"), nil); err != nil {
			t.Fatal(err)
		}
		if _, ok := to.Manifest(repo, "v2"); !ok {
			t.Errorf("%s: no manifest", repo)
		}
		sent := slices.ContainsFunc(to.Requests(), func(r registrytest.Request) bool {
			return strings.Contains(r.Path, "/"+repo+"/blobs/"+foreign.Layers[0].Digest.String())
		})
		if sent != everything {
			t.Errorf("%s: the foreign layer was dealt with: %v", repo, sent)
		}
	}
	if err := s.svc.Push(t.Context(), "test", "", "named", nil, s.remote(to.Host+"/x:v2"), nil); !errdefs.IsNotFound(err) {
		t.Errorf("push of what is not recorded: %v", err)
	}
	s.clean()
}

func TestImportDiscardsLayers(t *testing.T) {
	for discard, want := range map[bool]int{false: 3, true: 0} {
		s := newStores(t)
		imgs, err := s.load(saved("x:1"), importTarget(), transfer.ImportOptions{DiscardLayers: discard})
		if err != nil {
			t.Fatal(err)
		}
		layers := 0
		for k := range s.labels[imgs[0].Target.Digest] {
			if strings.HasPrefix(k, "containerd.io/gc.ref.content.l.") {
				layers++
			}
		}
		if layers != want || s.labels[imgs[0].Target.Digest]["containerd.io/gc.ref.content.config"] == "" {
			t.Errorf("discard %v: %d layers are kept: %v", discard, layers, slices.Collect(maps.Keys(s.labels[imgs[0].Target.Digest])))
		}
	}
}

// applier is a scope's Applier that reads the layers with the fake differ.
type applier struct {
	s    *stores
	sync []bool
	err  error
}

func (a *applier) Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts diff.ApplyOptions) (ispec.Descriptor, error) {
	a.sync = append(a.sync, opts.Sync)
	if a.err != nil {
		return ispec.Descriptor{}, a.err
	}
	ra, err := a.s.ReaderAt(ctx, desc)
	if err != nil {
		return ispec.Descriptor{}, err
	}
	defer ra.Close()
	out, err := a.s.diff.Unpack(ctx, desc.MediaType, &section{ra, 0}, mounts, false)
	return ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: out.DiffID, Size: out.Size}, err
}

type section struct {
	ra  content.ReaderAt
	off int64
}

func (s *section) Read(p []byte) (int, error) {
	n, err := s.ra.ReadAt(p, s.off)
	s.off += int64(n)
	return n, err
}

func applying(a *applier) func(*stores, *transfer.Options) {
	return func(s *stores, o *transfer.Options) {
		a.s = s
		scope := o.Scope
		o.Differ, o.SyncFS = nil, true
		o.Scope = func(ns, lease string) transfer.Stores {
			st := scope(ns, lease)
			st.Applier = a
			return st
		}
	}
}

func TestApplier(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	var a applier
	s := newStores(t, applying(&a))
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
		t.Fatal(err)
	}
	if f := s.snaps.chain(img.chain.String()); !slices.Equal(f, []string{"a", "b", "c"}) || !slices.Equal(a.sync, []bool{true, true, true}) {
		t.Errorf("unpacked %v, synced %v", f, a.sync)
	}
	for i, l := range img.manifest.Layers {
		if got := s.labels[l.Digest][image.LabelUncompressed]; l.Digest != img.config.RootFS.DiffIDs[i] && got != img.config.RootFS.DiffIDs[i].String() {
			t.Errorf("layer %d is labelled %q", i, got)
		}
	}
	s.clean()

	// A layer that is not what the config says, and one that cannot be applied.
	bad := build(srv, "a/b", "bad", threeLayers()...)
	bad.config.RootFS.DiffIDs[1] = bad.config.RootFS.DiffIDs[0]
	config := srv.AddBlob(ispec.MediaTypeImageConfig, mustJSON(bad.config))
	bad.manifest.Config = config
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, bad.manifest, "bad")
	failing := &applier{err: fmt.Errorf("no room: %w", errdefs.ErrResourceExhausted)}
	for tag, c := range map[string]struct {
		a  *applier
		is func(error) bool
	}{"bad": {&applier{}, errdefs.IsFailedPrecondition}, "v1": {failing, errdefs.IsResourceExhausted}} {
		s := newStores(t, applying(c.a))
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:"+tag, target(true), nil); !c.is(err) {
			t.Errorf("%s: %v", tag, err)
		}
		if len(s.images.m) > 0 {
			t.Errorf("%s: an image was recorded", tag)
		}
		s.clean()
	}
}

// A store that cannot be reached is not waited for as if its ingest were busy.
func TestStoreIsGone(t *testing.T) {
	srv := registrytest.New(t)
	build(srv, "a/b", "v1", threeLayers()...)
	s := newStores(t, func(s *stores, o *transfer.Options) {
		scope := o.Scope
		o.Scope = func(ns, lease string) transfer.Stores {
			st := scope(ns, lease)
			st.Content = gone{st.Content}
			return st
		}
	})
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	s.clean()
}

type gone struct{ content.Store }

var errGone = fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)

func (gone) Writer(context.Context, content.WriteOptions) (content.Writer, error) {
	return nil, errGone
}
func (gone) Status(context.Context, string) (object.IngestStatus, error) {
	return object.IngestStatus{}, errGone
}
