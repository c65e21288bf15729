package registry

import (
	"fmt"
	"net"
	"strings"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Reference is a parsed image reference with an explicit host.
type Reference struct {
	// Host is the registry's name with its port, if it has one.
	Host string
	// Repository is the path below the host.
	Repository string
	Tag        string
	Digest     digest.Digest
}

// ParseReference parses "host[:port]/repository[:tag][@digest]". The host is
// not guessed: names such as "busybox" are errdefs.ErrInvalidArgument, with
// what to write instead. At least a tag or a digest is needed.
func ParseReference(s string) (Reference, error) {
	bad := func(format string, args ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("reference %.512q: %s: %w", s, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if strings.Contains(s, "://") {
		return bad("write it without a scheme, as host/repository:tag")
	}
	first, _, slash := strings.Cut(s, "/")
	if !slash || !strings.ContainsAny(first, ".:") && first != "localhost" {
		if n, err := image.ParseDockerName(s); err == nil {
			return bad("a host is needed, perhaps %s", n.Tagged())
		}
		return bad("a host is needed, as in host/repository:tag")
	}
	n, err := image.ParseName(s)
	if err != nil {
		return Reference{}, err
	}
	r := Reference{Host: n.Domain, Repository: n.Path, Tag: n.Tag, Digest: n.Digest}
	if r.Tag == "" && r.Digest == "" {
		return bad("a tag or a digest is needed, perhaps %s:latest", s)
	}
	return r, nil
}

func (r Reference) String() string {
	s := r.Host + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// object is what the manifest is asked for by: the digest, if there is one.
func (r Reference) object() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// Hostname is the host without its port; labels on content name it.
func (r Reference) Hostname() string {
	if h, _, err := net.SplitHostPort(r.Host); err == nil {
		return h
	}
	return strings.Trim(r.Host, "[]")
}

// loopback tells whether a host[:port] is this machine, by its name alone.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
