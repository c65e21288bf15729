package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/content"
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

// An image that says a wrong diff ID of a layer that is here already must not
// leave that on the layer, which others use.
func TestDiffIDIsNotedOnlyWhenItIsRight(t *testing.T) {
	srv := registrytest.New(t)
	good := build(srv, "a/b", "v1", threeLayers()...)
	bad := good
	bad.config.RootFS.DiffIDs = slices.Clone(good.config.RootFS.DiffIDs)
	bad.config.RootFS.DiffIDs[0] = digest.FromString("a lie")
	bad.manifest.Config = srv.AddBlob(ispec.MediaTypeImageConfig, mustJSON(bad.config))
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, bad.manifest, "bad")
	s := newStores(t)
	label := func() string {
		info, err := s.Info(t.Context(), good.manifest.Layers[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		return info.Labels[image.LabelUncompressed]
	}
	// Fetched, and not unpacked yet.
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(false), nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", good.config.RootFS.DiffIDs[0].String()} {
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:bad", target(true), nil); !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("%v", err)
		}
		if got := label(); got != want {
			t.Errorf("the layer is labelled with the diff ID %q, want %q", got, want)
		}
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), nil); err != nil {
			t.Fatal(err)
		}
	}
	s.clean()
}

// A pull that is cancelled while another waits for the same layers leaves them
// to that one.
func TestPullTakesOverFromOneThatIsCancelled(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 300_000), layer("b", 5000))
	reached := make(chan struct{})
	var once sync.Once
	hang := srv.HangAfter(100_000)
	layer0 := img.manifest.Layers[0].Digest.String()
	srv.AddFault(registrytest.Fault{Path: layer0, Times: 1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		once.Do(func() { close(reached) })
		hang(w, r, next)
	}})
	s := newStores(t)
	first, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var cancelled error
	patient, err := registry.NewRemote(srv.Host+"/a/b:v1", registry.Options{StallTimeout: registry.Never})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _, cancelled = s.svc.Pull(first, "test", "", patient, target(true), nil) })
	<-reached
	waiting := make(chan struct{})
	var seen sync.Once
	wg.Go(func() {
		if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(true), func(p transfer.Progress) {
			if strings.Contains(p.Name, layer0) {
				seen.Do(func() { close(waiting) })
			}
		}); err != nil {
			t.Errorf("the pull that waited: %v", err)
		}
	})
	<-waiting
	cancel()
	wg.Wait()
	if cancelled == nil {
		t.Error("the pull that was cancelled succeeded")
	}
	if st, err := s.ListStatuses(t.Context()); err != nil || len(st) > 0 {
		t.Errorf("ingests stayed behind: %v, %v", st, err)
	}
	s.clean()
}

// The blobs that an index names itself are fetched a few at a time.
func TestIndexOfManyBlobs(t *testing.T) {
	srv := registrytest.New(t)
	idx := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex}
	for i := range 40 {
		idx.Manifests = append(idx.Manifests, srv.AddBlob("application/octet-stream", fmt.Appendf(nil, "blob %d", i)))
	}
	srv.AddManifest("a/b", ispec.MediaTypeImageIndex, idx, "v1")
	var mu sync.Mutex
	now, most := 0, 0
	over := make(chan struct{})
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		now++
		if most = max(most, now); now == 4 {
			close(over)
		}
		mu.Unlock()
		select { // those that are asked for at a time meet here
		case <-over:
		case <-time.After(5 * time.Millisecond):
		}
		next.ServeHTTP(w, r)
		mu.Lock()
		now--
		mu.Unlock()
	}})
	s := newStores(t, func(_ *stores, o *transfer.Options) { o.MaxDownloads = 3 })
	if _, err := s.pull(t.Context(), srv.Host+"/a/b:v1", transfer.ImageTarget{}, nil); err != nil {
		t.Fatal(err)
	}
	if most > 3 {
		t.Errorf("%d blobs were fetched at a time", most)
	}
	s.clean()
}

// What an index names is sent before it, also where it is named twice.
func TestPushChildrenFirst(t *testing.T) {
	srv, to := registrytest.New(t), registrytest.New(t)
	leaf := build(srv, "a/b", "leaf", threeLayers()...).target
	index := func(tag string, of ...ispec.Descriptor) ispec.Descriptor {
		return srv.AddManifest("a/b", ispec.MediaTypeImageIndex, ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: of}, tag)
	}
	inner := index("inner", leaf)
	root := index("v1", leaf, inner)
	s := newStores(t)
	name := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, transfer.ImageTarget{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(to.Host+"/c/d:v2"), nil); err != nil {
		t.Fatal(err)
	}
	var sent []string
	for _, q := range to.Requests() {
		if _, object, ok := strings.Cut(q.Path, "/manifests/"); ok && q.Method == http.MethodPut {
			sent = append(sent, object)
		}
	}
	if want := []string{leaf.Digest.String(), inner.Digest.String(), "v2"}; !slices.Equal(sent, want) {
		t.Errorf("sent %v, want %v (root %s)", sent, want, root.Digest)
	}
	// A platform that is missing is named, and what to do.
	if err := s.Delete(t.Context(), inner.Digest); err != nil {
		t.Fatal(err)
	}
	err := s.svc.Push(t.Context(), "test", "", name, nil, s.remote(to.Host+"/e/f:v2"), nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), inner.Digest.String()) || !strings.Contains(err.Error(), "pull the image with all its platforms") {
		t.Errorf("%v", err)
	}
}

