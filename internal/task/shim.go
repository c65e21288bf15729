package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/task/procfs"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// shim is a live shim process, or was: one for each stand-alone container, or
// one for all of a pod.
type shim struct {
	m        *Manager
	address  string
	protocol string
	// binary is its executable, for delete. By now it may be gone.
	binary string
	// own is a shim of Berth that this daemon started through serve.
	own bool
	// answered is closed when an own shim has taken its first task, or not.
	answered chan struct{}
	version  atomic.Int32
	// mounts are those that it says it can do itself, or nil.
	mounts *types.MountCapabilities

	// tasks lists those that it serves, leaving that it was told to end.
	// Guarded by Manager.mu.
	tasks   map[*task]bool
	leaving bool
	// stayed is closed, and replaced, when a leaving shim does not end.
	stayed chan struct{}

	// dead is closed when it is certain that it has ended.
	dead chan struct{}
	// ready is closed when it can be called, or when its start failed with err.
	ready chan struct{}
	err   error

	mu      sync.Mutex
	conn    *link             // the present one, or the one that was lost last
	process *shimproc.Process // nil while it is not known, or when it is no longer this shim's
	spare   *shimproc.Spare   // of an own shim, with its control socket
	killed  bool
	// ended is closed when the process has ended, or has become a spare again.
	ended   chan struct{}
	over    func()
	logs    *os.File // read end of the log FIFO, or nil
	let     bool     // released: nothing is to be done about its end
	refusal error    // why it did not take its first task
}

// link is a connection with what became of it.
type link struct {
	*shimconn.Conn
	// resolved is closed when it is known after its end whether the shim lives.
	resolved chan struct{}
}

func (m *Manager) newShim(address, protocol, binary string, version int32) *shim {
	s := &shim{
		m: m, address: address, protocol: protocol, binary: binary,
		tasks:  make(map[*task]bool),
		dead:   make(chan struct{}),
		ready:  make(chan struct{}),
		stayed: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	s.over = sync.OnceFunc(func() { close(s.ended) })
	s.version.Store(version)
	return s
}

func (s *shim) isDead() bool {
	select {
	case <-s.dead:
		return true
	default:
		return false
	}
}

// hangUp closes the connection; the watch makes another if the shim lives on.
func (s *shim) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.Close()
}

// isLost tells that there is no connection at present.
func (s *shim) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.IsLost()
}

// open connects and begins to watch the connection.
func (s *shim) open(ctx context.Context) error {
	c, err := shimconn.Connect(ctx, s.protocol, s.address)
	if err != nil {
		return err
	}
	s.adopt(c)
	return nil
}

func (s *shim) adopt(conn *shimconn.Conn) {
	c := &link{conn, make(chan struct{})}
	s.mu.Lock()
	s.conn = c
	p, let := s.process, s.let
	s.mu.Unlock()
	if let {
		c.Close()
		return
	}
	if s.hasEnded() || p != nil && p.HasExited() {
		c.Close() // somebody who inherited its socket has taken the connection
	}
	s.m.background.Go(func() {
		select {
		case <-c.Done():
			s.investigate(c)
		case <-s.m.life.Done():
			c.Close()
		}
	})
}

// watch connects the end of the process with that of the connection: a child
// that inherited the socket must not make a dead shim look alive.
func (s *shim) watch(p *shimproc.Process) {
	s.mu.Lock()
	if s.process != nil || s.let {
		s.mu.Unlock()
		p.Close()
		return
	}
	s.process = p
	s.mu.Unlock()
	s.m.background.Go(func() {
		select {
		case <-p.Exited:
			s.over()
		case <-s.ended:
		}
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if c != nil {
			c.Close()
		}
	})
}

// learnProcess asks an adopted or foreign shim for its PID. A shim that lies
// about it is not believed: its process must work in the bundle's directory.
func (s *shim) learnProcess(ctx context.Context, t *task) (*taskapi.ConnectResponse, error) {
	var resp taskapi.ConnectResponse
	if err := s.call(ctx, t.key, "Connect", &taskapi.ConnectRequest{ID: t.id}, &resp); err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := s.process != nil
	s.mu.Unlock()
	if pid := int(resp.ShimPid); !known && pid > 1 {
		if p, err := shimproc.Open(pid); err == nil {
			if procfs.WorksIn(pid, t.bundle.path) {
				s.watch(p)
			} else {
				p.Close()
			}
		}
	}
	return &resp, nil
}

// call makes a call for a task. When the connection is lost and the shim turns
// out to live, calls that only ask are repeated on the new one.
func (s *shim) call(ctx context.Context, k key, method string, req, resp proto.Message) error {
	return s.try(ctx, k, method, func(c *link) error {
		return c.Call(ctx, s.version.Load(), k.namespace, method, req, resp)
	})
}

// try makes a call by way of a function, on the present connection.
func (s *shim) try(ctx context.Context, k key, method string, do func(*link) error) error {
	for attempt := 0; ; attempt++ {
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if c == nil { // nobody listened when it was to be adopted
			return s.unreachable(k)
		}
		err := do(c)
		if err == nil {
			return nil
		}
		if !errors.Is(err, shimconn.ErrLost) {
			return fmt.Errorf("shim of container %q: %s: %w", k.id, strings.ToLower(method), err)
		}
		if !s.verdict(ctx, c) {
			return s.unreachable(k)
		}
		if !asks(method) || attempt == 3 {
			return fmt.Errorf("shim of container %q: %s: %w", k.id, strings.ToLower(method), err)
		}
	}
}

