package registry_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/registry"
	"berth/internal/registry/registrytest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mirrored writes a hosts.toml for registry.example with mirrors and upstream,
// and returns the directory.
func mirrored(t *testing.T, upstream string, mirrors ...string) string {
	t.Helper()
	hosts := t.TempDir()
	toml := fmt.Sprintf("server = %q\n", "http://"+upstream)
	for _, m := range mirrors {
		toml += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+m)
	}
	dir := filepath.Join(hosts, "registry.example")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	return hosts
}

// A mirror that takes connections and never answers costs less than a second
// once and nothing afterwards.
func TestSilentMirror(t *testing.T) {
	t.Parallel()
	silent, upstream := registrytest.New(t), registrytest.New(t)
	silent.AddFault(registrytest.Fault{Do: silent.Hang()})
	_, blob, data := put(upstream, 100_000)
	hosts, network := mirrored(t, upstream.Host, silent.Host), registry.NewNetwork()
	for i, limit := range []time.Duration{time.Second, 250 * time.Millisecond, 250 * time.Millisecond} {
		r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) { o.HostDir, o.Network, o.StallTimeout = hosts, network, 0 })
		began := time.Now()
		if _, err := r.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b, err := r.FetchAll(t.Context(), blob, 1<<20); err != nil || !bytes.Equal(b, data) {
			t.Fatal(err)
		}
		if d := time.Since(began); d > limit {
			t.Errorf("pull %d took %s, at most %s", i, d, limit)
		}
	}
	if n := len(silent.Requests()); n != 1 {
		t.Errorf("the silent mirror was asked %d times", n)
	}
}

// A mirror that answers well at first and then falls silent is doubted.
func TestMirrorFallsSilent(t *testing.T) {
	mirror, upstream := registrytest.New(t), registrytest.New(t)
	put(mirror, 100)
	_, blob, _ := put(upstream, 100)
	r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) {
		o.HostDir, o.StallTimeout = mirrored(t, upstream.Host, mirror.Host), 50*time.Millisecond
	})
	if _, err := r.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	mirror.AddFault(registrytest.Fault{Do: mirror.Hang()})
	for range 4 {
		if _, err := r.FetchAll(t.Context(), blob, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mirror.Requests()); n > 4 { // probe, HEAD, one that hung, probe
		t.Errorf("the mirror was asked %d times", n)
	}
}

// When nothing else has it, a silent host is tried all the same.
func TestSilentMirrorIsTheLastHope(t *testing.T) {
	t.Parallel()
	mirror, upstream := registrytest.New(t), registrytest.New(t)
	put(mirror, 100)
	mirror.AddFault(registrytest.Fault{Path: "/v2/", Times: 1, Do: registrytest.Cut(0)})
	mirror.AddFault(registrytest.Fault{Path: "/v2/", Times: 1, Do: mirror.Hang()})
	upstream.AddFault(registrytest.Fault{Do: registrytest.Status(503)})
	r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) {
		o.HostDir, o.StallTimeout = mirrored(t, upstream.Host, mirror.Host), 2*time.Second
	})
	mirrorOnlyAfter := func() error { _, err := r.Resolve(t.Context()); return err }
	if err := mirrorOnlyAfter(); err != nil && !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	if err := mirrorOnlyAfter(); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

func big(r *registrytest.Registry, n int) (ispec.Descriptor, []byte) {
	data := make([]byte, n)
	rand.Read(data)
	return r.AddBlob(ispec.MediaTypeImageLayer, data), data
}

