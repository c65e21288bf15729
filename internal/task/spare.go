package task

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/failpoint"
	"berth/internal/task/shimconn"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// spare is a process of a shim's serve command that waits at its control socket
// to be told which task it is for.
type spare struct {
	edition edition
	process *process
	control *net.UnixConn
}

// spares holds at most one spare, so that a create need not wait for an exec.
// There is none before the first container: an idle daemon has no children.
type spares struct {
	mu      sync.Mutex
	waiting *spare
	// filling is true while one is being started.
	filling bool
	closed  bool
}

// take returns a spare of the edition, or nil.
func (s *spares) take(e edition) *spare {
	s.mu.Lock()
	sp := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	if sp == nil {
		return nil
	}
	if sp.edition != e || sp.process.hasExited() {
		sp.dismiss()
		return nil
	}
	return sp
}

// spareDelay is how long after a create the next spare is started at the latest;
// the start of the container, which it would slow down, is over as a rule.
const spareDelay = 100 * time.Millisecond

// replenish starts a spare of the binary in the background if there is none.
func (m *Manager) replenish(binary string) {
	s := &m.spares
	s.mu.Lock()
	if s.closed || s.filling || s.waiting != nil {
		s.mu.Unlock()
		return
	}
	s.filling = true
	s.mu.Unlock()
	m.background.Go(func() {
		e, err := editionOf(binary)
		var sp *spare
		if err == nil {
			sp, err = m.launch(e)
		}
		if err != nil {
			m.log.Warn("no spare shim", "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.filling = false
		if s.closed && sp != nil {
			sp.dismiss()
			return
		}
		s.waiting = sp
	})
}

func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.waiting != nil {
		s.waiting.dismiss()
		s.waiting = nil
	}
}

// dismiss ends a spare that is of no use.
func (sp *spare) dismiss() {
	sp.control.Close()
	sp.process.kill()
	<-sp.process.exited // SIGKILL of a process that only waits: at once
}

// launch starts the serve command of a shim. It dies by itself when the control
// socket is closed before it got its task.
func (m *Manager) launch(e edition) (*spare, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "control")
	defer ours.Close()
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer null.Close()
	pidfd := -1
	pid, err := syscall.ForkExec(e.path, m.serveArgs(e.path), &syscall.ProcAttr{
		Dir: "/",
		// One processor: a shim mostly waits, and each further one costs memory.
		Env:   append(append(os.Environ(), "GOMAXPROCS=1"), m.opts.Env...),
		Files: []uintptr{null.Fd(), null.Fd(), errorLog(null), theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start shim %s: %w", e.path, err)
	}
	if pidfd < 0 {
		conn.Close()
		syscall.Wait4(pid, nil, 0, nil)
		return nil, fmt.Errorf("start shim %s: the kernel has no pidfd: %w", e.path, errdefs.ErrNotImplemented)
	}
	return &spare{edition: e, process: newProcess(pid, pidfd), control: conn.(*net.UnixConn)}, nil
}

// serveArgs has room after the command for the arguments that the shim shows in
// place of it when it knows its task.
func (m *Manager) serveArgs(path string) []string {
	room := len("-namespace  -id  -address ") + 2*76 + len(m.opts.Address)
	return []string{path, "serve", strings.Repeat(" ", room)}
}

// errorLog is the daemon's standard error for a shim to write to, unless that is
// a pipe or a terminal: whoever reads those waits for their end, which should not
// depend on a container's.
func errorLog(null *os.File) uintptr {
	info, err := os.Stderr.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) != 0 {
		return null.Fd()
	}
	return os.Stderr.Fd()
}

// assignment tells a spare shim what it is for. The message is its length in 4
// bytes, big-endian, and this as JSON, with the listening socket (SCM_RIGHTS).
type assignment struct {
	Namespace    string `json:"namespace"`
	ID           string `json:"id"`
	Bundle       string `json:"bundle"`
	Address      string `json:"address"`
	TTRPCAddress string `json:"ttrpc_address"`
	Socket       string `json:"socket"`
	Debug        bool   `json:"debug"`
}

// assign hands the task over to the spare.
func (sp *spare) assign(a assignment, listener int) error {
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode assignment: %w", err)
	}
	msg := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	sp.control.SetWriteDeadline(time.Now().Add(loadTimeout))
	n, _, err := sp.control.WriteMsgUnix(msg, unix.UnixRights(listener), nil)
	if err == nil && n < len(msg) {
		_, err = sp.control.Write(msg[n:])
	}
	if err != nil {
		return fmt.Errorf("hand the task to the shim: %w", err)
	}
	return nil
}

