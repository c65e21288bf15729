// Package shim is the process that holds containers: parent of their processes,
// keeper of their streams, server of the task API. It lives apart from the
// daemon, which may die and come back.
package shim

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/failpoint"
	"berth/internal/logrelay"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// Config of Serve.
type Config struct {
	// Namespace of all containers.
	Namespace string
	// TTRPCAddress of the daemon, to which events go.
	TTRPCAddress string
	// Listener is the socket of the task API. Serve closes it.
	Listener net.Listener
	Log      *slog.Logger
}

const (
	// lastContainer is how long a shim without containers waits for its clients to
	// disconnect.
	lastContainer = 2 * time.Second
	// flushResponse is how long the answer to a shutdown may take to be read.
	flushResponse = 50 * time.Millisecond
	// flushEvents is how long the last events may take.
	flushEvents = 3 * time.Second
)

// Serve runs the shim until it was shut down or its last container is deleted.
func Serve(ctx context.Context, cfg Config) error {
	_, err := new(host).serve(ctx, cfg)
	return err
}

// host is what a process has for all shims that it is, one after the other.
type host struct {
	// signals is nil until there is a shim. They are taken up once only: for each of
	// them the runtime switches to a thread of its own and back.
	signals chan os.Signal
	// pub keeps its connection to the daemon.
	pub *publisher
}

// become prepares for a shim.
func (h *host) become(cfg Config) {
	if h.signals == nil {
		logrelay.Install(cfg.Log)
		h.signals = make(chan os.Signal, 32)
		// All but SIGCHLD are only taken so that they do not end the process: the shim
		// ends with its containers.
		signal.Notify(h.signals, unix.SIGCHLD, unix.SIGPIPE, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	}
	if h.pub == nil || h.pub.address != cfg.TTRPCAddress {
		h.pub = newPublisher(cfg.TTRPCAddress, cfg.Log)
	}
	h.pub.enter(cfg.Namespace)
}

// serve runs one shim; clean tells that the process holds nothing of its
// containers and clients any more.
func (h *host) serve(ctx context.Context, cfg Config) (clean bool, _ error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return false, os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err)
	}
	h.become(cfg)
	isolateCore(cfg.Log)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newReaper()
	end := newEnding()
	s := newService(ctx, cfg.Namespace, cfg.Log, r, h.pub.publish, func() { end.within(lastContainer) }, func() { end.failed() })
	defer s.idle.Stop()
	end.seal = s.seal
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(statuses))
	if err != nil {
		return false, err
	}
	s.register(server, func(now bool) {
		if now {
			time.AfterFunc(flushResponse, end.now)
			return
		}
		end.within(flushResponse)
	})

	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, &counted{cfg.Listener, end, h.pub.daemonSeen}) }()
	for {
		select {
		case sig := <-h.signals:
			if sig == unix.SIGCHLD {
				r.Sweep()
			}
		case err := <-served:
			if !errors.Is(err, ttrpc.ErrServerClosed) {
				return false, err
			}
		case <-end.done:
			server.Close()
			failpoint.Hit("shim.end.before-socket")
			_ = os.Remove(cfg.Listener.Addr().String())
			flush, stop := context.WithTimeout(context.Background(), flushEvents)
			defer stop()
			told := h.pub.Flush(flush)
			r.Sweep()
			return told && s.empty() && !s.moved.Load() && !haveChildren(), nil
		}
	}
}

// ending decides when a shim that has nothing left to do ends: when nobody is
// connected any more, or a little later, so that the last answer gets read.
type ending struct {
	clients atomic.Int64
	leaving atomic.Bool
	// seal keeps further containers out; it is false when there is one.
	seal func() bool
	once sync.Once
	done chan struct{}
}

func newEnding() *ending { return &ending{done: make(chan struct{})} }

// within ends the shim when its clients have left, or after d.
func (e *ending) within(d time.Duration) {
	e.leaving.Store(true)
	if e.clients.Load() == 0 {
		e.try()
		return
	}
	time.AfterFunc(d, e.try)
}

// try ends the shim unless it has got a container meanwhile.
func (e *ending) try() {
	if e.seal() {
		e.now()
	}
}

// failed is called when the only container could not be made: a shim that was told
// to end meanwhile does so now.
func (e *ending) failed() {
	if e.leaving.Load() {
		e.within(flushResponse)
		return
	}
	e.unneeded()
}

func (e *ending) now() { e.once.Do(func() { close(e.done) }) }

// left is called when a client has disconnected. A shim that never got to have a
// container ends with the client that wanted one.
func (e *ending) left() {
	if e.clients.Add(-1) > 0 {
		return
	}
	if e.leaving.Load() {
		e.try()
		return
	}
	e.unneeded()
}

// unneeded is called when the shim has no clients or no container: if it has
// neither, and none comes in a while, it ends.
func (e *ending) unneeded() {
	time.AfterFunc(lastContainer, func() {
		if e.clients.Load() == 0 {
			e.try()
		}
	})
}

// counted is a listener that counts the open connections, and tells of each.
// It is used by its address: the server keeps listeners as keys of a map.
type counted struct {
	net.Listener
	end      *ending
	accepted func()
}

func (l *counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.end.clients.Add(1)
	l.accepted()
	return &countedConn{Conn: conn, end: l.end}, nil
}

type countedConn struct {
	net.Conn
	end  *ending
	once sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.end.left)
	return err
}
