package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/internal/registry"
	"berth/internal/registry/registrytest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const secret = "s3cret"

// scene is a registry, its token server, another host, and what they hold.
type scene struct {
	srv, other     *registrytest.Registry
	tokens         *registrytest.TokenServer
	manifest, blob ispec.Descriptor
	data           []byte
}

// request is a kind of request: which one is made to fail, and what is done.
type request struct {
	name string
	// of the token server instead of the registry
	token bool
	fault registrytest.Fault
	// before makes a request of this kind necessary.
	before func(*scene)
	do     func(context.Context, *scene, *registry.Remote) error
	// repaired: there is another way, which is taken when this one fails.
	repaired bool
	bodyless bool
}

func upload(ctx context.Context, s *scene, r *registry.Remote, mount string) error {
	data := bytes.Repeat([]byte("new "), 10_000)
	_, err := r.Push(ctx, registry.Upload{
		Desc: ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}, MountFrom: mount,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	})
	return err
}

func requests() []request {
	resolve := func(ctx context.Context, s *scene, r *registry.Remote) error {
		d, err := r.Resolve(ctx)
		if err == nil && d.Digest != s.manifest.Digest {
			_, err = r.FetchAll(ctx, d, 1<<20) // now it shows
		}
		return err
	}
	fetch := func(ctx context.Context, desc ispec.Descriptor, r *registry.Remote) error {
		_, err := r.FetchAll(ctx, desc, 1<<20)
		return err
	}
	return []request{
		{name: "resolve by HEAD", bodyless: true, fault: registrytest.Fault{Method: "HEAD", Path: "/manifests/"}, do: resolve},
		{name: "resolve by GET", fault: registrytest.Fault{Method: "GET", Path: "/manifests/"}, do: resolve, before: func(s *scene) {
			s.srv.AddFault(registrytest.Fault{Method: "HEAD", Path: "/manifests/", Do: registrytest.Status(405)})
		}},
		{name: "manifest", fault: registrytest.Fault{Method: "GET", Path: "/manifests/"}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			return fetch(ctx, s.manifest, r)
		}},
		{name: "blob", fault: registrytest.Fault{Method: "GET", Path: "/blobs/"}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			return fetch(ctx, s.blob, r)
		}},
		{name: "token", token: true, do: resolve},
		{name: "upload POST", fault: registrytest.Fault{Method: "POST"}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			return upload(ctx, s, r, "")
		}},
		{name: "upload PATCH", fault: registrytest.Fault{Method: "PATCH"}, before: func(s *scene) {
			s.srv.AddFault(registrytest.Fault{Method: "PUT", Times: 1, Do: registrytest.Status(413)})
		}, do: func(ctx context.Context, s *scene, r *registry.Remote) error { return upload(ctx, s, r, "") }},
		{name: "upload PUT", fault: registrytest.Fault{Method: "PUT"}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			return upload(ctx, s, r, "")
		}},
		{name: "mount", repaired: true, fault: registrytest.Fault{Method: "POST", Query: "mount="}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			return upload(ctx, s, r, "other/repo")
		}},
		{name: "manifest PUT", fault: registrytest.Fault{Method: "PUT", Path: "/manifests/"}, do: func(ctx context.Context, s *scene, r *registry.Remote) error {
			doc := []byte(`{"schemaVersion":2,"config":{}}`)
			_, err := r.Push(ctx, registry.Upload{Tag: true, Desc: ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))},
				Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(doc)), nil }})
			return err
		}},
		{name: "referrers", fault: registrytest.Fault{Method: "GET", Path: "/referrers/"}, before: func(s *scene) { s.srv.KeepReferrers() },
			do: func(ctx context.Context, s *scene, r *registry.Remote) error {
				_, err := r.Referrers(ctx, s.manifest.Digest, "")
				return err
			}},
	}
}

