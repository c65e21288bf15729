package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// upload is one blob on its way to a registry (distribution-spec, "Pushing
// blobs"): in one request, if that works. After a cut it goes on at the byte
// that the registry says it has, and begins anew where the registry has
// forgotten. A registry that finds one request too large gets chunks.
type upload struct {
	*Remote
	h     *host
	up    Upload
	start call
	loc   *url.URL // of the session; changes with every answer
	at    int64    // what the registry has
	chunk int64    // 0: all in one request
	least int64    // what the registry wants a chunk to be at least
}

// Bounds of chunks.
const (
	usualChunk = 16 << 20
	maxChunk   = 512 << 20
)

// upload sends the bytes to where the answer to the start of an upload points.
func (r *Remote) upload(ctx context.Context, h *host, up Upload, start call, started *http.Response) error {
	u := &upload{Remote: r, h: h, up: up, start: start}
	if err := u.session(started); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		had := u.at
		err := u.send(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if attempt >= h.opts.Retry.Attempts || errors.Is(err, errRequestBody) {
			return err
		}
		pause := h.opts.Retry.pause(attempt)
		switch {
		case errors.Is(err, errTooLarge):
			if u.chunk == 0 {
				u.chunk = max(usualChunk, u.least)
			} else if u.chunk/2 < max(u.least, 1<<20) {
				return err
			} else {
				u.chunk /= 2
			}
			pause = 0
		case errdefs.IsUnavailable(err), errdefs.IsNotFound(err), errdefs.IsOutOfRange(err), errdefs.IsResourceExhausted(err):
		default:
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("registry %s: cannot push %s: %w", h.name, up.Desc.Digest, context.Cause(ctx))
		}
		if err := u.resume(ctx); err != nil {
			return err
		}
		if u.at > had || pause == 0 {
			attempt = 0 // it moves, or the chunks became smaller
		}
	}
}

// abandon ends an upload that was begun and is not wanted. One that cannot be
// ended is the registry's to clean up, as one that was cut is.
func (r *Remote) abandon(ctx context.Context, h *host, started *http.Response) {
	u := &upload{Remote: r, h: h}
	if u.session(started) != nil {
		return
	}
	resp, err := h.do(ctx, call{
		doing: "end an upload", method: http.MethodDelete, absolute: u.loc, scopes: r.pushScope(), once: true,
		accept: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted},
	})
	if err == nil {
		drain(resp)
	}
}

// session takes the place and the state of the upload from an answer.
func (u *upload) session(resp *http.Response) error {
	drain(resp)
	fail := func(where string) error {
		return fmt.Errorf("registry %s: cannot push %s: it wants the bytes at %q: %w", u.h.name, u.up.Desc.Digest, where, errdefs.ErrFailedPrecondition)
	}
	loc, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || loc.String() == "" {
		return fmt.Errorf("registry %s: cannot push %s: it does not say where to: %w", u.h.name, u.up.Desc.Digest, errdefs.ErrFailedPrecondition)
	}
	loc = resp.Request.URL.ResolveReference(loc)
	if loc.Scheme != "http" && loc.Scheme != "https" || loc.Host == "" {
		return fail(redact(loc))
	}
	if loc.Scheme == "http" && resp.Request.URL.Scheme == "https" && strings.EqualFold(loc.Host, resp.Request.URL.Host) {
		loc.Scheme = "https" // a proxy that ends TLS has not told its registry
	}
	u.loc = loc
	if n, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && n > 0 && n <= maxChunk {
		u.least = n
	}
	return nil
}

// send sends what is missing and closes the session.
func (u *upload) send(ctx context.Context) error {
	if u.chunk == 0 && u.at == 0 {
		return u.finish(ctx, u.up.Open, u.up.Desc.Size)
	}
	for size := u.up.Desc.Size; u.at < size; {
		n := size - u.at
		if u.chunk > 0 {
			n = min(n, u.chunk)
		}
		if err := u.patch(ctx, n); err != nil {
			return err
		}
	}
	return u.finish(ctx, nil, 0)
}

// patch sends the next n bytes.
func (u *upload) patch(ctx context.Context, n int64) error {
	resp, err := u.h.do(ctx, call{
		doing: "push a part of " + u.up.Desc.Digest.String() + " to " + u.ref.String(), method: http.MethodPatch, absolute: u.loc,
		header: http.Header{"Content-Type": {"application/octet-stream"}, "Content-Range": {fmt.Sprintf("%d-%d", u.at, u.at+n-1)}},
		scopes: u.pushScope(), body: u.section(u.at, n), size: n, once: true, stores: n,
		accept: []int{http.StatusAccepted, http.StatusCreated, http.StatusNoContent, http.StatusRequestEntityTooLarge},
	})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusRequestEntityTooLarge {
		return u.tooLarge(resp)
	}
	if err := u.session(resp); err != nil {
		return err
	}
	u.at += n
	return nil
}

// finish closes the session, with the whole blob as its body or none.
func (u *upload) finish(ctx context.Context, body func() (io.ReadCloser, error), size int64) error {
	resp, err := u.h.do(ctx, call{
		doing: "push " + u.up.Desc.Digest.String() + " to " + u.ref.String(), method: http.MethodPut, absolute: u.loc,
		query:  url.Values{"digest": {u.up.Desc.Digest.String()}},
		header: http.Header{"Content-Type": {"application/octet-stream"}}, scopes: u.pushScope(),
		body: body, size: size, once: true, stores: u.up.Desc.Size,
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusNoContent, http.StatusAccepted, http.StatusRequestEntityTooLarge},
	})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusRequestEntityTooLarge {
		return u.tooLarge(resp)
	}
	drain(resp)
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != u.up.Desc.Digest.String() {
		return fmt.Errorf("registry %s stored the blob %s as %.100q: %w", u.h.name, u.up.Desc.Digest, said, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// errTooLarge marks the answer 413.
var errTooLarge = errors.New("the request is too large for it")

func (u *upload) tooLarge(resp *http.Response) error {
	drain(resp)
	return fmt.Errorf("registry %s: cannot push %s: 413: %w: %w", u.h.name, u.up.Desc.Digest, errTooLarge, errdefs.ErrFailedPrecondition)
}

// resume finds out what the registry has of the blob; a new session begins when
// it does not say.
func (u *upload) resume(ctx context.Context) error {
	resp, err := u.h.do(ctx, call{
		doing: "look up the upload of " + u.up.Desc.Digest.String(), method: http.MethodGet, absolute: u.loc, scopes: u.pushScope(),
		accept: []int{http.StatusNoContent, http.StatusAccepted, http.StatusOK}, once: true,
	})
	if err == nil {
		first, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
		n, numErr := strconv.ParseInt(last, 10, 64)
		if ok && first == "0" && numErr == nil && n >= 0 && n < u.up.Desc.Size {
			if u.session(resp) == nil {
				// Compat: "0-0" is what some say when they have nothing, and others when they have one byte.
				if n > 0 {
					u.at = n + 1
					return nil
				}
			}
		} else {
			drain(resp)
		}
	} else if ctx.Err() != nil {
		return err
	}
	if resp, err = u.h.do(ctx, u.start); err != nil {
		return err
	}
	u.at = 0
	return u.session(resp)
}

// section opens n bytes from an offset on.
func (u *upload) section(off, n int64) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		r, err := u.up.Open()
		if err != nil {
			return nil, err
		}
		if s, ok := r.(io.Seeker); ok {
			_, err = s.Seek(off, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, r, off)
		}
		if err != nil {
			r.Close()
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(r, n), r}, nil
	}
}
