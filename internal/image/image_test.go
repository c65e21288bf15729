package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// docs is a store of documents.
type docs map[digest.Digest][]byte

func (d docs) add(mediaType string, v any) ispec.Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	dg := digest.FromBytes(b)
	d[dg] = b
	return ispec.Descriptor{MediaType: mediaType, Digest: dg, Size: int64(len(b))}
}

func (d docs) read(_ context.Context, desc ispec.Descriptor, limit int64) ([]byte, error) {
	b, ok := d[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	if int64(len(b)) > limit {
		return nil, errdefs.ErrInvalidArgument
	}
	return b, nil
}

func (d docs) image(p ispec.Platform, say bool, layers ...string) ispec.Descriptor {
	cfg := Config{Platform: p, RootFS: ispec.RootFS{Type: "layers"}}
	m := ispec.Manifest{MediaType: ispec.MediaTypeImageManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromString(l))
		m.Layers = append(m.Layers, ispec.Descriptor{MediaType: ispec.MediaTypeImageLayerGzip, Digest: digest.FromString("gz" + l), Size: 100})
	}
	m.Config = d.add(ispec.MediaTypeImageConfig, cfg)
	desc := d.add(ispec.MediaTypeImageManifest, m)
	if say {
		desc.Platform = &p
	}
	return desc
}

const dg = `"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1`

func TestDetect(t *testing.T) {
	manifest, index := `"config":{`+dg+`},"layers":[]`, `"manifests":[]`
	for _, tc := range []struct{ doc, claimed, want string }{
		{manifest, "", ispec.MediaTypeImageManifest},
		{manifest, ispec.MediaTypeImageManifest, ispec.MediaTypeImageManifest},
		{manifest, "application/json", ispec.MediaTypeImageManifest},
		{`"config":{"mediaType":"` + DockerConfig + `",` + dg + `}`, "", DockerManifest},
		{`"mediaType":"` + DockerManifest + `",` + manifest, "", DockerManifest},
		{`"layers":[]`, "", ispec.MediaTypeImageManifest},
		{index, "", ispec.MediaTypeImageIndex},
		{index, DockerIndex, DockerIndex},
		{`"mediaType":"` + ispec.MediaTypeImageIndex + `"`, "", ispec.MediaTypeImageIndex},
		{manifest + "," + index, ispec.MediaTypeImageManifest, ""},
		{manifest + "," + index, ispec.MediaTypeImageIndex, ""},
		{manifest, ispec.MediaTypeImageIndex, ""},
		{index, ispec.MediaTypeImageManifest, ""},
		{`"mediaType":"` + ispec.MediaTypeImageManifest + `",` + index, "", ""},
		{`"mediaType":"` + ispec.MediaTypeImageIndex + `",` + manifest, ispec.MediaTypeImageIndex, ""},
		{`"fsLayers":[]`, DockerSchema1, ""},
		{`"schemaVersion":1`, "", ""},
		{`"x":1`, "", ""},
		{`"x"`, "", ""},
	} {
		got, err := Detect([]byte("{"+tc.doc+"}"), tc.claimed)
		if got != tc.want || (err == nil) != (tc.want != "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("Detect({%s}, %q) = %q, %v; want %q", tc.doc, tc.claimed, got, err, tc.want)
		}
	}
	if _, err := Detect(make([]byte, MaxManifest+1), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too large: %v", err)
	}
}

func TestParseRefusesBadDescriptors(t *testing.T) {
	for _, d := range []string{`"digest":"x","size":1`, `"digest":"sha256:../..","size":1`, `"size":1`, `"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":-1`} {
		if _, err := ParseManifest([]byte(`{"config":{`+d+`}}`), ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("config {%s}: %v", d, err)
		}
		if _, err := ParseManifest([]byte(`{"config":{`+dg+`},"layers":[{`+d+`}]}`), ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("layer {%s}: %v", d, err)
		}
		if _, err := ParseIndex([]byte(`{"manifests":[{`+d+`}]}`), ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("manifest {%s}: %v", d, err)
		}
	}
	many := `{"manifests":[` + strings.Repeat(`{`+dg+`},`, MaxReferences) + `{` + dg + `}]}`
	if _, err := ParseIndex([]byte(many), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%d manifests: %v", MaxReferences+1, err)
	}
	if _, err := ParseConfig([]byte(`{"rootfs":{"diff_ids":["x"]}}`)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad diff ID: %v", err)
	}
}

