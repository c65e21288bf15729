package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/registry"
	"berth/internal/registry/registrytest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var quick = registry.Retry{Attempts: 3, Pause: time.Millisecond, MaxPause: 2 * time.Second}

func remote(t *testing.T, ref string, change ...func(*registry.Options)) *registry.Remote {
	t.Helper()
	opts := registry.Options{Retry: quick, StallTimeout: 10 * time.Second}
	for _, c := range change {
		c(&opts)
	}
	r, err := registry.NewRemote(ref, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// put stores an image of one config and one blob of n bytes.
func put(r *registrytest.Registry, n int) (m, blob ispec.Descriptor, data []byte) {
	data = bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	for i := 0; i < n; i += 1000 {
		data[i] = byte(i / 1000)
	}
	blob = r.AddBlob(ispec.MediaTypeImageLayer, data)
	cfg := r.AddBlob(ispec.MediaTypeImageConfig, []byte("{}"))
	m = r.AddManifest("a/b", ispec.MediaTypeImageManifest, ispec.Manifest{MediaType: ispec.MediaTypeImageManifest, Config: cfg, Layers: []ispec.Descriptor{blob}}, "v1")
	return m, blob, data
}

func TestParseReference(t *testing.T) {
	for _, s := range []string{"docker.io/library/busybox:latest", "127.0.0.1:5000/a:b", "[::1]:5000/a/b:c", "r.example/a@sha256:" + strings.Repeat("0", 64), "localhost/a:b"} {
		r, err := registry.ParseReference(s)
		if err != nil || r.String() != s {
			t.Errorf("%s: %v, %v", s, r, err)
		}
	}
	for s, hint := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "library/busybox:1": "docker.io/library/busybox:1", "http://r.example/a:b": "without a scheme",
		"r.example/a": "tag or a digest", "r.example/A:b": "", "r.example/a:b@sha256:12": "", "": "", "r.example/../a:b": "", "r.example/a:b c": "",
	} {
		_, err := registry.ParseReference(s)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %v, want invalid argument with %q", s, err, hint)
		}
	}
}

func TestResolveAndFetch(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *registrytest.Registry{"http": registrytest.New, "https": registrytest.NewTLS} {
		t.Run(name, func(t *testing.T) {
			srv := start(t)
			m, blob, data := put(srv, 300_000)
			r := remote(t, srv.Host+"/a/b:v1")
			got, err := r.Resolve(t.Context())
			if err != nil || got.Digest != m.Digest || got.Size != m.Size || got.MediaType != m.MediaType {
				t.Fatalf("Resolve: %+v, %v; want %+v", got, err, m)
			}
			if _, err := r.FetchAll(t.Context(), got, 1<<20); err != nil {
				t.Fatal(err)
			}
			for _, offset := range []int64{0, 1, 299_999, 300_000} {
				body, err := r.Fetch(t.Context(), blob, offset)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(body)
				body.Close()
				if err != nil || !bytes.Equal(b, data[offset:]) {
					t.Errorf("from %d: %d bytes, %v", offset, len(b), err)
				}
			}
		})
	}
}

func TestResolveWithoutHelp(t *testing.T) {
	for name, fault := range map[string]registrytest.Fault{
		"no digest header":     {Do: registrytest.Header("Docker-Content-Digest", "")},
		"no type":              {Do: registrytest.Header("Content-Type", "text/plain")},
		"HEAD is not known":    {Method: "HEAD", Do: registrytest.Status(405)},
		"wrong digest in HEAD": {Method: "HEAD", Do: registrytest.Header("Docker-Content-Digest", "nonsense")},
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t)
			m, _, _ := put(srv, 10)
			srv.AddFault(fault)
			got, err := remote(t, srv.Host+"/a/b:v1").Resolve(t.Context())
			if err != nil || got.Digest != m.Digest || got.MediaType != m.MediaType || got.Size != m.Size {
				t.Errorf("got %+v, %v; want %+v", got, err, m)
			}
		})
	}
}