// misbehaviour is what a host does, and what becomes of a request.
type misbehaviour struct {
	name string
	do   func(*scene) func(http.ResponseWriter, *http.Request, http.Handler)
	kind func(error) bool
	says string
	// harmless where nothing hangs on what it spoils: an error is allowed, too.
	harmless bool
	// only kinds of requests that it makes sense for; nil is all.
	only func(request) bool
}

func misbehaviours() []misbehaviour {
	answer := func(f func(http.ResponseWriter, *http.Request, http.Handler)) func(*scene) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(*scene) func(http.ResponseWriter, *http.Request, http.Handler) { return f }
	}
	body := func(q request) bool { return !q.bodyless }
	blob := func(q request) bool { return q.name == "blob" }
	out := []misbehaviour{
		{name: "stalls", kind: errdefs.IsUnavailable, do: func(s *scene) func(http.ResponseWriter, *http.Request, http.Handler) { return s.srv.Hang() }},
		{name: "resets", kind: errdefs.IsUnavailable, do: answer(registrytest.Cut(0))},
		{name: "truncates", kind: errdefs.IsUnavailable, harmless: true, do: answer(registrytest.Cut(3)), only: body},
		{name: "stalls in the middle", kind: errdefs.IsUnavailable, harmless: true, only: body, do: func(s *scene) func(http.ResponseWriter, *http.Request, http.Handler) {
			return s.srv.HangAfter(3)
		}},
		{name: "lies about the length", kind: anyKind, harmless: true, do: answer(registrytest.Short(5)), only: body},
		{name: "lies about the digest", kind: anyKind, harmless: true, do: answer(registrytest.Header("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64)))},
		{name: "corrupts", kind: anyKind, harmless: true, do: answer(registrytest.Corrupt(4)), only: body},
		{name: "sends a part instead of the whole", kind: errdefs.IsFailedPrecondition, only: blob, do: answer(func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "56789")
		})},
		{name: "redirects to another host", kind: anyKind, harmless: true, do: func(s *scene) func(http.ResponseWriter, *http.Request, http.Handler) {
			return registrytest.Redirect("http://" + s.other.Host)
		}},
		{name: "redirects for ever", kind: anyKind, harmless: true, do: answer(func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			http.Redirect(w, q, q.URL.Path+"?again=1", http.StatusTemporaryRedirect)
		})},
		{name: "redirects to a file", kind: anyKind, do: answer(func(w http.ResponseWriter, q *http.Request, _ http.Handler) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusTemporaryRedirect)
		})},
	}
	for _, code := range []int{400, 401, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 418, 421, 423, 425, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 507, 508, 511, 599} {
		m := misbehaviour{name: fmt.Sprint("answers ", code), do: answer(registrytest.Status(code)), says: fmt.Sprint(code), kind: kindOf(code)}
		out = append(out, m)
	}
	return out
}

func anyKind(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errdefs.IsUnauthorized(err) || errdefs.IsNotFound(err)
}

func kindOf(code int) func(error) bool {
	return func(err error) bool { return errors.Is(err, errKind(code)) }
}

