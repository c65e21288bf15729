package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// How long a proxy may take for an answer.
//
// Differs from containerd: there it may take for ever.
const (
	// probeTimeout is for one that has not answered yet, or not last time.
	probeTimeout = 5 * time.Second
	// readTimeout is for what only looks records up.
	readTimeout = 30 * time.Second
	// changeTimeout is for what may have to fetch or delete files.
	changeTimeout = 2 * time.Minute
	// maxProxyMessage is the size of a message in bytes, as the daemon's own.
	maxProxyMessage = 16 << 20
)

// Proxy is the connection to a proxy plugin: an engine of the daemon's that
// another process serves on a unix socket. It connects when it is used first,
// and again when the process is back.
//
// The process is not trusted to answer. A call to one that is not there, or
// that does not answer in time, fails with errdefs.ErrUnavailable, and the
// error names the socket. Calls that carry data have no time limit but their
// context's. After a failure the next call is a short probe, so that a list of
// calls to a dead process does not take a list of timeouts.
//
// Calls are made in the namespace and under the lease of the request that they
// serve; those that serve none (the collector's) have neither.
type Proxy struct {
	name    string
	path    string
	conn    *grpc.ClientConn
	answers atomic.Bool
}

// NewProxy makes a connection to the proxy plugin of that name. address is the
// path of its socket, with or without unix://. It does not connect yet.
func NewProxy(name, address string) (*Proxy, error) {
	socket := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("proxy plugin %q: address %q: want the path of a unix socket: %w", name, address, errdefs.ErrInvalidArgument)
	}
	p := &Proxy{name: name, path: socket}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}),
		// A call brings a new attempt about (see reach); nothing else is in a hurry.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Second, Multiplier: 2, MaxDelay: time.Minute}, MinConnectTimeout: probeTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxProxyMessage), grpc.MaxCallSendMsgSize(maxProxyMessage)),
		grpc.WithIdleTimeout(5*time.Minute),
	)
	if err != nil {
		return nil, fmt.Errorf("proxy plugin %q: %w", name, err)
	}
	p.conn = conn
	return p, nil
}

// Close ends the calls under way.
func (p *Proxy) Close() error { return p.conn.Close() }

// Invoke is grpc.ClientConnInterface.
func (p *Proxy) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := p.limit(outgoingOf(ctx), method)
	defer cancel()
	if err := p.reach(ctx); err != nil {
		return err
	}
	return p.outcome(ctx, p.conn.Invoke(ctx, method, args, reply, opts...))
}

// NewStream is grpc.ClientConnInterface.
func (p *Proxy) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := p.limit(outgoingOf(ctx), method)
	if err := p.reach(ctx); err != nil {
		cancel()
		return nil, err
	}
	// The stream ends when the caller's context does, or when it is read to its
	// end; so cancel may be left to them.
	s, err := p.conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		defer cancel()
		return nil, p.outcome(ctx, err)
	}
	return &proxyStream{s, p, cancel}, nil
}

type proxyStream struct {
	grpc.ClientStream
	proxy *Proxy
	end   context.CancelFunc
}

func (s *proxyStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	out := s.proxy.outcome(s.Context(), err)
	if err != nil {
		s.end()
	}
	return out
}

// errLimit is the cause of a context's end that is a proxy's fault.
var errLimit = errors.New("no answer")

// limit gives a call its time.
func (p *Proxy) limit(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	var d time.Duration
	switch path.Base(method) {
	case "Stat", "Mounts", "Usage", "Update", "List", "Info", "Status", "ListStatuses", "Platform", "Metrics":
		d = readTimeout
	case "Prepare", "View", "Commit", "Remove", "Cleanup", "Delete", "Abort":
		d = changeTimeout
	default: // carries data, or waits for an end
		return context.WithCancel(ctx)
	}
	if !p.answers.Load() && (d == readTimeout || p.conn.GetState() != connectivity.Idle) {
		d = probeTimeout
	}
	return context.WithTimeoutCause(ctx, d, errLimit)
}

// reach finds out by a look at the socket whether a connection that is not there is
// worth waiting for, and if so waits. What the call then finds tells the rest: a
// connection, or why there is none.
func (p *Proxy) reach(ctx context.Context) error {
	if p.conn.GetState() == connectivity.Ready {
		return nil
	}
	d := net.Dialer{Timeout: probeTimeout}
	probe, err := d.DialContext(ctx, "unix", p.path)
	if err != nil {
		p.answers.Store(false)
		return p.unavailable(err)
	}
	probe.Close()
	wait, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// An attempt that began before the process was back may be about to fail: the
	// one after it counts.
	for failures := 0; ; {
		state := p.conn.GetState()
		switch state {
		case connectivity.Ready, connectivity.Shutdown:
			return nil
		case connectivity.Idle:
			p.conn.Connect()
		case connectivity.TransientFailure:
			if failures++; failures > 1 {
				return nil
			}
			p.conn.ResetConnectBackoff()
		}
		if !p.conn.WaitForStateChange(wait, state) {
			return nil
		}
	}
}

// outcome says whose fault an error is.
func (p *Proxy) outcome(ctx context.Context, err error) error {
	if err == nil || err == io.EOF {
		p.answers.Store(true)
		return err
	}
	code := status.Code(err)
	if at, ok := ctx.Deadline(); ok && code == codes.DeadlineExceeded && time.Until(at) < time.Second {
		<-ctx.Done() // the other side may notice the limit a moment before this one
	}
	switch {
	case code == codes.DeadlineExceeded && errors.Is(context.Cause(ctx), errLimit):
		p.answers.Store(false)
		return p.unavailable(errLimit)
	case code == codes.Unavailable:
		p.answers.Store(false)
		return p.unavailable(errors.New(status.Convert(err).Message()))
	case code != codes.Canceled && code != codes.DeadlineExceeded:
		p.answers.Store(true)
	}
	return err
}

func (p *Proxy) unavailable(err error) error {
	return fmt.Errorf("proxy plugin %q at %s: %w: %w", p.name, p.path, err, errdefs.ErrUnavailable)
}

// outgoingOf passes on where the request that ctx belongs to was made.
func outgoingOf(ctx context.Context) context.Context {
	in, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	out, _ := metadata.FromOutgoingContext(ctx) // a copy
	if out == nil {
		out = metadata.MD{}
	}
	for _, key := range []string{namespaceKey, leaseKey} {
		if v := in.Get(key); len(v) > 0 && len(out.Get(key)) == 0 {
			out.Set(key, v...)
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}