func TestResolveRefusesLies(t *testing.T) {
	srv := registrytest.New(t)
	m, _, _ := put(srv, 10)
	srv.AddFault(registrytest.Fault{Method: "GET", Do: registrytest.Corrupt(3)})
	srv.AddFault(registrytest.Fault{Method: "HEAD", Do: registrytest.Status(405)})
	_, err := remote(t, srv.Host+"/a/b@"+m.Digest.String()).Resolve(t.Context())
	if err == nil {
		t.Error("a manifest with other bytes was accepted for a digest")
	}
	if _, err := remote(t, srv.Host+"/a/b@"+m.Digest.String()).FetchAll(t.Context(), m, 1<<20); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("FetchAll of other bytes: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*registrytest.Registry) registrytest.Fault
		kind func(error) bool
		says []string
	}{
		{"401", status(401), errdefs.IsUnauthorized, []string{"401", "login"}},
		{"403", status(403), errdefs.IsPermissionDenied, []string{"403"}},
		{"404", status(404), errdefs.IsNotFound, []string{"404", "a/b:v1"}},
		{"429", status(429, "Retry-After", "3600"), errdefs.IsResourceExhausted, []string{"429", "try again in 1h"}},
		{"500", status(500), errdefs.IsUnavailable, []string{"500"}},
		{"503", status(503), errdefs.IsUnavailable, []string{"503"}},
		{"hang", func(r *registrytest.Registry) registrytest.Fault { return registrytest.Fault{Do: r.Hang()} }, errdefs.IsUnavailable, []string{"no answer within 50ms"}},
		{"cut", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Fault{Do: registrytest.Cut(0)}
		}, errdefs.IsUnavailable, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := registrytest.New(t)
			put(srv, 10)
			srv.AddFault(tc.do(srv))
			r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) {
				if tc.name == "hang" {
					o.StallTimeout = 50 * time.Millisecond
				}
			})
			_, err := r.Resolve(t.Context())
			if err == nil || !tc.kind(err) {
				t.Fatalf("%v has the wrong kind", err)
			}
			for _, s := range append(tc.says, srv.Host) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func status(code int, header ...string) func(*registrytest.Registry) registrytest.Fault {
	return func(*registrytest.Registry) registrytest.Fault {
		return registrytest.Fault{Do: registrytest.Status(code, header...)}
	}
}

func TestNothingListens(t *testing.T) {
	srv := registrytest.New(t)
	r := remote(t, strings.Replace(srv.Host, "127.0.0.1", "127.0.0.2", 1)+"/a:b")
	start := time.Now()
	if _, err := r.Resolve(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if time.Since(start) > 5*time.Second {
		t.Error("took too long")
	}
}

func TestRetry(t *testing.T) {
	for name, do := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"429": registrytest.Status(429), "429 soon": registrytest.Status(429, "Retry-After", "0"),
		"500": registrytest.Status(500), "502": registrytest.Status(502), "cut": registrytest.Cut(0),
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t)
			put(srv, 10)
			srv.AddFault(registrytest.Fault{Times: 2, Do: do})
			if _, err := remote(t, srv.Host+"/a/b:v1").Resolve(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBlobGoesOn(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(*registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler){
		"cut": func(*registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler) {
			return registrytest.Cut(200_000)
		},
		"stall": func(r *registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler) {
			return r.HangAfter(200_000)
		},
		"stall at 0": func(r *registrytest.Registry) func(http.ResponseWriter, *http.Request, http.Handler) {
			return r.HangAfter(0)
		},
	} {
		for _, ranges := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				srv := registrytest.New(t)
				_, blob, data := put(srv, 1_000_000)
				srv.AddFault(registrytest.Fault{Path: "/blobs/", Times: 2, Do: do(srv)})
				if !ranges {
					srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.NoRange})
				}
				r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.StallTimeout = 100 * time.Millisecond })
				body, err := r.Fetch(t.Context(), blob, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				b, err := io.ReadAll(body)
				if err != nil || !bytes.Equal(b, data) {
					t.Fatalf("%d of %d bytes: %v", len(b), len(data), err)
				}
				ranged := 0
				for _, q := range srv.Requests() {
					if q.Range != "" {
						ranged++
					}
				}
				if name != "stall at 0" && ranged == 0 {
					t.Error("no range was asked for")
				}
			})
		}
	}
}