func TestPieces(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		faults []registrytest.Fault
		ranged bool // several parts are asked for
		chunk  int64
	}{
		"well":               {ranged: true, chunk: 1 << 20},
		"cuts":               {ranged: true, chunk: 1 << 20, faults: []registrytest.Fault{{Path: "/blobs/", Times: 6, Do: registrytest.Cut(300_000)}}},
		"no ranges":          {chunk: 1 << 20, faults: []registrytest.Fault{{Path: "/blobs/", Do: registrytest.NoRange}}},
		"forgets ranges":     {ranged: true, chunk: 1 << 20, faults: []registrytest.Fault{{Path: "/blobs/", Times: 3, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) { next.ServeHTTP(w, q) }}, {Path: "/blobs/", Do: registrytest.NoRange}}},
		"one connection":     {chunk: registry.Sequential},
		"larger than memory": {chunk: 64 << 20},
		"fast":               {},
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t)
			blob, data := big(srv, 20<<20)
			for _, f := range tc.faults {
				srv.AddFault(f)
			}
			network := registry.NewNetwork()
			for _, offset := range []int64{0, 3_000_001} {
				r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.Chunk, o.Network, o.Retry.Attempts = tc.chunk, network, 10 })
				body, err := r.Fetch(t.Context(), blob, offset)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(body)
				if err != nil || !bytes.Equal(got, data[offset:]) {
					t.Fatalf("from %d: %d bytes, %v", offset, len(got), err)
				}
				if err := body.Close(); err != nil {
					t.Error(err)
				}
			}
			parts := 0
			for _, q := range srv.Requests() {
				if q.Range != "" && !strings.HasSuffix(q.Range, "-") {
					parts++
				}
			}
			if tc.ranged && parts == 0 || !tc.ranged && tc.chunk <= 0 && parts > 0 {
				t.Errorf("%d parts were asked for", parts)
			}
		})
	}
}

// A connection that is slow of itself gets help.
func TestSlowConnection(t *testing.T) {
	t.Parallel()
	srv := registrytest.New(t)
	blob, data := big(srv, 24<<20)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.Drip(256<<10, 20*time.Millisecond)})
	body, err := remote(t, srv.Host+"/a/b:v1").Fetch(t.Context(), blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := srv.Count("GET", "/blobs/"); n < 3 {
		t.Errorf("%d connections", n)
	}
}

// Giving up in the middle leaves no memory in use.
func TestPiecesAreReleased(t *testing.T) {
	t.Parallel()
	srv := registrytest.New(t)
	blob, data := big(srv, 24<<20)
	network := registry.NewNetwork()
	for range 4 {
		r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.Chunk, o.Network = 4<<20, network })
		body, err := r.Fetch(t.Context(), blob, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, body, 9<<20); err != nil {
			t.Fatal(err)
		}
		body.Close()
	}
	before := len(srv.Requests())
	body, err := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.Chunk, o.Network = 4<<20, network }).Fetch(t.Context(), blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if n := len(srv.Requests()) - before; n < 5 {
		t.Errorf("only %d requests: memory is still in use", n)
	}
}

func TestForeignLayers(t *testing.T) {
	other, srv := registrytest.New(t), registrytest.New(t)
	data := []byte("not to be distributed")
	d := other.AddBlob("", data)
	url := "http://" + other.Host + "/v2/x/blobs/" + d.Digest.String()
	r := remote(t, srv.Host+"/a/b:v1", creds(registry.Credentials{Username: "joe", Secret: secret}), func(o *registry.Options) {
		o.Headers = http.Header{"X-Secret": {secret}}
	})
	foreign := ispec.Descriptor{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar", Digest: d.Digest, Size: d.Size, URLs: []string{"file:///etc/passwd", url}}
	if b, err := r.FetchAll(t.Context(), foreign, 1000); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%q, %v", b, err)
	}
	for _, q := range other.Requests() {
		if q.Authorization != "" || q.Header.Get("X-Secret") != "" {
			t.Errorf("the other host was sent %+v", q)
		}
	}
	foreign.MediaType = ispec.MediaTypeImageLayer
	if _, err := r.FetchAll(t.Context(), foreign, 1000); !errdefs.IsNotFound(err) {
		t.Errorf("a layer to be distributed came from elsewhere: %v", err)
	}
	foreign.MediaType, foreign.URLs = "application/vnd.oci.image.layer.nondistributable.v1.tar", []string{"http://169.254.169.254/latest"}
	if _, err := r.FetchAll(t.Context(), foreign, 1000); err == nil || !strings.Contains(err.Error(), "not asked") {
		t.Errorf("link-local address: %v", err)
	}
}

