// Package registrytest is a registry in the test's own process, on loopback,
// that can misbehave: it fails, hangs, cuts connections, lies about digests,
// forgets ranges, asks for logins, redirects.
//
// Blobs and manifests are in memory, for all repositories together. Faults are
// looked at in the order in which they were added; the first one that applies
// takes the request.
package registrytest

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a running registry.
type Registry struct {
	// Host is its address, "127.0.0.1:port".
	Host   string
	server *httptest.Server

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string]manifest // by repository/tag and repository/digest
	faults    []*Fault
	requests  []Request
	auth      func(w http.ResponseWriter, r *http.Request) bool
	uploads   map[string]*session
	referrers bool
	maxBody   int64
	quit      chan struct{}
	stop      sync.Once
}

type manifest struct {
	mediaType string
	doc       []byte
}

// Request is one that the registry saw.
type Request struct {
	Method, Path, Query, Range, Authorization string
	Header                                    http.Header
}

// Fault misbehaves.
type Fault struct {
	// Method, Path and Query (parts of them) select requests; empty is any.
	Method, Path, Query string
	// Times limits how many requests it takes; 0 is all.
	Times int
	// Do answers the request instead of the registry, which is next.
	Do func(w http.ResponseWriter, r *http.Request, next http.Handler)

	used int
}

// New starts a registry that speaks plain HTTP. The test's cleanup stops it.
func New(t testing.TB) *Registry { return start(t, false) }

// NewTLS starts a registry that speaks HTTPS; CAFile has its certificate.
func NewTLS(t testing.TB) *Registry { return start(t, true) }

func start(t testing.TB, secure bool) *Registry {
	r := &Registry{blobs: map[digest.Digest][]byte{}, manifests: map[string]manifest{}, uploads: map[string]*session{}, quit: make(chan struct{})}
	r.server = httptest.NewUnstartedServer(r)
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		r.server.StartTLS()
	} else {
		r.server.Start()
	}
	r.Host = r.server.Listener.Addr().String()
	t.Cleanup(r.Stop)
	return r
}

// Stop ends the registry, and requests that hang.
func (r *Registry) Stop() {
	r.stop.Do(func() {
		close(r.quit)
		r.server.CloseClientConnections()
		r.server.Close()
	})
}

// CAFile writes the certificate of a registry that speaks HTTPS to a file.
func (r *Registry) CAFile(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// AddFault adds a fault.
func (r *Registry) AddFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// ClearFaults makes the registry behave.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Requests returns what was asked so far.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// Count returns how many requests there were of a method to paths that contain part.
func (r *Registry) Count(method, part string) int {
	n := 0
	for _, q := range r.Requests() {
		if q.Method == method && strings.Contains(q.Path, part) {
			n++
		}
	}
	return n
}

// AddBlob stores a blob and describes it.
func (r *Registry) AddBlob(mediaType string, b []byte) ispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(b)
	r.blobs[d] = b
	return ispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// AddManifest stores a manifest or an index under its digest and tags.
func (r *Registry) AddManifest(repository, mediaType string, doc any, tags ...string) ispec.Descriptor {
	b, ok := doc.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(doc); err != nil {
			panic(err)
		}
	}
	d := digest.FromBytes(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range append(tags, d.String()) {
		r.manifests[repository+"/"+t] = manifest{mediaType, b}
	}
	return ispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// Blob returns a blob that was stored or pushed.
func (r *Registry) Blob(d digest.Digest) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.blobs[d]
	return b, ok
}

// Manifest returns what a tag or digest of a repository names.
func (r *Registry) Manifest(repository, ref string) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.manifests[repository+"/"+ref]
	return m.doc, ok
}

