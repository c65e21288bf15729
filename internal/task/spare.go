package task

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
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
// to be told which task it is for. When that is over it may be a spare again.
type spare struct {
	edition edition
	process *process
	control *net.UnixConn
	said    *bufio.Reader // what comes on control
	polite  bool          // at a lower priority than the daemon's
}

// spares holds those that wait, so that a create need not wait for an exec.
// There is none before the first container: an idle daemon has no children.
//
// One is started in advance; more there are only after that many tasks at the
// same time, and not for long.
type spares struct {
	mu      sync.Mutex
	waiting []*spare
	// filling is true while one is being started.
	filling bool
	closed  bool
	trim    *time.Timer
}

const (
	// maxSpares wait at most, of those whose tasks have ended.
	maxSpares = 16
	// trimAfter is how long after the last of them all but one are ended.
	trimAfter = 5 * time.Second
)

// take returns a spare of the edition, or nil: the one that became one last,
// which has its memory at hand.
func (s *spares) take(e edition) *spare {
	for {
		s.mu.Lock()
		last := len(s.waiting) - 1
		if last < 0 {
			s.mu.Unlock()
			return nil
		}
		sp := s.waiting[last]
		s.waiting = s.waiting[:last]
		s.mu.Unlock()
		if sp.edition == e && !sp.process.hasExited() {
			return sp
		}
		sp.dismiss()
	}
}

// put adds one, or ends it when there are enough.
func (s *spares) put(sp *spare) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.waiting) >= maxSpares {
		sp.dismiss()
		return
	}
	s.waiting = append(s.waiting, sp)
	if len(s.waiting) == 1 {
		return
	}
	if s.trim == nil {
		s.trim = time.AfterFunc(trimAfter, s.cut)
	} else {
		s.trim.Reset(trimAfter)
	}
}

// cut ends all but the one that became a spare last.
func (s *spares) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for len(s.waiting) > 1 {
		s.waiting[0].dismiss()
		s.waiting = s.waiting[1:]
	}
}

// spareDelay is how long after a create the next spare is started at the latest;
// the start of the container, which it would slow down, is over as a rule.
const spareDelay = 100 * time.Millisecond

// replenish starts a spare of the binary in the background if there is none.
func (m *Manager) replenish(binary string) {
	s := &m.spares
	s.mu.Lock()
	if s.closed || s.filling || len(s.waiting) > 0 {
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
		if sp != nil {
			sp.prioritise(politeness)
			sp.polite = true
		}
		if err != nil {
			m.log.Warn("no spare shim", "error", err)
		}
		s.mu.Lock()
		s.filling = false
		s.mu.Unlock()
		if sp != nil {
			s.put(sp)
		}
	})
}

// close ends those that wait.
func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.trim != nil {
		s.trim.Stop()
	}
	for _, sp := range s.waiting {
		sp.dismiss()
	}
	s.waiting = nil
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
	control := conn.(*net.UnixConn)
	return &spare{edition: e, process: newProcess(pid, pidfd), control: control, said: bufio.NewReaderSize(control, maxAnswer)}, nil
}

// politeness is what the priority of a spare that starts is lowered by, so that
// it does not slow down the container for which another was just taken.
const politeness = 10

// prioritise changes the priority of all threads of the spare, which is a process
// group of its own, to the daemon's, lowered by that much. A failure is of no consequence.
func (sp *spare) prioritise(lower int) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err == nil {
		// The system call returns 20 minus the priority.
		_ = unix.Setpriority(unix.PRIO_PGRP, sp.process.pid, min(20-own+lower, 19))
	}
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

// maxAnswer bounds a line from a shim.
const maxAnswer = 4 << 10

// answer reads one line of JSON: {"pid":N,"version":3}, or {"error":"…"}.
func (sp *spare) answer() error {
	sp.control.SetReadDeadline(time.Now().Add(loadTimeout))
	line, err := sp.line()
	sp.control.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("the shim does not take the task: %w", err)
	}
	return parseAnswer(line)
}

// line is one line from the shim. The buffer of the reader is its bound.
func (sp *spare) line() ([]byte, error) { return sp.said.ReadSlice('\n') }

// awaitIdle returns when the shim tells that its assignment is over (true), or
// when its end of the socket is closed, or ours.
func (sp *spare) awaitIdle() bool {
	line, err := sp.line()
	var said struct {
		Idle bool `json:"idle"`
	}
	return err == nil && json.Unmarshal(line, &said) == nil && said.Idle
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
	} else if sp.polite {
		sp.prioritise(0)
		sp.polite = false
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
	s.mu.Lock()
	s.spare = sp
	s.mu.Unlock()
	m.background.Go(func() { m.attend(s, sp) })
	close(s.ready)
	return nil
}

// attend listens to what a shim of ours says on its control socket. When its
// assignment is over the process is a spare again, and its record as good as dead.
func (m *Manager) attend(s *shim, sp *spare) {
	err := sp.answer()
	if err != nil {
		s.refuse(err)
	}
	close(s.answered)
	if err != nil || !sp.awaitIdle() {
		sp.control.Close()
		return
	}
	if !s.part() {
		sp.control.Close()
		return
	}
	m.spares.put(sp)
}

// part separates the record of a shim whose assignment is over from its process.
// It is false when the process has been killed, or let alone, meanwhile.
func (s *shim) part() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.killed || s.let {
		return false
	}
	s.process, s.spare = nil, nil
	s.over()
	return true
}

// refuse ends a shim that could not take its first task; calls get the reason.
func (s *shim) refuse(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal == nil && !errors.Is(reason, net.ErrClosed) {
		s.refusal = reason
	}
	s.killLocked()
}
