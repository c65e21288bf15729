package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const (
	defaultAddress = "/run/containerd/containerd.sock"
	// maxMessage is what containerd's daemon and clients agree on.
	maxMessage = 16 << 20
	// cleanupTime bounds what is still done after an error or an interrupt.
	cleanupTime = 30 * time.Second
)

// session is a connection to a daemon and the namespace that calls are made in.
// Errors of calls are errdefs kinds.
type session struct {
	*grpc.ClientConn
	namespace string
	pending   sync.WaitGroup // see later
}

// connect opens the session that the global flags describe. The context carries
// the namespace and the deadline for every call; end releases both.
func connect(ctx context.Context, cmd *cli.Command) (context.Context, *session, func(), error) {
	conn, hangUp, err := dial(cmd.String("address"), cmd.Duration("connect-timeout"), cmd.Bool("debug"))
	if err != nil {
		return nil, nil, nil, err
	}
	s := &session{ClientConn: conn, namespace: cmd.String("namespace")}
	ctx = withNamespace(ctx, s.namespace)
	cancel := context.CancelFunc(func() {})
	if limit := cmd.Duration("timeout"); limit > 0 {
		ctx, cancel = context.WithTimeout(ctx, limit)
	}
	return ctx, s, func() { s.pending.Wait(); cancel(); hangUp() }, nil
}

// withSession runs fn in a session.
func withSession(fn func(ctx context.Context, cmd *cli.Command, s *session) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		ctx, s, end, err := connect(ctx, cmd)
		if err != nil {
			return err
		}
		defer end()
		return s.suggest(ctx, cmd, fn(ctx, cmd, s))
	}
}

// againTime is when an interrupt is a second one.
const againTime = time.Second

// undoing lets Ctrl-C, or the end of whoever reads our output, end an action that
// has something to take back then. Another one ends ctr, but not the copy of the first that programs such as
// timeout send to the process and to its group.
func undoing(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		// What nohup and the shells' & have ctr ignore stays ignored.
		ends := slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGHUP}, signal.Ignored)
		ctx, stop := signal.NotifyContext(ctx, append(ends, syscall.SIGTERM)...)
		defer stop()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(againTime, stop) })()
		// A closed pipe is the error of a write then, and not the end of ctr.
		broken := make(chan os.Signal, 1)
		signal.Notify(broken, syscall.SIGPIPE)
		defer signal.Stop(broken)
		err := action(ctx, cmd)
		switch {
		case err != nil && errors.Is(ctx.Err(), context.Canceled):
			return withStatus{errors.New("interrupted"), 128 + int(syscall.SIGINT)}
		case outputClosed() && errors.Is(err, syscall.EPIPE):
			return exitStatus(128 + int(syscall.SIGPIPE)) // as without a handler, and as quiet
		}
		return err
	}
}

// withNamespace makes calls happen in a namespace, and no longer in another.
func withNamespace(ctx context.Context, name string) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	md = md.Copy()
	md.Set("containerd-namespace", name)
	return metadata.NewOutgoingContext(ctx, md)
}

const leaseHeader = "containerd-lease"

// withLease makes calls belong to a lease.
func withLease(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, leaseHeader, id)
}

// leaseOf is the lease that calls belong to, or empty.
func leaseOf(ctx context.Context) string {
	md, _ := metadata.FromOutgoingContext(ctx)
	if ids := md.Get(leaseHeader); len(ids) > 0 {
		return ids[len(ids)-1]
	}
	return ""
}

// afterwards is a context for cleaning up when ctx may have ended.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

// dial opens the socket itself and hands the connection to gRPC, so that a
// daemon that is not there is reported at once and in plain words. With debug
// every call and its time are printed on stderr.
func dial(address string, timeout time.Duration, debug bool) (conn *grpc.ClientConn, hangUp func(), err error) {
	path := strings.TrimPrefix(address, "unix://")
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	dialer := net.Dialer{Timeout: timeout}
	first, err := dialer.Dial("unix", path)
	if err != nil {
		return nil, nil, connectError(path, err)
	}
	ready := make(chan net.Conn, 1)
	ready <- first
	unary := nativeErrors
	if debug {
		unary = timedCalls
	}
	again := backoff.DefaultConfig
	again.BaseDelay, again.MaxDelay = 100*time.Millisecond, time.Second // a local socket: to try costs nothing
	params := grpc.ConnectParams{Backoff: again, MinConnectTimeout: timeout}
	conn, err = grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(params),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(unary),
		grpc.WithStreamInterceptor(nativeStreamErrors),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-ready:
				return c, nil
			default:
				return dialer.DialContext(ctx, "unix", path)
			}
		}))
	if err != nil {
		first.Close()
		return nil, nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return conn, func() {
		conn.Close()
		select {
		case c := <-ready: // no call was made
			c.Close()
		default:
		}
	}, nil
}

func connectError(path string, err error) error {
	var reason, advice string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "there is no such socket"
		advice = "start the daemon (systemctl start containerd), or name its socket with --address or CONTAINERD_ADDRESS"
	case errors.Is(err, fs.ErrPermission):
		reason = "permission denied"
		advice = "run ctr as root, the socket's owner"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "connection refused"
		advice = "nothing listens there any more: start the daemon (systemctl start containerd)"
	case errors.Is(err, os.ErrDeadlineExceeded):
		reason = "no answer in time"
		advice = "the daemon is overloaded or stopped; see its log, or wait longer with --connect-timeout"
	default:
		reason = err.Error()
		advice = "check --address and CONTAINERD_ADDRESS"
	}
	return unreachable{path, reason, advice}
}

// unreachable says which socket was tried, why that failed, and what to do.
type unreachable struct{ path, reason, advice string }

func (u unreachable) Error() string {
	return fmt.Sprintf("cannot connect to containerd at %s: %s: %s", u.path, u.reason, u.advice)
}

func nativeErrors(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	return explain(cc.Target(), method, err, errgrpc.ToNative(err))
}

func timedCalls(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	start := time.Now()
	err := nativeErrors(ctx, method, req, reply, cc, invoke, opts...)
	fmt.Fprintf(os.Stderr, "ctr: %s %s took %s: %v\n", start.Format("15:04:05.000000"), method, time.Since(start).Round(time.Microsecond), err)
	return err
}

func nativeStreamErrors(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, explain(cc.Target(), method, err, errgrpc.ToNative(err))
	}
	return nativeStream{s, cc.Target(), method}, nil
}

type nativeStream struct {
	grpc.ClientStream
	target, method string
}

func (s nativeStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return explain(s.target, s.method, err, errgrpc.ToNative(err))
}

// receive hands on the messages of a stream until its end, or until each fails.
func receive[M any](next func() (M, error), each func(M) error) error {
	for {
		msg, err := next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(msg); err != nil {
			return err
		}
	}
}
