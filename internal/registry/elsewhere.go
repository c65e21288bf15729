package registry

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// openElsewhere fetches a layer that is not to be distributed from the URLs
// that its descriptor names. They are an image's word, so nothing is shown to
// them that was meant for a registry, and addresses that only this machine or
// link can reach are not asked.
//
// Differs from containerd: there URLs are tried first, for every kind of blob,
// and whatever their address.
func (b *blob) openElsewhere(notFound error) error {
	errs := []error{notFound}
	for _, s := range b.desc.URLs[:min(len(b.desc.URLs), 4)] {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			continue
		}
		h, err := b.remote.elsewhere(u)
		if err == nil {
			var body io.ReadCloser
			if body, err = b.take(h, call{absolute: u}); err == nil {
				b.body, b.host = body, h
				return nil
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// elsewhere is a host that is no registry.
func (r *Remote) elsewhere(u *url.URL) (*host, error) {
	local := loopback(r.ref.Host)
	refuse := func(u *url.URL) error {
		if ip := net.ParseIP(u.Hostname()); ip != nil && near(ip, local) || loopback(u.Host) && !local {
			return fmt.Errorf("layer at %s: an address of this machine or link, which is not asked: %w", redact(u), errdefs.ErrPermissionDenied)
		}
		return nil
	}
	if err := refuse(u); err != nil {
		return nil, err
	}
	client := newClient(nil, 0)
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if err := refuse(req.URL); err != nil {
			return err
		}
		return checkRedirect(req, via)
	}
	// A name may stand for such an address. Behind a proxy it is the proxy that
	// looks names up, and its own address may well be one.
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy == nil {
		dialer := &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
			host, _, _ := net.SplitHostPort(address)
			host, _, _ = strings.Cut(host, "%") // an IPv6 zone
			if ip := net.ParseIP(host); ip == nil || near(ip, local) {
				return fmt.Errorf("%s is an address of this machine or link, which is not asked for a layer: %w", host, errdefs.ErrPermissionDenied)
			}
			return nil
		}}
		transport := client.Transport.(*http.Transport)
		transport.DialContext, transport.Proxy = dialer.DialContext, nil
	}
	h := &host{name: u.Host, scheme: u.Scheme, opts: r.opts, client: client, attempts: r.opts.Retry.Attempts}
	h.opts.Headers, h.auth = http.Header{}, &authorizer{host: h}
	return h, nil
}

// near tells an address that only this machine, unless local allows that, or
// this link can reach.
func near(ip net.IP, local bool) bool {
	return ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() && !local || ip.IsLoopback() && !local
}