// RequireBasic lets only this user in.
func (r *Registry) RequireBasic(user, password string) {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	r.setAuth(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") == want {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		Error(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	})
}

// RequireToken lets only in who shows a token of the token server that covers
// the repository and what is done to it.
func (r *Registry) RequireToken(ts *TokenServer) {
	r.setAuth(func(w http.ResponseWriter, q *http.Request) bool {
		repo, _, _, _ := split(q.URL.Path)
		action := "pull"
		if q.Method != http.MethodGet && q.Method != http.MethodHead {
			action = "push"
		}
		if ts.allows(strings.TrimPrefix(q.Header.Get("Authorization"), "Bearer "), repo, action) {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:%s:%s"`, ts.URL, repo, action))
		Error(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	})
}

func (r *Registry) setAuth(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = f
}

// Error answers with an error in the form of the distribution specification.
func Error(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, Request{q.Method, q.URL.Path, q.URL.RawQuery, q.Header.Get("Range"), q.Header.Get("Authorization"), q.Header.Clone()})
	fault := choose(r.faults, q)
	auth := r.auth
	r.mu.Unlock()
	if auth != nil && !auth(w, q) {
		return
	}
	if fault != nil {
		fault.Do(w, q, http.HandlerFunc(r.serve))
		return
	}
	r.serve(w, q)
}

// choose finds the first fault that applies, and counts it.
func choose(faults []*Fault, q *http.Request) *Fault {
	for _, f := range faults {
		if (f.Method == "" || f.Method == q.Method) && strings.Contains(q.URL.Path, f.Path) && strings.Contains(q.URL.RawQuery, f.Query) && (f.Times == 0 || f.used < f.Times) {
			f.used++
			return f
		}
	}
	return nil
}

// split parts a path of the API into repository, kind ("manifests", "blobs",
// "uploads") and object.
func split(path string) (repository, kind, object string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", "", false
	}
	for _, k := range []string{"/blobs/uploads/", "/manifests/", "/blobs/", "/referrers/"} {
		if i := strings.LastIndex(rest, k); i > 0 {
			return rest[:i], strings.TrimPrefix(strings.Trim(k, "/"), "blobs/"), rest[i+len(k):], true
		}
	}
	return "", "", "", rest == ""
}

func (r *Registry) serve(w http.ResponseWriter, q *http.Request) {
	repo, kind, object, ok := split(q.URL.Path)
	switch {
	case !ok:
		Error(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
	case kind == "manifests" && (q.Method == http.MethodGet || q.Method == http.MethodHead):
		r.mu.Lock()
		m, ok := r.manifests[repo+"/"+object]
		r.mu.Unlock()
		if !ok {
			Error(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		serveBytes(w, q, m.doc)
	case kind == "manifests" && q.Method == http.MethodPut:
		b, _ := io.ReadAll(q.Body)
		tags := []string{}
		if _, err := digest.Parse(object); err != nil {
			tags = append(tags, object)
		}
		d := r.AddManifest(repo, q.Header.Get("Content-Type"), b, tags...)
		w.Header().Set("Docker-Content-Digest", d.Digest.String())
		if subject := subjectOf(b); subject != "" && r.keepsReferrers() {
			w.Header().Set("OCI-Subject", subject.String())
		}
		w.WriteHeader(http.StatusCreated)
	case kind == "blobs":
		r.mu.Lock()
		b, ok := r.blobs[digest.Digest(object)]
		r.mu.Unlock()
		if !ok {
			Error(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		serveBytes(w, q, b)
	case kind == "uploads":
		r.upload(w, q, repo, object)
	case kind == "referrers":
		r.serveReferrers(w, q, repo, digest.Digest(object))
	default:
		w.WriteHeader(http.StatusOK)
	}
}

// serveBytes answers GET and HEAD, with ranges of the forms "bytes=n-" and "bytes=n-m".
func serveBytes(w http.ResponseWriter, q *http.Request, b []byte) {
	if w.Header().Get("Docker-Content-Digest") == "" {
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
	}
	status, size := http.StatusOK, len(b)
	if rest, ok := strings.CutPrefix(q.Header.Get("Range"), "bytes="); ok {
		from, to, _ := strings.Cut(rest, "-")
		first, err := strconv.Atoi(from)
		last := size - 1
		if to != "" && err == nil {
			last, err = strconv.Atoi(to)
		}
		if err != nil || first >= size || last < first {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		last = min(last, size-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
		b, status = b[first:last+1], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if q.Method == http.MethodGet {
		w.Write(b)
	}
}