func errKind(code int) error {
	switch {
	case code == 401:
		return errdefs.ErrUnauthenticated
	case code == 403:
		return errdefs.ErrPermissionDenied
	case code == 404:
		return errdefs.ErrNotFound
	case code == 429:
		return errdefs.ErrResourceExhausted
	case code == 416:
		return errdefs.ErrOutOfRange
	case code >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrFailedPrecondition
}

// harmless tells that a request may succeed in spite of a misbehaviour.
func harmless(q request, m misbehaviour) bool {
	switch {
	case q.repaired || m.harmless:
		return true
	case q.name == "referrers": // the tag is looked at instead
		code, err := strconv.Atoi(strings.TrimPrefix(m.name, "answers "))
		return err == nil && (errdefs.IsNotFound(errKind(code)) || errdefs.IsFailedPrecondition(errKind(code)))
	case q.name == "resolve by HEAD": // a GET helps
		code, err := strconv.Atoi(strings.TrimPrefix(m.name, "answers "))
		return err == nil && errdefs.IsFailedPrecondition(errKind(code))
	}
	return false
}

func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	for _, q := range requests() {
		for _, m := range misbehaviours() {
			if m.only != nil && !m.only(q) {
				continue
			}
			t.Run(q.name+"/"+m.name, func(t *testing.T) {
				s := newScene(t)
				if q.before != nil {
					q.before(s)
				}
				fault := q.fault
				fault.Do = m.do(s)
				if q.token {
					s.tokens.AddFault(fault)
				} else {
					s.srv.AddFault(fault)
				}
				r := remote(t, s.srv.Host+"/a/b:v1", creds(registry.Credentials{Username: "joe", Secret: secret}), func(o *registry.Options) {
					o.StallTimeout, o.Headers = 10*time.Second, http.Header{"X-Secret": {secret}}
					if strings.HasPrefix(m.name, "stalls") {
						o.StallTimeout = 60 * time.Millisecond
					}
				})
				began := time.Now()
				err := q.do(t.Context(), s, r)
				if time.Since(began) > 8*time.Second {
					t.Errorf("it took %s", time.Since(began))
				}
				r.Close()
				s.check(t)
				switch {
				case err == nil:
					if !harmless(q, m) {
						t.Error("it succeeded")
					}
					return
				case errors.Is(err, context.Canceled), strings.Contains(err.Error(), secret), strings.Contains(err.Error(), "signature"), strings.Contains(err.Error(), "state="):
					t.Errorf("error %q", err)
				case !m.kind(err) && !(harmless(q, m) && anyKind(err)):
					t.Errorf("error of the wrong kind: %v", err)
				}
				if !strings.Contains(err.Error(), "127.0.0.1:") || !strings.Contains(err.Error(), m.says) {
					t.Errorf("%q does not name the host and %q", err, m.says)
				}
			})
		}
	}
}

func newScene(t *testing.T) *scene {
	s := &scene{srv: registrytest.New(t), other: registrytest.New(t)}
	s.manifest, s.blob, s.data = put(s.srv, 20_000)
	s.tokens = registrytest.NewTokenServer(t, "joe", secret)
	s.srv.RequireToken(s.tokens)
	return s
}

// check: what was meant for one host did not go to the other.
func (s *scene) check(t *testing.T) {
	t.Helper()
	for _, q := range s.other.Requests() {
		if q.Authorization != "" || strings.Contains(q.Query, secret) || q.Header.Get("X-Secret") != "" {
			t.Errorf("the other host was sent %+v", q)
		}
	}
}

// Nothing stays behind when everything has gone wrong for a while.
func TestMisbehaviourLeaksNothing(t *testing.T) {
	run := func() {
		s := newScene(t)
		for _, q := range requests() {
			for _, m := range misbehaviours()[:9] {
				if m.only != nil && !m.only(q) {
					continue
				}
				s.srv.ClearFaults()
				fault := q.fault
				fault.Do, fault.Times = m.do(s), 2
				s.srv.AddFault(fault)
				r, err := registry.NewRemote(s.srv.Host+"/a/b:v1", registry.Options{Retry: quick, StallTimeout: 20 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				q.do(t.Context(), s, r)
				r.Close()
			}
		}
		s.srv.Stop()
		s.other.Stop()
		s.tokens.Stop()
	}
	run()
	goroutines, files := settle(0, 0)
	run()
	if g, f := settle(goroutines+2, files+2); g > goroutines+2 || f > files+2 {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors before, %d and %d after\n%s", goroutines, files, g, f, buf[:runtime.Stack(buf, true)])
	}
}

// settle waits for goroutines and descriptors to go.
func settle(goroutines, files int) (g, f int) {
	for range 100 {
		g = runtime.NumGoroutine()
		fds, _ := os.ReadDir("/proc/self/fd")
		if f = len(fds); g <= goroutines && f <= files {
			break
		}
		wait := time.NewTimer(10 * time.Millisecond)
		<-wait.C
	}
	return g, f
}
