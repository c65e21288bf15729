package shimproc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"berth/internal/task/shimconn"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Spare is a process of a shim's serve command that waits at its control socket
// to be told which task it is for. When that is over it may be a spare again.
type Spare struct {
	Process *Process
	edition Edition
	control *net.UnixConn
	said    []byte // what came on control and is not a whole line
	polite  bool   // at a lower priority than the daemon's
}

// Dismiss ends a spare that is of no use.
func (sp *Spare) Dismiss() {
	sp.control.Close()
	sp.Process.Kill()
	<-sp.Process.Exited // SIGKILL of a process that only waits: at once
}

// Leave closes the control socket: the process ends with its assignment, if it
// has one, or else now.
func (sp *Spare) Leave() { sp.control.Close() }

// launch starts the serve command of a shim. It dies by itself when the control
// socket is closed before it got its task.
func (p *Pool) launch(e Edition) (*Spare, error) {
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
	pid, err := syscall.ForkExec(e.Path, p.serveArgs(e.Path), &syscall.ProcAttr{
		Dir: "/",
		// One processor: a shim mostly waits, and each further one costs memory.
		Env:   append(append(os.Environ(), "GOMAXPROCS=1"), p.opts.Env...),
		Files: []uintptr{null.Fd(), null.Fd(), errorLog(null), theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd},
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start shim %s: %w", e.Path, err)
	}
	if pidfd < 0 {
		conn.Close()
		syscall.Wait4(pid, nil, 0, nil)
		return nil, fmt.Errorf("start shim %s: the kernel has no pidfd: %w", e.Path, errdefs.ErrNotImplemented)
	}
	control := conn.(*net.UnixConn)
	return &Spare{edition: e, Process: newProcess(pid, pidfd), control: control}, nil
}

// answerTimeout is how long a shim may take to accept or refuse an assignment.
const answerTimeout = 5 * time.Second

// politeness is what the priority of a spare that starts is lowered by, so that
// it does not slow down the container for which another was just taken.
const politeness = 10

// priorityReturns tells whether this process may raise again a priority that it has
// lowered. Without CAP_SYS_NICE (of the host: a user namespace has it in vain) it may
// not, and the containers of a spare that was polite would stay so for ever. It is
// tried with a thread, which ends when that fails.
func priorityReturns() bool {
	returns := make(chan bool)
	go func() {
		runtime.LockOSThread()
		own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		nice := 20 - own // what the system call returns
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, 0, min(nice+1, 19))
		}
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		returns <- err == nil
	}()
	return <-returns
}

// prioritise changes the priority of all threads of the spare, which is a process
// group of its own, to the daemon's, lowered by that much. A failure is of no consequence.
func (sp *Spare) prioritise(lower int) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err == nil {
		// The system call returns 20 minus the priority.
		_ = unix.Setpriority(unix.PRIO_PGRP, sp.Process.PID, min(20-own+lower, 19))
	}
}

// serveArgs has room after the command for the arguments that the shim shows in
// place of it when it knows its task.
func (p *Pool) serveArgs(path string) []string {
	room := len("-namespace  -id  -address ") + 2*76 + len(p.opts.Address)
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

// Assignment tells a spare shim what it is for. The message is its length in 4
// bytes, big-endian, and this as JSON, with the listening socket (SCM_RIGHTS).
type Assignment struct {
	Namespace    string `json:"namespace"`
	ID           string `json:"id"`
	Bundle       string `json:"bundle"`
	Address      string `json:"address"`
	TTRPCAddress string `json:"ttrpc_address"`
	Socket       string `json:"socket"`
	Debug        bool   `json:"debug"`
}

// Assign hands the task over to the spare, with the socket on which it is to listen.
func (sp *Spare) Assign(a Assignment, listener int) error {
	if sp.polite {
		sp.prioritise(0)
		sp.polite = false
	}
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode assignment: %w", err)
	}
	msg := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	sp.control.SetWriteDeadline(time.Now().Add(answerTimeout))
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

// Answer waits until the spare has taken its assignment, or refused it: one line
// of JSON, {"pid":N,"version":3}, or {"error":"…"}.
func (sp *Spare) Answer() error {
	sp.control.SetReadDeadline(time.Now().Add(answerTimeout))
	line, err := sp.line()
	sp.control.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("the shim does not take the task: %w", err)
	}
	return parseAnswer(line)
}

// line is the next line from the shim.
func (sp *Spare) line() ([]byte, error) {
	for {
		if line, rest, ok := bytes.Cut(sp.said, []byte{'\n'}); ok {
			sp.said = bytes.Clone(rest)
			return line, nil
		}
		if len(sp.said) > maxAnswer {
			return nil, errors.New("it says more than a line")
		}
		chunk := make([]byte, 128)
		n, err := sp.control.Read(chunk)
		if err != nil {
			return nil, err
		}
		sp.said = append(sp.said, chunk[:n]...)
	}
}

// AwaitIdle returns when the shim tells that its assignment is over (true), or
// when its end of the socket is closed, or ours.
func (sp *Spare) AwaitIdle() bool {
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
