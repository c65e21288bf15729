// Package shimproc is the processes of shims as the daemon holds them: by pidfd
// (process.go), one build of a shim (edition.go), and those of Berth's own that
// are started with a control socket and wait for an assignment (spare.go), a few
// at a time (pool.go).
//
// It knows no tasks and makes no decision about a shim: package task does.
package shimproc

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Process is a shim's process, held by a pidfd so that its PID cannot come to
// mean another.
type Process struct {
	PID int
	// Exited is closed when it has ended, or when it is not watched any longer.
	Exited <-chan struct{}
	exited chan struct{}
	fd     *os.File
	once   sync.Once
}

// Open takes hold of a running process that is nobody's child here.
func Open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return newProcess(pid, fd), nil
}

// newProcess takes over a pidfd. The process is reaped if it is a child.
func newProcess(pid, fd int) *Process {
	// Non-blocking, so that the runtime waits for it without a thread.
	unix.SetNonblock(fd, true)
	ended := make(chan struct{})
	p := &Process{PID: pid, Exited: ended, exited: ended, fd: os.NewFile(uintptr(fd), "pidfd")}
	go p.watch()
	return p
}

func (p *Process) watch() {
	defer close(p.exited)
	defer p.Close()
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return
	}
	conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if err == unix.EINTR || n == 0 {
			return false
		}
		var info unix.Siginfo
		unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
		return true
	})
}

// HasExited tells whether Exited is closed.
func (p *Process) HasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Kill ends the process at once; it is no error when it has ended.
func (p *Process) Kill() {
	if conn, err := p.fd.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// Close stops the watch.
func (p *Process) Close() { p.once.Do(func() { p.fd.Close() }) }