// maxAnswer bounds a shim's answer to its assignment.
const maxAnswer = 64 << 10

// answer reads one line of JSON: {"pid":N,"version":3}, or {"error":"…"}.
func (sp *spare) answer() error {
	defer sp.control.Close()
	sp.control.SetReadDeadline(time.Now().Add(loadTimeout))
	line, err := bufio.NewReader(io.LimitReader(sp.control, maxAnswer)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the shim does not take the task: %w", err)
	}
	return parseAnswer(line)
}

func parseAnswer(line []byte) error {
	var reply struct {
		PID     int    `json:"pid"`
		Version int    `json:"version"`
		Error   string `json:"error"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &reply); err != nil {
		return fmt.Errorf("the shim's answer %q is not understood (%w): %w", line, err, errdefs.ErrUnknown)
	}
	if reply.Error != "" {
		return fmt.Errorf("the shim does not take the task: %s: %w", reply.Error, errdefs.ErrUnknown)
	}
	if reply.PID <= 0 || reply.Version != shimconn.NewestVersion {
		return fmt.Errorf("the shim's answer %q lacks a PID or speaks another version: %w", line, errdefs.ErrUnknown)
	}
	return nil
}

// startOwn gives the task to a shim that has the serve command: the spare, or one
// that is started now. The socket listens before the shim has it, so that the
// first call is under way while the shim still starts; bootstrap.json is there
// before as well, so that no crash leaves a shim of which nobody knows.
func (m *Manager) startOwn(ctx context.Context, t *task, p plan, e edition) (*shim, error) {
	path := m.socketPath(t.namespace, p.group)
	boot := &bootapi.BootstrapResult{Version: shimconn.NewestVersion, Address: "unix://" + path, Protocol: "ttrpc"}
	if err := t.bundle.writeBootstrap(boot); err != nil {
		return nil, err
	}
	failpoint.Hit("task.create.bootstrap-written")
	s, fresh, err := m.claim(ctx, t, boot, p.binary)
	if err != nil || !fresh {
		return s, err
	}
	listener, err := shimconn.Listen(path)
	if errdefs.IsAlreadyExists(err) {
		if p.group != t.id {
			return s, m.begin(ctx, t, s) // the pod's shim, which has no task of ours
		}
		m.endStray(t, boot.Address)
		listener, err = shimconn.Listen(path)
	}
	if err != nil {
		m.fail(s, err)
		return nil, err
	}
	defer unix.Close(listener)
	failpoint.Hit("task.create.listening")
	if err := m.serve(ctx, t, s, e, listener); err != nil {
		m.removeSocket(path)
		m.fail(s, err)
		return nil, err
	}
	return s, nil
}

// serve connects a fresh shim record with a process that serves the listener.
func (m *Manager) serve(ctx context.Context, t *task, s *shim, e edition, listener int) error {
	sp := m.spares.take(e)
	if sp == nil {
		var err error
		if sp, err = m.launch(e); err != nil {
			return err
		}
	}
	failpoint.Hit("task.create.shim-started")
	err := sp.assign(assignment{
		Namespace: t.namespace, ID: t.id, Bundle: t.bundle.path,
		Address: m.opts.Address, TTRPCAddress: m.opts.TTRPCAddress,
		Socket: s.address, Debug: m.debug,
	}, listener)
	failpoint.Hit("task.create.assigned")
	if err == nil {
		err = s.open(ctx)
	}
	if err != nil {
		sp.dismiss()
		return err
	}
	s.own, s.answered = true, make(chan struct{})
	s.watch(sp.process)
	m.background.Go(func() {
		defer close(s.answered)
		if err := sp.answer(); err != nil {
			s.refuse(err)
		}
	})
	close(s.ready)
	return nil
}

// refuse ends a shim that could not take its first task; calls get the reason.
func (s *shim) refuse(reason error) {
	s.mu.Lock()
	if s.refusal == nil && !errors.Is(reason, net.ErrClosed) {
		s.refusal = reason
	}
	p := s.process
	s.mu.Unlock()
	if p != nil {
		p.kill()
	}
}
