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
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch opens the content of a descriptor at an offset. The reader yields
// exactly the bytes up to desc.Size or an error, never io.EOF before: a
// connection that breaks or stalls is replaced by one that goes on at the same
// place, on the same host or another, and several fetch ahead where one is slow.
// The bytes are not verified; see Distrust. A layer that is not to be
// distributed, and that no host has, comes from the URLs that the descriptor
// names. The caller closes the reader. ctx ends reads as well.
func (r *Remote) Fetch(ctx context.Context, desc ispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := image.Valid(desc); err != nil {
		return nil, err
	}
	b := &blob{ctx: ctx, remote: r, desc: desc, at: offset, end: desc.Size, since: offset}
	if offset == desc.Size {
		return b, nil
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	if r.opts.Chunk != Sequential && desc.Size-offset >= minPieced {
		return newPieces(b), nil
	}
	return b, nil
}

// blob is a reader of a part of a blob that survives its connections.
type blob struct {
	ctx     context.Context
	remote  *Remote
	desc    ispec.Descriptor
	body    io.ReadCloser
	host    *host
	at, end int64
	// part: the whole is not accepted for what is a part of it.
	part bool
	// since is where the present stretch began, failures how many connections
	// broke in it: a server that gives a little each time is used up to its end,
	// one that gives nothing is not.
	since    int64
	failures int
}

// errNoParts is the error of a blob that must be a part when the server ignores
// ranges.
var errNoParts = errors.New("the server does not give parts")

// progress is how much must arrive for the count of failures to begin anew.
const progress = 64 << 10

func (b *blob) open() error {
	err := b.remote.eachHost(b.ctx, canPull, b.desc.Digest, func(h *host) error {
		body, err := b.openAt(h)
		if err == nil {
			b.body, b.host = body, h
		}
		return err
	})
	if errdefs.IsNotFound(err) && len(b.desc.URLs) > 0 && image.IsNonDistributable(b.desc.MediaType) {
		return b.openElsewhere(err)
	}
	return err
}

func (b *blob) openAt(h *host) (io.ReadCloser, error) {
	kind := "/blobs/"
	if image.IsManifest(b.desc.MediaType) || image.IsIndex(b.desc.MediaType) {
		kind = "/manifests/"
	}
	return b.take(h, call{path: "/" + b.remote.ref.Repository + kind + b.desc.Digest.String(), scopes: b.remote.pullScope()})
}

// take asks a host for the rest and looks at what it says it sends.
func (b *blob) take(h *host, c call) (io.ReadCloser, error) {
	c.doing, c.method = "fetch "+b.desc.Digest.String()+" of "+b.remote.ref.String(), http.MethodGet
	c.header = http.Header{"Accept": {b.desc.MediaType, "*/*;q=0.1"}}
	c.accept = []int{http.StatusOK, http.StatusPartialContent}
	switch {
	case b.end < b.desc.Size:
		c.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.end-1))
	case b.at > 0:
		c.header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
	}
	resp, err := h.do(b.ctx, c)
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
	if b.part {
		resp.Body.Close()
		return nil, fmt.Errorf("registry %s: cannot fetch a part of %s: %w", h.name, b.desc.Digest, errNoParts)
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
	return first, total, err == nil && total >= 0
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		left := b.end - b.at
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
		if b.failures++; b.failures >= b.remote.opts.Retry.Attempts {
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
