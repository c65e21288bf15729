package shim

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a process to be collected: one of a container.
type child interface {
	PID() int
	// Collect reaps the process, which has ended.
	Collect() (syscall.WaitStatus, error)
}

// reaper collects the children of this process: those of containers, which are
// registered and whose end is reported, and orphans that came to us because we
// are a child subreaper.
//
// Nothing that ends early is lost: who starts processes does so between Hold and
// its release, in which time no child is reaped that is not registered, and
// registers them before the release. Registered ones are collected by PID all the
// while, so that a start that hangs holds up no exit.
type reaper struct {
	mu       sync.Mutex
	held     int
	children map[int]registered
}

type registered struct {
	child  child
	exited func(status uint32, at time.Time)
}

func newReaper() *reaper { return &reaper{children: map[int]registered{}} }

// Hold keeps unknown children from being reaped until release is called (once):
// somebody else waits for them.
func (r *reaper) Hold() (release func()) {
	r.mu.Lock()
	r.held++
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.held--
		r.mu.Unlock()
		r.Sweep()
	}
}

// Register has exited called, on another goroutine's time, once c has ended. It is
// called while Hold is in force.
func (r *reaper) Register(c child, exited func(status uint32, at time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.children[c.PID()] = registered{c, exited}
}

// Sweep collects what has ended. It is called at every SIGCHLD.
func (r *reaper) Sweep() {
	r.mu.Lock()
	type exit struct {
		registered
		status uint32
	}
	var exits []exit
	collect := func(pid int) {
		reg := r.children[pid]
		delete(r.children, pid)
		ws, err := reg.child.Collect()
		status := exitStatus(ws)
		if err != nil && ws == 0 {
			status = unknownStatus
		}
		exits = append(exits, exit{reg, status})
	}
	for {
		pid, ok := ended(unix.P_ALL, 0)
		if !ok {
			break
		}
		if _, ours := r.children[pid]; ours {
			collect(pid)
			continue
		}
		if r.held > 0 {
			// It hides those behind it: ask for ours one by one.
			for pid := range r.children {
				if _, ok := ended(unix.P_PID, pid); ok {
					collect(pid)
				}
			}
			break
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			break
		}
	}
	r.mu.Unlock()
	now := time.Now()
	for _, e := range exits {
		e.exited(e.status, now)
	}
}

// unknownStatus is reported for a process whose status could not be had.
const unknownStatus = 255

// exitStatus is the exit code, or 128 plus the number of the signal.
func exitStatus(ws syscall.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// haveChildren tells whether this process has any, ended or not.
func haveChildren() bool {
	_, err := waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	return err != unix.ECHILD
}

// ended tells a child that has ended, without reaping it.
func ended(kind, pid int) (int, bool) {
	for {
		child, err := waitid(kind, pid, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
		if err == unix.EINTR {
			continue
		}
		return child, err == nil && child != 0
	}
}