// The values are those of image-spec's identity package for the same input.
func TestChainIDs(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	got := ChainIDs([]digest.Digest{a, b, a})
	want1 := digest.FromString(a.String() + " " + b.String())
	want2 := digest.FromString(want1.String() + " " + a.String())
	if !slices.Equal(got, []digest.Digest{a, want1, want2}) {
		t.Errorf("%v", got)
	}
	if len(ChainIDs(nil)) != 0 {
		t.Error("chain of nothing")
	}
}

func TestManifestOfPlatform(t *testing.T) {
	d := docs{}
	amd := d.image(ispec.Platform{OS: "linux", Architecture: "amd64"}, true, "a")
	v7 := d.image(ispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, true, "7")
	v6 := d.image(ispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, true, "6")
	mute := d.image(ispec.Platform{OS: "linux", Architecture: "s390x"}, false, "s")
	note := d.image(ispec.Platform{OS: "unknown", Architecture: "unknown"}, true, "n")
	gone := ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString("gone"), Size: 3, Platform: &ispec.Platform{OS: "linux", Architecture: "ppc64le"}}
	inner := d.add(ispec.MediaTypeImageIndex, ispec.Index{Manifests: []ispec.Descriptor{note, v6, v7, amd, gone}})
	outer := d.add(ispec.MediaTypeImageIndex, ispec.Index{Manifests: []ispec.Descriptor{mute, inner}})
	for spec, want := range map[string]digest.Digest{
		"linux/amd64": amd.Digest, "linux/arm/v7": v7.Digest, "linux/arm/v6": v6.Digest, "linux/arm64": v7.Digest,
		"linux/s390x": mute.Digest, "linux/riscv64": "", "linux/ppc64le": "", "linux/arm/v5": "",
	} {
		got, m, err := Manifest(t.Context(), d.read, outer, platforms.Only(platforms.MustParse(spec)))
		if got.Digest != want || want == "" && !errdefs.IsNotFound(err) || want != "" && (err != nil || len(m.Layers) != 1) {
			t.Errorf("%s: %v, %v", spec, got.Digest, err)
		}
	}
	ps, err := Platforms(t.Context(), d.read, outer)
	if err != nil || len(ps) != 5 {
		t.Errorf("platforms %v, %v", ps, err)
	}
}

func TestSize(t *testing.T) {
	d := docs{}
	m := d.image(ispec.Platform{OS: "linux", Architecture: "amd64"}, true, "a", "b")
	idx := d.add(ispec.MediaTypeImageIndex, ispec.Index{Manifests: []ispec.Descriptor{m}})
	only := platforms.Only(*m.Platform)
	_, mf, _ := Manifest(t.Context(), d.read, idx, only)
	if n, err := Size(t.Context(), d.read, idx, only); err != nil || n != idx.Size+m.Size+mf.Config.Size+200 {
		t.Errorf("size %d, %v", n, err)
	}
}