// asks lists the methods that change nothing.
func asks(method string) bool {
	switch method {
	case "State", "Wait", "Pids", "Stats", "Connect",
		"Platform", "WaitSandbox", "SandboxStatus", "SandboxMetrics", "PingSandbox":
		return true
	}
	return false
}

// unreachable is errdefs.ErrNotFound for a dead shim: with it a task has ended.
func (s *shim) unreachable(k key) error {
	if s.own {
		<-s.answered
	}
	s.mu.Lock()
	refusal := s.refusal
	s.mu.Unlock()
	if refusal != nil {
		return fmt.Errorf("shim of container %q: %w", k.id, refusal)
	}
	if s.isDead() {
		return fmt.Errorf("the shim of container %q has died: %w", k.id, errdefs.ErrNotFound)
	}
	return fmt.Errorf("the shim of container %q cannot be reached: %w", k.id, errdefs.ErrUnavailable)
}

// verdict waits until it is known what the loss of c means: true when there is
// another connection, false when the shim is dead or out of reach.
func (s *shim) verdict(ctx context.Context, c *link) bool {
	timer := time.NewTimer(s.m.timeouts().State)
	defer timer.Stop()
	select {
	case <-c.resolved:
		return !s.isDead()
	case <-ctx.Done():
	case <-timer.C:
	case <-s.m.life.Done():
	}
	return false
}

// patience is how long a shim may neither listen nor end.
const patience = 8 * time.Second

// investigate finds out whether a shim whose connection was lost has ended:
// either it takes a new connection, or it is dead.
func (s *shim) investigate(c *link) {
	defer close(c.resolved)
	c.Close()
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(pause*2, time.Second) {
		s.mu.Lock()
		p, let := s.process, s.let
		s.mu.Unlock()
		if let {
			return
		}
		// A process ends, or becomes a spare, a moment after its connection.
		if p != nil && !s.sleep(pause, s.ended) {
			return
		}
		if s.hasEnded() {
			break
		}
		ctx, cancel := context.WithTimeout(s.m.life, s.m.timeouts().Load)
		if p != nil {
			go func() { // a dead shim's socket may be held by who never answers
				select {
				case <-s.ended:
					cancel()
				case <-ctx.Done():
				}
			}()
		}
		next, err := s.reconnect(ctx)
		cancel()
		if err == nil {
			s.adopt(next)
			return
		}
		if shimconn.NobodyListens(err) && (p == nil || time.Since(began) > patience) {
			s.mu.Lock()
			s.killLocked() // it is of no use to anybody
			s.mu.Unlock()
			break
		}
		if !s.sleep(pause, nil) {
			return
		}
	}
	s.m.shimDied(s)
}

// reconnect makes a new connection and tries it: the kernel may close the
// sockets of a dying process in any order, so that one may still connect.
func (s *shim) reconnect(ctx context.Context) (*shimconn.Conn, error) {
	c, err := shimconn.Connect(ctx, s.protocol, s.address)
	if err != nil {
		return nil, err
	}
	s.m.mu.Lock()
	var k key
	for t := range s.tasks {
		k = t.key
		break
	}
	s.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.m.timeouts().State)
	defer cancel()
	// Whatever it answers, even nothing: it is there.
	err = c.Call(ctx, s.version.Load(), k.namespace, "Connect", &taskapi.ConnectRequest{ID: k.id}, &taskapi.ConnectResponse{})
	if errors.Is(err, shimconn.ErrLost) {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sleep waits for a pause or for early; it is false when the daemon ends.
func (s *shim) sleep(pause time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-early:
	case <-timer.C:
	case <-s.m.life.Done():
		return false
	}
	return true
}

// kill ends the shim's process. When its PID is not known, as with one that never
// answered, it is found by the bundle, in which it works.
func (s *shim) kill(b bundle) {
	s.mu.Lock()
	known := s.killLocked()
	s.mu.Unlock()
	if !known && !s.hasEnded() {
		b.killWorkers()
	}
}

// killLocked kills the process if it is known. The lock, s.mu, keeps it from
// becoming a spare, and then another task's shim, just before.
func (s *shim) killLocked() (known bool) {
	if s.process == nil {
		return false
	}
	s.killed = true
	s.process.Kill()
	return true
}

func (s *shim) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// release closes what the daemon holds of the shim, and leaves it alone.
func (s *shim) release() {
	s.mu.Lock()
	s.let = true
	c, p, logs, sp := s.conn, s.process, s.logs, s.spare
	s.mu.Unlock()
	if sp != nil {
		sp.Leave()
	}
	if c != nil {
		c.Close()
	}
	if p != nil {
		p.Close()
	}
	if logs != nil {
		logs.Close()
	}
}

// socketFile is the file of the shim's socket, or empty.
func (s *shim) socketFile() string {
	path, ok := strings.CutPrefix(s.address, "unix://")
	if !ok {
		return ""
	}
	return path
}
