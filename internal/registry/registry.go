// Package registry speaks the OCI distribution protocol with the hosts that a
// reference resolves to.
//
// A Remote is one reference ("host/repository:tag") and the list of hosts that
// may serve it, best first: mirrors of hosts.toml, then the registry itself.
// Each host has what it is capable of, an HTTP client and its authorisation of
// its own; what one host refuses, or fails to give, is asked of the next.
//
// Trust: nothing that a registry says is believed. Answers are bounded in size,
// digests are computed from the bytes, credentials go to the host that they are
// for (and the token service it names) and never along with a redirect to
// another one, and URLs appear in errors without user information and query,
// which may hold secrets.
//
// Liveness: a connection on which nothing moves for StallTimeout is given up,
// and a blob goes on where it stopped, on a new connection, with a range
// request. Who has been sent a blob gets time to store it. Answers 429 and 5xx are asked again after a pause that grows, or
// that the server names, within bounds; where another host can stand in, it is
// asked instead. A Network remembers for all remotes which hosts are silent, so
// that a dead mirror is waited for once.
//
// Large blobs over slow connections are fetched in pieces, several at a time;
// Network bounds the memory of all of them together.
//
// Locks: Network.mu, Remote.mu and authorizer.mu guard small caches and are
// never held over a request, except that one goroutine at a time asks for a token.
package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Credentials for a host. Secrets are never logged. A secret without a user
// name is an identity token, to be exchanged at the token service.
type Credentials struct {
	Username string
	Secret   string
	// Header is a complete Authorization header; takes precedence.
	Header string
}

// CredentialsFunc looks up the credentials for a host ("registry.example:5000")
// of a reference; none is the zero value.
type CredentialsFunc func(ctx context.Context, reference, host string) (Credentials, error)

// Never, as a timeout, means that there is none.
const Never time.Duration = -1

// Options of NewRemote.
type Options struct {
	// Credentials may be nil.
	Credentials CredentialsFunc
	Headers     http.Header
	// HostDir holds <host>/hosts.toml files; may be empty.
	HostDir string
	// DefaultScheme "http" forces plain HTTP where hosts.toml says nothing.
	// Hosts on loopback that answer HTTPS with plain HTTP are spoken to in
	// plain HTTP anyway.
	DefaultScheme string
	// SkipVerify turns the check of TLS certificates off.
	SkipVerify bool
	// CACert, ClientCert, ClientKey are PEM files, or empty.
	CACert, ClientCert, ClientKey string
	// HTTPDump and HTTPTrace write requests to Log, secrets left out.
	HTTPDump, HTTPTrace bool
	Log                 *slog.Logger
	// StallTimeout bounds how long nothing may move on a connection: 0 is the
	// default of 30 s. A configured "0" is to be passed as Never.
	StallTimeout time.Duration
	// Retry says how often and how patiently a request is repeated; the zero
	// value is the default.
	Retry Retry
	// Network is shared by the remotes of a process; nil makes one of its own.
	Network *Network
	// Chunk is the size of the pieces, in bytes, in which large blobs are fetched over several
	// connections at a time: 0 does so when one connection turns out to be slow,
	// Sequential never.
	Chunk int64
	// Connections bounds how many of them fetch one blob; 0 means 4.
	Connections int
}

// Sequential, as Options.Chunk, fetches every blob over one connection.
const Sequential int64 = -1

// Retry bounds the repetition of requests that failed for a reason that may pass.
type Retry struct {
	// Attempts per request, or per stretch of a blob without progress; 0 means 5.
	Attempts int
	// Pause before the second attempt, doubled each time; 0 means 200 ms.
	Pause time.Duration
	// MaxPause bounds a pause, also one that the server asks for: it is not
	// waited longer, the request fails instead. 0 means 60 s.
	MaxPause time.Duration
}

func (o *Options) defaults() {
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.Retry.Attempts <= 0 {
		o.Retry.Attempts = 5
	}
	if o.Retry.Pause <= 0 {
		o.Retry.Pause = 200 * time.Millisecond
	}
	if o.Retry.MaxPause <= 0 {
		o.Retry.MaxPause = time.Minute
	}
	if o.Network == nil {
		o.Network = NewNetwork()
	}
	if o.Connections <= 0 {
		o.Connections = 4
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Remote is a reference at its registry. It is safe for concurrent use.
type Remote struct {
	ref     Reference
	hosts   []*host
	opts    Options
	network *Network

	mu       sync.Mutex
	distrust map[digest.Digest]int // how often a digest was served wrongly
	resolved map[digest.Digest][]byte
}

// NewRemote parses the reference ("host/repository:tag", "…@digest") and makes
// a remote; nothing is sent. errdefs.ErrInvalidArgument when it, or a
// hosts.toml that applies, is malformed.
func NewRemote(reference string, opts Options) (*Remote, error) {
	ref, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	opts.defaults()
	hosts, err := hostsFor(ref, opts)
	if err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", ref.Host, err)
	}
	for i, h := range hosts {
		h.attempts = opts.Retry.Attempts
		for _, other := range hosts[i+1:] {
			if other.capabilities&(canPull|canResolve) == canPull|canResolve {
				h.attempts = 1
			}
		}
	}
	return &Remote{ref: ref, hosts: hosts, opts: opts, network: opts.Network, distrust: map[digest.Digest]int{}, resolved: map[digest.Digest][]byte{}}, nil
}

// Reference of the remote.
func (r *Remote) Reference() Reference { return r.ref }

// String describes the remote in progress reports.
func (r *Remote) String() string { return "OCI Registry (" + r.ref.String() + ")" }

// Close drops idle connections. Readers that are open stay usable.
func (r *Remote) Close() error {
	for _, h := range r.hosts {
		h.client.CloseIdleConnections()
	}
	return nil
}

// Distrust says that the bytes last served for a digest were wrong: the next
// Fetch of it begins with another host, if there is one.
func (r *Remote) Distrust(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.distrust[d]++
}

// hostsWith returns the hosts that have a capability, in the order to try them
// for a digest (which may be empty).
func (r *Remote) hostsWith(c capability, d digest.Digest) []*host {
	var out []*host
	for _, h := range r.hosts {
		if h.capabilities&c != 0 {
			out = append(out, h)
		}
	}
	r.mu.Lock()
	n := r.distrust[d]
	r.mu.Unlock()
	if n > 0 && len(out) > 1 {
		n %= len(out)
		out = append(out[n:len(out):len(out)], out[:n]...)
	}
	return out
}
