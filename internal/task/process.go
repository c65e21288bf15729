package task

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// process is a shim's process, held by a pidfd so that its PID cannot come to
// mean another.
type process struct {
	pid int
	// exited is closed when it has ended, or when it is not watched any longer.
	exited chan struct{}
	fd     *os.File
	once   sync.Once
}

// openProcess takes hold of a running process that is nobody's child here.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return newProcess(pid, fd), nil
}

// newProcess takes over a pidfd. The process is reaped if it is a child.
func newProcess(pid, fd int) *process {
	// Non-blocking, so that the runtime waits for it without a thread.
	unix.SetNonblock(fd, true)
	p := &process{pid: pid, exited: make(chan struct{}), fd: os.NewFile(uintptr(fd), "pidfd")}
	go p.watch()
	return p
}

func (p *process) watch() {
	defer close(p.exited)
	defer p.close()
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

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// kill ends the process at once; it is no error when it has ended.
func (p *process) kill() {
	if conn, err := p.fd.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// close stops the watch.
func (p *process) close() { p.once.Do(func() { p.fd.Close() }) }
