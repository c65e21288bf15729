package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

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

// eachHost asks the hosts one after the other until one gives an answer.
func (r *Remote) eachHost(ctx context.Context, c capability, d digest.Digest, ask func(*host) error) error {
	hosts := r.hostsWith(c, d)
	if len(hosts) == 0 {
		return fmt.Errorf("no host is configured that may be asked for %s: %w", r.ref.Host, errdefs.ErrFailedPrecondition)
	}
	var errs []error
	for _, h := range hosts {
		err := ask(h)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	// The last host is the registry itself: its kind of error is the one to go by.
	last := len(errs) - 1
	return fmt.Errorf("%w (before that, %w)", errs[last], errors.Join(errs[:last]...))
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
	for range 2 {
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

// Fetch opens the content of a descriptor at an offset. The reader yields
// exactly the bytes up to desc.Size or an error, never io.EOF before: a
// connection that breaks or stalls is replaced by one that goes on at the same
// place, on the same host or another. The bytes are not verified; see Distrust.
// The caller closes it. ctx ends reads as well.
func (r *Remote) Fetch(ctx context.Context, desc ispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := image.Valid(desc); err != nil {
		return nil, err
	}
	b := &blob{ctx: ctx, remote: r, desc: desc, at: offset}
	if offset == desc.Size {
		return b, nil
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is a reader that survives its connections.
type blob struct {
	ctx    context.Context
	remote *Remote
	desc   ispec.Descriptor
	body   io.ReadCloser
	host   *host
	at     int64
	// since is where the present stretch began, failures how many connections
	// broke in it: a server that gives a little each time is used up to its end,
	// one that gives nothing is not.
	since    int64
	failures int
}

// progress is how much must arrive for the count of failures to begin anew.
const progress = 64 << 10

func (b *blob) open() error {
	return b.remote.eachHost(b.ctx, canPull, b.desc.Digest, func(h *host) error {
		body, err := b.openAt(h)
		if err == nil {
			b.body, b.host = body, h
		}
		return err
	})
}

func (b *blob) openAt(h *host) (io.ReadCloser, error) {
	kind := "/blobs/"
	header := http.Header{"Accept": {b.desc.MediaType, "*/*;q=0.1"}}
	if image.IsManifest(b.desc.MediaType) || image.IsIndex(b.desc.MediaType) {
		kind = "/manifests/"
	}
	if b.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
	}
	resp, err := h.do(b.ctx, call{
		doing: "fetch " + b.desc.Digest.String() + " of " + b.remote.ref.String(), method: http.MethodGet,
		path:   "/" + b.remote.ref.Repository + kind + b.desc.Digest.String(),
		header: header, scopes: b.remote.pullScope(),
		accept: []int{http.StatusOK, http.StatusPartialContent},
	})
	if err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (io.ReadCloser, error) {
		resp.Body.Close()
		return nil, fmt.Errorf("registry %s: cannot fetch %s: %s: %w", h.name, b.desc.Digest, fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
	}
	if resp.StatusCode == http.StatusPartialContent {
		first, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != b.at || total >= 0 && total != b.desc.Size {
			return fail("it answers the request for bytes from %d on with %q", b.at, oneLine(resp.Header.Get("Content-Range")))
		}
		return resp.Body, nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
		return fail("it is %d bytes there, %d according to the manifest", resp.ContentLength, b.desc.Size)
	}
	// The range was ignored: what we have already comes again.
	if _, err := io.CopyN(io.Discard, resp.Body, b.at); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("registry %s: cannot fetch %s: %w: %w", h.name, b.desc.Digest, err, errdefs.ErrUnavailable)
	}
	return resp.Body, nil
}

// contentRange parses "bytes first-last/total"; total is -1 when it is "*".
func contentRange(s string) (first, total int64, ok bool) {
	rest, ok1 := strings.CutPrefix(s, "bytes ")
	span, tot, ok2 := strings.Cut(rest, "/")
	from, _, ok3 := strings.Cut(span, "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if !ok1 || !ok2 || !ok3 || err != nil || first < 0 {
		return 0, 0, false
	}
	if tot == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(tot, 10, 64)
	return first, total, err == nil
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		left := b.desc.Size - b.at
		if left <= 0 {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if b.body == nil {
			return 0, errors.New("read of a closed blob")
		}
		n, err := b.body.Read(p[:min(int64(len(p)), left)])
		b.at += int64(n)
		if n > 0 {
			if b.at-b.since >= progress {
				b.since, b.failures = b.at, 0
			}
			return n, nil // an error comes again with the next read
		}
		if err == nil {
			continue
		}
		if err := b.reopen(err); err != nil {
			return 0, err
		}
	}
}

// reopen goes on after a connection ended too early.
func (b *blob) reopen(why error) error {
	b.body.Close()
	if why == io.EOF {
		why = io.ErrUnexpectedEOF
	}
	host := b.host
	for {
		if b.ctx.Err() != nil {
			return fmt.Errorf("fetch %s: %w", b.desc.Digest, context.Cause(b.ctx))
		}
		if b.failures++; b.failures >= host.opts.Retry.Attempts {
			if errors.Is(why, errStalled) {
				why = fmt.Errorf("nothing was received for %s", host.opts.StallTimeout)
			}
			return fmt.Errorf("registry %s: cannot fetch %s: the connection ended after %d of %d bytes, %d times in a row: %w: %w",
				host.name, b.desc.Digest, b.at, b.desc.Size, b.failures, why, errdefs.ErrUnavailable)
		}
		if b.failures > 1 {
			select {
			case <-time.After(host.opts.Retry.pause(b.failures - 1)):
			case <-b.ctx.Done():
				continue
			}
		}
		if err := b.open(); err != nil {
			return err
		}
		return nil
	}
}

func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}
