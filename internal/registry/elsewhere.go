package registry

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

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
	ip := net.ParseIP(u.Hostname())
	if ip != nil && (ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()) || loopback(u.Host) && !loopback(r.ref.Host) {
		return nil, fmt.Errorf("layer at %s: an address of this machine or link, which is not asked: %w", redact(u), errdefs.ErrPermissionDenied)
	}
	h := &host{name: u.Host, scheme: u.Scheme, opts: r.opts, client: newClient(nil, 0), attempts: r.opts.Retry.Attempts}
	h.opts.Headers, h.auth = http.Header{}, &authorizer{host: h}
	return h, nil
}