func TestBlobGivesUp(t *testing.T) {
	srv := registrytest.New(t)
	_, blob, _ := put(srv, 1_000_000)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.Cut(1000)})
	body, err := remote(t, srv.Host+"/a/b:v1").Fetch(t.Context(), blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadAll(body); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
}

func TestSlowIsNotStalled(t *testing.T) {
	srv := registrytest.New(t)
	_, blob, data := put(srv, 2000)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.Drip(100, 10*time.Millisecond)})
	r := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.StallTimeout = 150 * time.Millisecond })
	body, err := r.Fetch(t.Context(), blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if n := srv.Count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestWrongSize(t *testing.T) {
	srv := registrytest.New(t)
	_, blob, _ := put(srv, 1000)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.Short(500)})
	if _, err := remote(t, srv.Host+"/a/b:v1").Fetch(t.Context(), blob, 0); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "500") {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	srv := registrytest.New(t)
	_, blob, _ := put(srv, 1_000_000)
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: srv.HangAfter(1000)})
	ctx, cancel := context.WithCancel(t.Context())
	body, err := remote(t, srv.Host+"/a/b:v1").Fetch(ctx, blob, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	io.ReadFull(body, make([]byte, 1000))
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func creds(c registry.Credentials) func(*registry.Options) {
	return func(o *registry.Options) {
		o.Credentials = func(context.Context, string, string) (registry.Credentials, error) { return c, nil }
	}
}

func TestAuth(t *testing.T) {
	user := registry.Credentials{Username: "joe", Secret: "s3cret"}
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T, r *registrytest.Registry)
		creds registry.Credentials
		ok    bool
	}{
		{"basic", basic, user, true},
		{"basic, wrong", basic, registry.Credentials{Username: "joe", Secret: "wrong"}, false},
		{"basic, none", basic, registry.Credentials{}, false},
		{"basic by header", basic, registry.Credentials{Header: "Basic am9lOnMzY3JldA=="}, true},
		{"header, wrong", basic, registry.Credentials{Header: "Basic nonsense"}, false},
		{"token", token, user, true},
		{"token, wrong", token, registry.Credentials{Username: "joe", Secret: "wrong"}, false},
		{"token, none", token, registry.Credentials{}, false},
		{"identity token", token, registry.Credentials{Secret: "s3cret"}, true},
		{"anonymous token", func(t *testing.T, r *registrytest.Registry) {
			r.RequireToken(registrytest.NewTokenServer(t, "", ""))
		}, registry.Credentials{}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := registrytest.New(t)
			_, blob, data := put(srv, 100)
			tc.setup(t, srv)
			r := remote(t, srv.Host+"/a/b:v1", creds(tc.creds))
			_, err := r.Resolve(t.Context())
			if !tc.ok {
				if !errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "wrong\"") || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.FetchAll(t.Context(), blob, 1000)
			if err != nil || !bytes.Equal(b, data) {
				t.Fatal(err)
			}
			_, err = r.Push(t.Context(), registry.Upload{Desc: ispec.Descriptor{Digest: digest.FromString("new"), Size: 3}, Open: func() (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader("new")), nil
			}})
			if err != nil {
				t.Errorf("push: %v", err)
			}
		})
	}
}

func basic(t *testing.T, r *registrytest.Registry) { r.RequireBasic("joe", "s3cret") }
func token(t *testing.T, r *registrytest.Registry) {
	r.RequireToken(registrytest.NewTokenServer(t, "joe", "s3cret"))
}