// Indexes that name each other many times over take no time to refuse.
func TestImportOfAnExplodingIndex(t *testing.T) {
	layout := file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	files := []file{layout}
	desc := ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString("gone"), Size: 4}
	for range 6 {
		idx := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex}
		for range 100 {
			idx.Manifests = append(idx.Manifests, desc)
		}
		doc := mustJSON(idx)
		desc = ispec.Descriptor{MediaType: idx.MediaType, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
		files = append(files, file{name: "blobs/sha256/" + desc.Digest.Encoded(), data: doc})
	}
	desc.Annotations = map[string]string{ispec.AnnotationRefName: "x"}
	files = append(files, file{name: "index.json", data: mustJSON(ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ispec.Descriptor{desc}})})
	s := newStores(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	_, err := s.svc.Import(ctx, "test", "", bytes.NewReader(archive(files...)), transfer.ImportOptions{}, importTarget(), nil)
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
	s.clean()
}

// The names in an archive are kept in memory, so they are bounded.
func TestImportOfLongNames(t *testing.T) {
	for _, b := range [][]byte{
		archive(file{name: strings.Repeat("a/", 4000) + "a", data: []byte("x")}),
		archive(file{name: "a", link: strings.Repeat("b", 5000)}),
	} {
		s := newStores(t)
		if _, err := s.load(b, importTarget(), transfer.ImportOptions{}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more than 4096 bytes") || len(err.Error()) > 400 {
			t.Errorf("%.500v", err)
		}
		s.clean()
	}
}

// A manifest may list things among its layers that are none.
func TestUnpackLeavesWhatIsNoLayer(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", threeLayers()...)
	img.manifest.Layers = append(img.manifest.Layers, srv.AddBlob("application/vnd.example.signature", []byte("signed")))
	srv.AddManifest("a/b", ispec.MediaTypeImageManifest, img.manifest, "v1")
	s := newStores(t)
	rec, err := s.pull(t.Context(), srv.Host+"/a/b:v1", target(false), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.svc.Unpack(t.Context(), "test", "", rec, transfer.UnpackTarget{Platform: linuxAMD64}, nil); err != nil {
		t.Error(err)
	}
	s.clean()
}

// A client that keeps an ingest open in one namespace holds up the pulls there,
// and none in another.
func TestBusyIngestIsOneNamespaces(t *testing.T) {
	srv := registrytest.New(t)
	img := build(srv, "a/b", "v1", layer("a", 5000))
	d := newDaemon(t)
	if err := d.db.Namespaces().Create(t.Context(), object.Namespace{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	l := img.manifest.Layers[0]
	w, err := d.db.Scope("test", "").Content().Writer(t.Context(), content.WriteOptions{Ref: image.RefKey(l), Size: l.Size, Expected: l.Digest})
	if err != nil {
		t.Fatal(err)
	}
	pull := func(namespace string) error {
		r, err := registry.NewRemote(srv.Host+"/a/b:v1", registry.Options{})
		if err != nil {
			return err
		}
		_, err = d.svc.Pull(t.Context(), namespace, "", r, target(true), nil)
		return err
	}
	waiting, held := make(chan struct{}), make(chan error, 1)
	srv.AddFault(registrytest.Fault{Path: img.manifest.Config.Digest.String(), Times: 1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		close(waiting)
		next.ServeHTTP(w, r)
	}})
	go func() { held <- pull("test") }()
	<-waiting
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- pull("other") }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("the pull into the other namespace waits")
	}
	w.Close()
	if err := <-held; err != nil {
		t.Error(err)
	}
}

// containerd's ctr draws reports that have a name on its standard output, where
// "export -" writes the archive.
func TestExportReportsWithoutNames(t *testing.T) {
	srv := registrytest.New(t)
	build(srv, "a/b", "v1", threeLayers()...)
	s := newStores(t)
	name := srv.Host + "/a/b:v1"
	if _, err := s.pull(t.Context(), name, target(false), nil); err != nil {
		t.Fatal(err)
	}
	var last transfer.Progress
	if err := s.svc.Export(t.Context(), "test", []string{name}, io.Discard, transfer.ExportOptions{AllPlatforms: true}, func(p transfer.Progress) {
		if p.Name != "" {
			t.Errorf("report %+v has a name", p)
		}
		if p.Total > 0 {
			last = p
		}
	}); err != nil {
		t.Fatal(err)
	}
	if last.Event != "complete" || last.Progress != last.Total || last.Total == 0 {
		t.Errorf("the last report with figures is %+v", last)
	}
}
