package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/registry"
	"berth/internal/registry/registrytest"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A registry that keeps blobs elsewhere answers the last request of an upload
// when it has copied them there.
func TestPushWaitsForARegistryThatStoresSlowly(t *testing.T) {
	srv := registrytest.New(t)
	srv.AddFault(registrytest.Fault{Method: http.MethodPut, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		b, _ := io.ReadAll(q.Body)
		q.Body = io.NopCloser(bytes.NewReader(b))
		select {
		case <-time.After(400 * time.Millisecond): // longer than a connection may stall
		case <-q.Context().Done():
			return
		}
		next.ServeHTTP(w, q)
	}})
	data := make([]byte, 8<<20)
	up := registry.Upload{
		Desc: ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
	r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.StallTimeout = 100 * time.Millisecond })
	if _, err := r.Push(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	if n := srv.Count(http.MethodPut, ""); n != 1 {
		t.Errorf("the blob was sent %d times", n)
	}
}

// An address of this machine is not asked for a layer whatever leads there: a
// name, or a redirect.
func TestForeignLayersFromHere(t *testing.T) {
	asked := make(chan string, 10)
	here := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { asked <- q.URL.Path }))
	defer here.Close()
	_, port, _ := net.SplitHostPort(here.Listener.Addr().String())
	dir := t.TempDir()
	srv := registrytest.New(t)
	// A registry that is not on this machine by its name, but reached here.
	if err := os.Mkdir(filepath.Join(dir, "registry.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "registry.example", "hosts.toml"), []byte(`server = "http://`+srv.Host+`"`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) { o.HostDir = dir })
	data := []byte("x")
	for _, url := range []string{"http://127.0.0.1:" + port + "/a", "http://localhost:" + port + "/b", "http://[::ffff:127.0.0.1]:" + port + "/c", "http://ip6-localhost:" + port + "/d", "http://localhost.:" + port + "/e", "http://0.0.0.0:" + port + "/f"} {
		foreign := ispec.Descriptor{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar", Digest: digest.FromBytes(data), Size: 1, URLs: []string{url}}
		if _, err := r.FetchAll(t.Context(), foreign, 1000); err == nil {
			t.Errorf("%s: fetched", url)
		}
		select {
		case path := <-asked:
			t.Errorf("%s: this machine was asked for %s", url, path)
		default:
		}
	}
	// From a registry on this machine layers may come from here, but not be
	// redirected to the link.
	redirect := httptest.NewServer(http.RedirectHandler("http://169.254.169.254/latest", http.StatusFound))
	defer redirect.Close()
	r = remote(t, srv.Host+"/a/b:v1")
	foreign := ispec.Descriptor{MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar", Digest: digest.FromBytes(data), Size: 1, URLs: []string{redirect.URL}}
	if _, err := r.FetchAll(t.Context(), foreign, 1000); err == nil || !strings.Contains(err.Error(), "not asked") {
		t.Errorf("%v", err)
	}
}

// After a piece could not be had, nothing of those behind it is given out.
func TestPiecesEndAtAnError(t *testing.T) {
	srv := registrytest.New(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	d := srv.AddBlob(ispec.MediaTypeImageLayer, data)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		var from int
		if fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &from); from >= 4<<20 && from < 5<<20 {
			registrytest.Error(w, http.StatusNotFound, "BLOB_UNKNOWN", "gone")
			return
		}
		next.ServeHTTP(w, q)
	}})
	r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.Chunk = 1 << 20 })
	body, err := r.Fetch(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err == nil || !bytes.Equal(got, data[:len(got)]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n, again := body.Read(make([]byte, 10)); n != 0 || !errors.Is(again, err) {
		t.Errorf("after the error: %d bytes, %v", n, again)
	}
}

// Headers that are configured may be secrets.
func TestDumpHidesConfiguredHeaders(t *testing.T) {
	srv := registrytest.New(t)
	put(srv, 10)
	var log bytes.Buffer
	r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) {
		o.HTTPDump, o.Log = true, slog.New(slog.NewTextHandler(&log, nil))
		o.Headers = http.Header{"Private-Token": {secret}}
	})
	if _, err := r.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), secret) || !strings.Contains(log.String(), "Private-Token") {
		t.Errorf("%s", log.String())
	}
}