func TestTokenIsSharedAndRenewed(t *testing.T) {
	srv := registrytest.New(t)
	_, blob, _ := put(srv, 100)
	ts := registrytest.NewTokenServer(t, "", "")
	srv.RequireToken(ts)
	r := remote(t, srv.Host+"/a/b:v1")
	for range 3 {
		if _, err := r.FetchAll(t.Context(), blob, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if a := ts.Asked(); len(a) != 1 || a[0] != "repository:a/b:pull" {
		t.Errorf("asked for %q", a)
	}
	ts.Forget()
	if _, err := r.FetchAll(t.Context(), blob, 1000); err != nil {
		t.Errorf("after the token expired: %v", err)
	}
}

func TestRedirectLeaksNothing(t *testing.T) {
	other := registrytest.New(t)
	_, blob, data := put(other, 1000)
	srv := registrytest.New(t)
	put(srv, 1000)
	srv.RequireBasic("joe", "s3cret")
	srv.AddFault(registrytest.Fault{Path: "/blobs/", Do: registrytest.Redirect("http://" + other.Host)})
	r := remote(t, srv.Host+"/a/b:v1", creds(registry.Credentials{Username: "joe", Secret: "s3cret"}), func(o *registry.Options) {
		o.Headers = http.Header{"X-Secret": {"s3cret"}}
	})
	b, err := r.FetchAll(t.Context(), blob, 1000)
	if err != nil || !bytes.Equal(b, data) {
		t.Fatal(err)
	}
	for _, q := range other.Requests() {
		if q.Authorization != "" {
			t.Errorf("the other host was sent %q", q.Authorization)
		}
	}
	other.AddFault(registrytest.Fault{Do: registrytest.Status(404)})
	if _, err = r.FetchAll(t.Context(), blob, 1000); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), other.Host) {
		t.Errorf("error of a redirected request: %v", err)
	}
	other.ClearFaults()
	other.RequireBasic("joe", "s3cret") // a challenge of the other host is not answered
	if _, err = r.FetchAll(t.Context(), blob, 1000); !errdefs.IsUnauthorized(err) {
		t.Errorf("challenge of the other host: %v", err)
	}
	for _, q := range other.Requests() {
		if q.Authorization != "" {
			t.Errorf("the other host was sent %q", q.Authorization)
		}
	}
}

func TestTLS(t *testing.T) {
	srv := registrytest.NewTLS(t)
	put(srv, 10)
	// Under a name that is not loopback's nothing is skipped; here a CA that is
	// given makes the check strict.
	if _, err := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.CACert = srv.CAFile(t) }).Resolve(t.Context()); err != nil {
		t.Errorf("with its CA: %v", err)
	}
	bad := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(bad, []byte("not PEM"), 0o600)
	if _, err := registry.NewRemote(srv.Host+"/a/b:v1", registry.Options{CACert: bad}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with a CA that is none: %v", err)
	}
	hosts := t.TempDir()
	dir := filepath.Join(hosts, strings.Replace(srv.Host, ":", "_", 1)+"_")
	os.MkdirAll(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("skip_verify = false\n"), 0o600)
	_, err := remote(t, srv.Host+"/a/b:v1", func(o *registry.Options) { o.HostDir = hosts }).Resolve(t.Context())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without its CA: %v", err)
	}
}

