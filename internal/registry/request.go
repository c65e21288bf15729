package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const maxRedirects = 10

// storeRate, in bytes per second, is how slowly a server may store what it has
// received.
const storeRate = 4 << 20

// errStalled is the cause of a request that was given up because nothing moved.
var errStalled = errors.New("nothing was received for too long")

// call is a request before it is addressed to a host.
type call struct {
	// doing says what is asked for, for errors: "resolve busybox:latest".
	doing  string
	method string
	// path below the API's root, with its leading slash; or an absolute URL, as
	// the answer to an earlier request gave it.
	path     string
	absolute *url.URL
	query    url.Values
	header   http.Header
	scopes   []string
	// body opens the request's body, again for each attempt; nil when there is none.
	body func() (io.ReadCloser, error)
	size int64
	// accept are the answers that are not errors.
	accept []int
	// patient asks again even where another host could stand in; once never
	// asks again after the request has been sent.
	patient, once bool
	// stores is how many bytes the server has to store before it answers, which
	// takes some of them minutes for a large blob.
	stores int64
}

// attempts of a call.
func (h *host) attemptsOf(c *call) int {
	switch {
	case c.once:
		return 1
	case c.patient || h.attempts == 0:
		return h.opts.Retry.Attempts
	}
	return h.attempts
}

func (c *call) accepts(status int) bool {
	for _, s := range c.accept {
		if s == status {
			return true
		}
	}
	return false
}

func (h *host) url(c *call) *url.URL {
	u := c.absolute
	if u == nil {
		u = &url.URL{Scheme: h.scheme, Host: h.name, Path: h.path + c.path}
		if h.plain.Load() {
			u.Scheme = "http"
		}
	} else {
		u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	}
	q := u.Query()
	for k, vs := range c.query {
		for _, v := range vs {
			q.Add(k, v)
		}
	}
	if h.namespace != "" && c.absolute == nil {
		q.Set("ns", h.namespace)
	}
	if len(c.query) > 0 || h.namespace != "" && c.absolute == nil {
		u.RawQuery = q.Encode()
	}
	return u
}

// do sends a request, with authorisation as the host asks for it and again when
// a failure may pass. The caller closes the body of the answer, whose status is
// one of those accepted; every other one comes back as an error.
func (h *host) do(ctx context.Context, c call) (*http.Response, error) {
	authorised, fellBack := false, false
	for attempt := 1; ; {
		if err := h.auth.renew(ctx, c.scopes); err != nil {
			return nil, fmt.Errorf("registry %s: cannot %s: %w", h.name, c.doing, err)
		}
		resp, err := h.send(ctx, &c)
		if err != nil && !fellBack && h.fallBack(err) {
			fellBack = true
			continue
		}
		if err == nil && c.accepts(resp.StatusCode) {
			return resp, nil
		}
		if err == nil && resp.StatusCode == http.StatusUnauthorized && !authorised && h.owns(resp.Request.URL) {
			authorised = true
			challenges := resp.Header.Values("WWW-Authenticate")
			drain(resp)
			ok, err := h.auth.answer(ctx, challenges, resp.Request.Header.Get("Authorization"), c.scopes)
			if err != nil {
				return nil, fmt.Errorf("registry %s: cannot %s: %w", h.name, c.doing, err)
			}
			if ok {
				continue
			}
			return nil, h.statusError(&c, resp, nil)
		}
		var pause time.Duration
		retry := false
		if err == nil {
			pause, retry = h.retryStatus(resp, attempt < h.attemptsOf(&c), attempt)
			body := readError(resp)
			err = h.statusError(&c, resp, body)
		} else {
			pause, retry = h.retryError(ctx, err, attempt < h.attemptsOf(&c), attempt)
			if ctx.Err() == nil {
				h.opts.Network.doubt(h, err)
			}
			err = h.transportError(ctx, &c, err)
		}
		if !retry {
			return nil, err
		}
		attempt++
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("registry %s: cannot %s: %w", h.name, c.doing, context.Cause(ctx))
		}
	}
}

// owns tells whether a URL is of this host itself and not of where it redirected
// to; in plain HTTP only if that is how the host is spoken to.
func (h *host) owns(u *url.URL) bool {
	return strings.EqualFold(u.Host, h.name) && (u.Scheme == "https" || h.scheme == "http" || h.plain.Load())
}

// send does one attempt. The body of the answer is watched for stalls.
func (h *host) send(parent context.Context, c *call) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(parent)
	dog := newWatchdog(h.opts.StallTimeout, func() { cancel(errStalled) })
	dog.patience = time.Duration(float64(c.stores) / storeRate * float64(time.Second))
	if c.body == nil && c.stores > 0 {
		dog.wait()
	}
	u := h.url(c)
	req, err := http.NewRequestWithContext(ctx, c.method, u.String(), nil)
	if err != nil {
		dog.stop()
		cancel(nil)
		return nil, err
	}
	if c.body != nil {
		open := func() (io.ReadCloser, error) {
			b, err := c.body()
			if err != nil {
				return nil, err
			}
			return &watchedUpload{ReadCloser: b, dog: dog, left: c.size}, nil
		}
		if req.Body, err = open(); err != nil {
			dog.stop()
			cancel(nil)
			return nil, err
		}
		req.GetBody, req.ContentLength = open, c.size
		if c.size == 0 {
			req.Body.Close()
			req.Body = http.NoBody
		}
	}
	req.Header.Set("User-Agent", "berth")
	headers := []http.Header{h.opts.Headers, h.header, c.header}
	if !h.owns(u) {
		// What is configured for this host, secrets perhaps, is not for the one
		// that it sends an upload to.
		headers = headers[2:]
	}
	for _, hd := range headers {
		for k, vs := range hd {
			req.Header[http.CanonicalHeaderKey(k)] = vs
		}
	}
	if h.owns(u) {
		h.auth.authorise(req, c.scopes)
	}
	h.logRequest(req)
	start := time.Now()
	resp, err := h.client.Do(req)
	h.logAnswer(req, resp, err, time.Since(start))
	dog.pause()
	if err != nil {
		dog.stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &watchedBody{body: resp.Body, dog: dog, ctx: ctx, cancel: cancel}
	return resp, nil
}