func artifact(t *testing.T, r *registry.Remote, subject ispec.Descriptor, kind string) digest.Digest {
	t.Helper()
	doc := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[],"subject":{"mediaType":%q,"digest":%q,"size":%d}}`,
		ispec.MediaTypeImageManifest, kind, subject.MediaType, subject.Digest, subject.Size))
	d := digest.FromBytes(doc)
	if _, err := r.Push(t.Context(), registry.Upload{Desc: ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: d, Size: int64(len(doc))}, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(doc)), nil
	}}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestReferrers(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		t.Run(fmt.Sprintf("the registry keeps them: %v", keeps), func(t *testing.T) {
			srv := registrytest.New(t)
			m, _, _ := put(srv, 10)
			if keeps {
				srv.KeepReferrers()
			}
			r := remote(t, srv.Host+"/a/b:v1")
			if got, err := r.Referrers(t.Context(), m.Digest, ""); err != nil || len(got) != 0 {
				t.Fatal(got, err)
			}
			sig, sbom := artifact(t, r, m, "test/signature"), artifact(t, r, m, "test/sbom")
			artifact(t, r, m, "test/sbom") // the same again
			got, err := r.Referrers(t.Context(), m.Digest, "")
			if err != nil || len(got) != 2 {
				t.Fatalf("%+v, %v", got, err)
			}
			got, err = r.Referrers(t.Context(), m.Digest, "test/sbom")
			if err != nil || len(got) != 1 || got[0].Digest != sbom || got[0].Digest == sig {
				t.Fatalf("%+v, %v", got, err)
			}
			_, tagged := srv.Manifest("a/b", strings.Replace(m.Digest.String(), ":", "-", 1))
			if tagged == keeps {
				t.Errorf("the referrers' tag is there: %v", tagged)
			}
		})
	}
}

func pushed(t *testing.T, r *registry.Remote, data []byte) error {
	t.Helper()
	_, err := r.Push(t.Context(), registry.Upload{Desc: ispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}})
	return err
}

func TestUploads(t *testing.T) {
	t.Parallel()
	data := make([]byte, 20<<20)
	rand.Read(data)
	partly := func(n int64) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			q.Body = io.NopCloser(io.MultiReader(io.LimitReader(q.Body, n), failing{}))
			next.ServeHTTP(w, q)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
		}
	}
	for name, tc := range map[string]struct {
		setup   func(*registrytest.Registry)
		patches int // at least
		posts   int // at most
	}{
		"in one request": {func(*registrytest.Registry) {}, 0, 1},
		"goes on after a cut": {func(r *registrytest.Registry) {
			r.AddFault(registrytest.Fault{Method: "PUT", Times: 1, Do: partly(5 << 20)})
		}, 1, 1},
		"cut again and again": {func(r *registrytest.Registry) {
			r.AddFault(registrytest.Fault{Method: "PUT", Times: 1, Do: partly(1 << 20)})
			r.AddFault(registrytest.Fault{Method: "PATCH", Times: 6, Do: partly(2 << 20)})
		}, 7, 1},
		"the session is lost": {func(r *registrytest.Registry) {
			r.AddFault(registrytest.Fault{Method: "PUT", Times: 1, Do: registrytest.Status(404)})
			r.AddFault(registrytest.Fault{Method: "GET", Path: "/uploads/", Do: registrytest.Status(404)})
		}, 0, 2},
		"too large at once":   {func(r *registrytest.Registry) { r.LimitBody(17 << 20) }, 2, 2},
		"too large in chunks": {func(r *registrytest.Registry) { r.LimitBody(5 << 20) }, 4, 4},
		"asks for a pause": {func(r *registrytest.Registry) {
			r.AddFault(registrytest.Fault{Method: "POST", Times: 2, Do: registrytest.Status(429, "Retry-After", "0")})
		}, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t)
			tc.setup(srv)
			if err := pushed(t, remote(t, srv.Host+"/a/b:v1"), data); err != nil {
				t.Fatal(err)
			}
			if b, ok := srv.Blob(digest.FromBytes(data)); !ok || !bytes.Equal(b, data) {
				t.Error("other bytes arrived")
			}
			if n := srv.Count("PATCH", ""); n < tc.patches {
				t.Errorf("%d parts", n)
			}
			if n := srv.Count("POST", ""); n > tc.posts {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