func TestMirrors(t *testing.T) {
	dead, mirror, upstream := registrytest.New(t), registrytest.New(t), registrytest.New(t)
	m, _, _ := put(mirror, 100)
	put(upstream, 100)
	dead.AddFault(registrytest.Fault{Do: registrytest.Status(404)})
	hosts := t.TempDir()
	dir := filepath.Join(hosts, "registry.example")
	os.MkdirAll(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(`
server = "http://`+upstream.Host+`"
[host."http://`+dead.Host+`"]
  capabilities = ["pull", "resolve"]
[host."http://`+mirror.Host+`"]
  capabilities = ["pull", "resolve"]
  [host."http://`+mirror.Host+`".header]
    x-test = ["1"]
`), 0o600)
	r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) { o.HostDir = hosts })
	got, err := r.Resolve(t.Context())
	if err != nil || got.Digest != m.Digest {
		t.Fatal(got, err)
	}
	if dead.Count("", "") != 0 || dead.Count("HEAD", "/manifests/") != 1 || mirror.Count("HEAD", "/manifests/") != 1 || len(upstream.Requests()) != 0 {
		t.Errorf("dead %v, mirror %v, upstream %v", dead.Requests(), mirror.Requests(), upstream.Requests())
	}
	if q := mirror.Requests()[0].Query; q != "ns=registry.example" {
		t.Errorf("the mirror was asked with %q", q)
	}
	mirror.AddFault(registrytest.Fault{Do: registrytest.Status(404)})
	if _, err := r.Resolve(t.Context()); err != nil {
		t.Errorf("with upstream only: %v", err)
	}
	upstream.AddFault(registrytest.Fault{Do: registrytest.Status(404)})
	if _, err := r.Resolve(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), dead.Host) {
		t.Errorf("with none: %v", err)
	}
	_, err = r.Push(t.Context(), registry.Upload{Desc: ispec.Descriptor{Digest: digest.FromString("new"), Size: 3}, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("new")), nil
	}})
	if upstream.Count("HEAD", "/blobs/") != 1 || mirror.Count("HEAD", "/blobs/") != 0 {
		t.Errorf("a push went to a mirror (%v)", err)
	}
	os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("[host."), 0o600)
	if _, err := registry.NewRemote("registry.example/a:b", registry.Options{HostDir: hosts}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("hosts.toml that is malformed: %v", err)
	}
}

func TestPush(t *testing.T) {
	srv := registrytest.New(t)
	r := remote(t, srv.Host+"/new/repo:v1")
	data := bytes.Repeat([]byte("x"), 100_000)
	up := registry.Upload{Desc: ispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
	srv.AddFault(registrytest.Fault{Method: "PUT", Times: 1, Do: registrytest.Status(503)})
	if existed, err := r.Push(t.Context(), up); err != nil || existed {
		t.Fatal(existed, err)
	}
	if b, _ := srv.Blob(up.Desc.Digest); !bytes.Equal(b, data) {
		t.Error("other bytes arrived")
	}
	if existed, err := r.Push(t.Context(), up); err != nil || !existed {
		t.Error(existed, err)
	}
	doc := []byte(`{"schemaVersion":2,"mediaType":"` + ispec.MediaTypeImageManifest + `"}`)
	m := registry.Upload{Tag: true, Desc: ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(doc)), nil }}
	if _, err := r.Push(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if b, ok := srv.Manifest("new/repo", "v1"); !ok || !bytes.Equal(b, doc) {
		t.Error("the tag is not there")
	}
	srv.AddFault(registrytest.Fault{Method: "POST", Do: registrytest.Status(403)})
	up.Desc.Digest, data = digest.FromString("other"), []byte("other")
	up.Desc.Size = 5
	if _, err := r.Push(t.Context(), up); !errdefs.IsPermissionDenied(err) {
		t.Errorf("%v", err)
	}
}

// Requests that are refused at the same time are each sent again with the login.
func TestBasicOfSeveralAtOnce(t *testing.T) {
	const n = 4
	var refused sync.WaitGroup
	refused.Add(n)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); user == "joe" && password == "s3cret" {
			w.Header().Set("Content-Length", "1")
			w.Write([]byte("x"))
			return
		}
		refused.Done()
		refused.Wait()
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	r := remote(t, strings.TrimPrefix(srv.URL, "http://")+"/a/b:v1", creds(registry.Credentials{Username: "joe", Secret: "s3cret"}))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			blob := ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: 1}
			if _, err := r.FetchAll(t.Context(), blob, 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