func TestWalkIsBounded(t *testing.T) {
	d := docs{}
	deep := d.image(ispec.Platform{}, false)
	for range MaxDepth + 1 {
		deep = d.add(ispec.MediaTypeImageIndex, ispec.Index{Manifests: []ispec.Descriptor{deep}})
	}
	none := func(ispec.Descriptor) error { return nil }
	if err := Walk(t.Context(), d.read, deep, none); !errdefs.IsResourceExhausted(err) {
		t.Errorf("deep: %v", err)
	}
	wide := d.image(ispec.Platform{}, false)
	for range 5 {
		var ms []ispec.Descriptor
		for range 20 {
			ms = append(ms, wide)
		}
		wide = d.add(ispec.MediaTypeImageIndex, ispec.Index{Manifests: ms})
	}
	n := 0
	if err := Walk(t.Context(), d.read, wide, func(ispec.Descriptor) error { n++; return nil }); !errdefs.IsResourceExhausted(err) || n > MaxReferences {
		t.Errorf("wide: %d visits, %v", n, err)
	}
}

func TestLabels(t *testing.T) {
	one := digest.FromString("1")
	desc := func(mt string) ispec.Descriptor { return ispec.Descriptor{MediaType: mt, Digest: one} }
	got := ChildLabels([]ispec.Descriptor{desc(ispec.MediaTypeImageConfig), desc(DockerLayerGzip), desc(ispec.MediaTypeImageLayer), desc("text/plain"), desc("text/plain"), desc(DockerManifest)})
	for _, k := range []string{"config", "l.0", "l.1", "0", "1", "m.0"} {
		if got["containerd.io/gc.ref.content."+k] != one.String() {
			t.Errorf("label %s is missing in %v", k, got)
		}
	}
	if len(got) != 6 {
		t.Errorf("%v", got)
	}
	k, v, ok := SourceLabel("r.example", "b/c", "a,x")
	if k != "containerd.io/distribution.source.r.example" || v != "a,b/c,x" || !ok {
		t.Error(k, v, ok)
	}
	if _, v, ok := SourceLabel("r.example", "x", "a,x"); ok || v != "a,x" {
		t.Error(v, ok)
	}
	if _, _, ok := SourceLabel("r.example", "x", strings.Repeat("y", 5000)); ok {
		t.Error("a label that is too long")
	}
	labels := map[string]string{k: "a/b,a/b/c,x"}
	if c := MountCandidate("r.example", "a/b/d", labels); c != "a/b/c" && c != "a/b" {
		t.Errorf("candidate %q", c)
	}
	if c := MountCandidate("other.example", "a/b/d", labels); c != "" {
		t.Errorf("candidate %q", c)
	}
}

func TestRefKey(t *testing.T) {
	d := digest.FromString("x")
	for mt, want := range map[string]string{ispec.MediaTypeImageManifest: "manifest-", DockerIndex: "index-", DockerLayerGzip: "layer-", DockerConfig: "config-", "application/vnd.in-toto+json": "attestation-", "x": "unknown-"} {
		if got := RefKey(ispec.Descriptor{MediaType: mt, Digest: d}); got != want+d.String() {
			t.Errorf("%s: %s", mt, got)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{`+dg+`},"layers":[{`+dg+`}]}`), "")
	f.Add([]byte(`{"mediaType":"`+DockerManifest+`","config":{`+dg+`},"manifests":[]}`), ispec.MediaTypeImageManifest)
	f.Fuzz(func(t *testing.T, b []byte, mt string) {
		m, err := ParseManifest(b, mt)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v has the wrong kind", err)
			}
			return
		}
		if _, err := ParseIndex(b, mt); err == nil {
			t.Error("both a manifest and an index")
		}
		for _, d := range append(m.Layers, m.Config) {
			if Valid(d) != nil {
				t.Errorf("%v was accepted", d)
			}
		}
		ChildLabels(append(m.Layers, m.Config))
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{` + dg + `,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`))
	f.Add([]byte(`{"mediaType":"` + DockerIndex + `","manifests":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		idx, err := ParseIndex(b, "")
		if err != nil {
			return
		}
		for _, d := range Choose(idx.Manifests, platforms.DefaultStrict()) {
			if Valid(d) != nil {
				t.Errorf("%v was accepted", d)
			}
			RefKey(d)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseConfig(b); err == nil {
			ChainIDs(c.RootFS.DiffIDs)
		}
	})
}