// checkRedirect follows a redirect without taking along what is meant for the
// first host alone: its authorisation, and headers that somebody configured.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect to scheme %q", req.URL.Scheme)
	}
	// Headers are rebuilt from the first request on every hop: a chain that has
	// left its origin once has left it for good.
	left := !sameOrigin(via[0].URL, req.URL)
	for _, v := range via[1:] {
		left = left || !sameOrigin(via[0].URL, v.URL)
	}
	if left {
		for k := range req.Header {
			switch k {
			case "Accept", "Range", "User-Agent", "Content-Type", "Content-Range":
			default:
				req.Header.Del(k)
			}
		}
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return u.Scheme
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// fallBack switches a host on this machine to plain HTTP when it does not
// understand TLS; true when the request is to be sent again.
func (h *host) fallBack(err error) bool {
	var record tls.RecordHeaderError
	if h.scheme != "https" || !h.mayFallBack {
		return false
	}
	if !errors.Is(err, http.ErrSchemeMismatch) && !errors.As(err, &record) {
		return false
	}
	h.plain.Store(true)
	return true
}

// retryStatus tells whether an answer is worth asking again, and after what pause.
func (h *host) retryStatus(resp *http.Response, more bool, attempt int) (time.Duration, bool) {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	if !more {
		return 0, false
	}
	if d, ok := retryAfter(resp); ok {
		return d, d <= h.opts.Retry.MaxPause
	}
	return h.opts.Retry.pause(attempt), true
}

// retryAfter reads the header Retry-After: seconds, or a date (RFC 9110, 10.2.3).
func retryAfter(resp *http.Response) (time.Duration, bool) {
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return 0, false
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(min(n, 1<<20)) * time.Second, true
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at)), true
	}
	return 0, false
}

// retryError tells whether a failed connection is worth another attempt.
// Nothing listening, an unknown host and a certificate that does not fit will
// not change within seconds.
func (h *host) retryError(ctx context.Context, err error, more bool, attempt int) (time.Duration, bool) {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	switch {
	case ctx.Err() != nil, !more:
		return 0, false
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, http.ErrSchemeMismatch),
		errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &cert), errors.As(err, &unknown):
		return 0, false
	case errors.Is(err, errRequestBody):
		return 0, false
	}
	return h.opts.Retry.pause(attempt), true
}

// pause before the attempt after the nth, with jitter.
func (r Retry) pause(n int) time.Duration {
	d := min(r.Pause<<min(n-1, 16), r.MaxPause)
	return d/2 + rand.N(d/2+1)
}

// transportError describes a request that got no answer.
func (h *host) transportError(ctx context.Context, c *call, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("registry %s: cannot %s: %w", h.name, c.doing, context.Cause(ctx))
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which may hold a secret
	}
	switch {
	case errors.Is(err, errStalled):
		return fmt.Errorf("registry %s: cannot %s: no answer within %s: %w", h.name, c.doing, h.opts.StallTimeout, errdefs.ErrUnavailable)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("registry %s: cannot %s: it speaks plain HTTP, not HTTPS (allow that with --plain-http or an http:// server in hosts.toml): %w", h.name, c.doing, errdefs.ErrFailedPrecondition)
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return fmt.Errorf("registry %s: cannot %s: %w (name its CA with --tlscacert or in hosts.toml): %w", h.name, c.doing, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("registry %s: cannot %s: %w: %w", h.name, c.doing, err, errdefs.ErrUnavailable)
}

// logRequest and logAnswer write what Options.HTTPDump and HTTPTrace ask for.
func (h *host) logRequest(req *http.Request) {
	if !h.opts.HTTPDump {
		return
	}
	args := []any{"method", req.Method, "url", redact(req.URL)}
	for k, v := range req.Header {
		switch k {
		case "Accept", "Range", "User-Agent", "Content-Type", "Content-Range":
			args = append(args, "header."+k, strings.Join(v, ", "))
		default: // configured, perhaps, and a secret
			args = append(args, "header."+k, "(hidden)")
		}
	}
	h.opts.Log.Info("registry request", args...)
}

func (h *host) logAnswer(req *http.Request, resp *http.Response, err error, took time.Duration) {
	if !h.opts.HTTPDump && !h.opts.HTTPTrace {
		return
	}
	args := []any{"method", req.Method, "url", redact(req.URL), "took", took}
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		h.opts.Log.Info("registry request failed", append(args, "error", err)...)
		return
	}
	args = append(args, "status", resp.StatusCode, "from", redact(resp.Request.URL))
	if h.opts.HTTPDump {
		for k, v := range resp.Header {
			if k != "Set-Cookie" && k != "Location" {
				args = append(args, "header."+k, strings.Join(v, ", "))
			}
		}
	}
	h.opts.Log.Info("registry answer", args...)
}

// redact writes a URL without its user information and query.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
