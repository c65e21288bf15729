package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifestTypes is what is accepted as a manifest, most wanted first.
var manifestTypes = strings.Join([]string{
	ispec.MediaTypeImageIndex, ispec.MediaTypeImageManifest,
	image.DockerIndex, image.DockerManifest, "*/*;q=0.1",
}, ", ")

func (r *Remote) pullScope() []string { return []string{"repository:" + r.ref.Repository + ":pull"} }

// eachHost asks the hosts one after the other until one gives an answer. Those
// that are known to be silent are left for the end.
func (r *Remote) eachHost(ctx context.Context, c capability, d digest.Digest, ask func(*host) error) error {
	hosts := r.hostsWith(c, d)
	if len(hosts) == 0 {
		return fmt.Errorf("no host is configured that may be asked for %s: %w", r.ref.Host, errdefs.ErrFailedPrecondition)
	}
	var errs []error
	var last error
	try := func(h *host, final bool) (done bool) {
		err := ask(h)
		if err == nil || ctx.Err() != nil {
			last = err
			return true
		}
		if errs = append(errs, err); final {
			last = err // the registry itself: its kind of error is the one to go by
		}
		return false
	}
	var passed []*host
	for i, h := range hosts {
		final := i == len(hosts)-1
		if !final && !r.network.ready(ctx, h) {
			passed = append(passed, h)
			continue
		}
		if try(h, final) {
			return last
		}
	}
	if errdefs.IsUnavailable(last) || len(errs) == 0 {
		for _, h := range passed {
			if try(h, false) {
				return last
			}
		}
	}
	if len(errs) == 1 {
		return last
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == last })
	return fmt.Errorf("%w (before that, %w)", last, errors.Join(errs...))
}

// Resolve finds out what the reference names: digest, size and media type of
// its manifest or index. errdefs.ErrNotFound, ErrUnauthenticated,
// ErrPermissionDenied, ErrResourceExhausted or ErrUnavailable when no host can
// tell.
func (r *Remote) Resolve(ctx context.Context) (ispec.Descriptor, error) {
	var desc ispec.Descriptor
	err := r.eachHost(ctx, canResolve, "", func(h *host) error {
		var err error
		desc, err = r.resolve(ctx, h)
		return err
	})
	return desc, err
}

func (r *Remote) resolve(ctx context.Context, h *host) (ispec.Descriptor, error) {
	c := call{
		doing: "resolve " + r.ref.String(), method: http.MethodHead,
		path:   "/" + r.ref.Repository + "/manifests/" + r.ref.object(),
		header: http.Header{"Accept": {manifestTypes}}, scopes: r.pullScope(),
		accept: []int{http.StatusOK},
	}
	resp, err := h.do(ctx, c)
	if err == nil {
		resp.Body.Close()
		desc, ok := describe(resp)
		if ok && (r.ref.Digest == "" || desc.Digest == r.ref.Digest) {
			return desc, nil
		}
	} else if !headRefused(err) {
		return ispec.Descriptor{}, err
	}
	// A registry that does not say enough: the document itself tells.
	c.method = http.MethodGet
	resp, err = h.do(ctx, c)
	if err != nil {
		return ispec.Descriptor{}, err
	}
	doc, err := readAll(resp.Body, image.MaxManifest)
	resp.Body.Close()
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("registry %s: cannot resolve %s: %w", h.name, r.ref, err)
	}
	mt, err := image.Detect(doc, mediaType(resp))
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("registry %s: %s: %w", h.name, r.ref, err)
	}
	d := digest.FromBytes(doc)
	if r.ref.Digest != "" {
		if d = r.ref.Digest.Algorithm().FromBytes(doc); d != r.ref.Digest {
			return ispec.Descriptor{}, fmt.Errorf("registry %s: wrong manifest for %s: its digest is %s: %w", h.name, r.ref, d, errdefs.ErrFailedPrecondition)
		}
	} else if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != d.String() {
		return ispec.Descriptor{}, fmt.Errorf("registry %s: manifest of %s has the digest %s, but the registry says %.100q: %w", h.name, r.ref, d, said, errdefs.ErrFailedPrecondition)
	}
	desc := ispec.Descriptor{MediaType: mt, Digest: d, Size: int64(len(doc))}
	r.mu.Lock()
	r.resolved[d] = doc
	r.mu.Unlock()
	return desc, nil
}

// headRefused tells whether a failed HEAD is worth a GET: some registries do
// not know HEAD. What stands for itself (no such thing, no entry) does not.
func headRefused(err error) bool {
	return errdefs.IsFailedPrecondition(err)
}

// describe makes a descriptor from the headers of an answer to HEAD; false when
// they are not all there.
func describe(resp *http.Response) (ispec.Descriptor, bool) {
	desc := ispec.Descriptor{MediaType: mediaType(resp), Size: resp.ContentLength}
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil || desc.Size <= 0 || desc.Size > image.MaxManifest {
		return desc, false
	}
	desc.Digest = d
	switch desc.MediaType {
	case image.DockerSchema1, image.DockerSchema1Unsigned:
		return desc, true // refused by the caller, with a reason
	}
	return desc, image.IsIndex(desc.MediaType) || image.IsManifest(desc.MediaType)
}

func mediaType(resp *http.Response) string {
	mt, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(mt)
}

// readAll reads a body that must not be longer than limit.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w: %w", err, errdefs.ErrUnavailable)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("the answer is larger than %d bytes: %w", limit, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// FetchAll fetches a small blob or manifest whole; its size and digest are
// those of desc. errdefs.ErrInvalidArgument when it is larger than limit,
// ErrFailedPrecondition when every host serves something else.
func (r *Remote) FetchAll(ctx context.Context, desc ispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%s is %d bytes: at most %d are accepted: %w", desc.Digest, desc.Size, limit, errdefs.ErrInvalidArgument)
	}
	r.mu.Lock()
	doc, ok := r.resolved[desc.Digest]
	delete(r.resolved, desc.Digest)
	r.mu.Unlock()
	if ok {
		return doc, nil
	}
	var err error
	for range max(2, len(r.hosts)) {
		var body io.ReadCloser
		if body, err = r.Fetch(ctx, desc, 0); err != nil {
			return nil, err
		}
		doc, err = readAll(body, desc.Size)
		body.Close()
		if err != nil {
			return nil, err
		}
		if got := desc.Digest.Algorithm().FromBytes(doc); got != desc.Digest {
			err = fmt.Errorf("registry %s: wrong bytes for %s of %s: their digest is %s: %w", r.ref.Host, desc.Digest, r.ref, got, errdefs.ErrFailedPrecondition)
			r.Distrust(desc.Digest)
			continue
		}
		return doc, nil
	}
	return nil, err
}
