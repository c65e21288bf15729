// Package registry speaks the OCI distribution protocol with the hosts that a
// reference resolves to.
package registry

import (
	"context"
	"net/http"
)

// Credentials for a host. Secrets are never logged.
type Credentials struct {
	Username string
	Secret   string
	// Header is a complete Authorization header; takes precedence.
	Header string
}

// CredentialsFunc looks up the credentials for a host ("registry.example:5000")
// of a reference; none is the zero value.
type CredentialsFunc func(ctx context.Context, reference, host string) (Credentials, error)

// Options of NewRemote.
type Options struct {
	// Credentials may be nil.
	Credentials CredentialsFunc
	Headers     http.Header
	// HostDir holds <host>/hosts.toml files; may be empty.
	HostDir string
	// DefaultScheme "http" forces plain HTTP where hosts.toml says nothing;
	// hosts on loopback are tried with HTTP after HTTPS failed anyway.
	DefaultScheme string
	// SkipVerify turns the check of TLS certificates off.
	SkipVerify bool
	// CACert, ClientCert, ClientKey are PEM files, or empty.
	CACert, ClientCert, ClientKey string
	// HTTPDump and HTTPTrace write requests to the log, secrets left out.
	HTTPDump, HTTPTrace bool
}

// Remote is a reference at its registry.
type Remote struct{}

// NewRemote parses the reference ("host/repository:tag", "…@digest") and makes
// a remote; nothing is sent. errdefs.ErrInvalidArgument when it is malformed.
func NewRemote(reference string, opts Options) (*Remote, error) { return nil, nil }
