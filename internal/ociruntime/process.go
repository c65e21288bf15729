package ociruntime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// builtinProcess is a process that libcontainer started.
type builtinProcess struct {
	pid     int
	console *os.File

	mu   sync.Mutex
	lp   *libcontainer.Process
	done bool // collected: the PID may be another's
}

func (p *builtinProcess) PID() int          { return p.pid }
func (p *builtinProcess) Console() *os.File { return p.console }

func (p *builtinProcess) Collect() (syscall.WaitStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	state, err := p.lp.Wait()
	p.lp = nil
	if state == nil {
		return 0, err
	}
	// A status that is not 0 is an error to os/exec, and none here.
	return state.Sys().(syscall.WaitStatus), nil
}

func (p *builtinProcess) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return signalChild(p.pid, p.done, sig)
}

// signalChild sends a signal to a child. The PID is the child's own until it is
// collected.
func signalChild(pid int, collected bool, sig syscall.Signal) error {
	if !collected {
		if kerr := unix.Kill(pid, sig); kerr == nil {
			return nil
		} else if !errors.Is(kerr, unix.ESRCH) {
			return fmt.Errorf("send signal %d to process %d: %w", sig, pid, kerr)
		}
	}
	return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
}

// startProcess runs start with the streams, or a new terminal, set in process.
func startProcess(process *libcontainer.Process, stdio Stdio, terminal bool, start func(*libcontainer.Process) error) (*builtinProcess, error) {
	p := &builtinProcess{lp: process}
	if terminal {
		parent, child, err := utils.NewSockPair("console")
		if err != nil {
			return nil, fmt.Errorf("make the console's socket: %w", err)
		}
		defer parent.Close()
		defer child.Close()
		process.ConsoleSocket = child
		if err := start(process); err != nil {
			return nil, err
		}
		if p.console, err = receiveConsole(int(parent.Fd())); err != nil {
			_ = process.Signal(unix.SIGKILL)
			_, _ = process.Wait()
			return nil, err
		}
	} else {
		// A nil *os.File in an interface would not be nil.
		if stdio.Stdin != nil {
			process.Stdin = stdio.Stdin
		}
		if stdio.Stdout != nil {
			process.Stdout = stdio.Stdout
		}
		if stdio.Stderr != nil {
			process.Stderr = stdio.Stderr
		}
		if err := start(process); err != nil {
			return nil, err
		}
	}
	var err error
	p.pid, err = process.Pid()
	return p, err
}

// receiveConsole reads the master of a terminal from a socket that its maker
// has already sent it to, or will before it closes the socket.
func receiveConsole(socket int) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(socket, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the console: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receive the console: no file descriptor came: %w", errors.Join(err, errdefs.ErrUnknown))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the console: %d file descriptors came: %w", len(fds), errors.Join(err, errdefs.ErrUnknown))
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive the console: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// awaitStopped returns when the init process of a container, which was killed,
// has ended. It may be a zombie that its parent has not reaped.
func awaitStopped(lc *libcontainer.Container) error {
	state, err := lc.State()
	if err != nil {
		return err
	}
	if fd, err := unix.PidfdOpen(state.InitProcessPid, 0); err == nil {
		defer unix.Close(fd)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		deadline := time.Now().Add(10 * time.Second)
		for {
			// Asked only now: the PID may have been another's already.
			if status, err := lc.Status(); err != nil || status == libcontainer.Stopped {
				return err
			}
			left := time.Until(deadline)
			if left <= 0 {
				break
			}
			if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for the container's init: %w", err)
			}
		}
	}
	if status, err := lc.Status(); err != nil || status == libcontainer.Stopped {
		return err
	}
	return fmt.Errorf("%w: the container's init does not end though it was killed", errdefs.ErrUnavailable)
}

// ownPIDs tells whether a container has a PID namespace of its own, so that the
// kernel ends all its processes with its init.
func ownPIDs(spec *specs.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	return slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace && ns.Path == ""
	})
}

// checkProcess tells what libcontainer takes for granted.
func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return fmt.Errorf("%w: config.json has no process", errdefs.ErrInvalidArgument)
	case len(p.Args) == 0:
		return fmt.Errorf("%w: process.args is empty: no command to run", errdefs.ErrInvalidArgument)
	case p.Cwd == "":
		return fmt.Errorf("%w: process.cwd is empty", errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(p.Cwd):
		return fmt.Errorf("%w: process.cwd %q is not an absolute path", errdefs.ErrInvalidArgument, p.Cwd)
	}
	return nil
}

// initLogLevel has a container's init tell what is wrong, logrus's level for
// informing, but not each of its steps: those are some thirty lines, for every
// one of which this process wakes up and decodes JSON while it waits for the init.
const initLogLevel = "4"

func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        initLogLevel,
	}
	if size := p.ConsoleSize; size != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(size.Width), uint16(size.Height)
	}
	if caps := p.Capabilities; caps != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding:    caps.Bounding,
			Effective:   caps.Effective,
			Inheritable: caps.Inheritable,
			Permitted:   caps.Permitted,
			Ambient:     caps.Ambient,
		}
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	for _, r := range p.Rlimits {
		kind, err := Rlimit(r.Type)
		if err != nil {
			return nil, err
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Hard: r.Hard, Soft: r.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("%w: process.execCPUAffinity: %w", errdefs.ErrInvalidArgument, err)
	}
	lp.CPUAffinity = affinity
	return lp, nil
}

// Rlimit is the number of a resource limit by its name, such as RLIMIT_NOFILE
// (setrlimit(2)); errdefs.ErrInvalidArgument when there is none of the name.
func Rlimit(name string) (int, error) {
	switch name {
	case "RLIMIT_CPU":
		return unix.RLIMIT_CPU, nil
	case "RLIMIT_FSIZE":
		return unix.RLIMIT_FSIZE, nil
	case "RLIMIT_DATA":
		return unix.RLIMIT_DATA, nil
	case "RLIMIT_STACK":
		return unix.RLIMIT_STACK, nil
	case "RLIMIT_CORE":
		return unix.RLIMIT_CORE, nil
	case "RLIMIT_RSS":
		return unix.RLIMIT_RSS, nil
	case "RLIMIT_NPROC":
		return unix.RLIMIT_NPROC, nil
	case "RLIMIT_NOFILE":
		return unix.RLIMIT_NOFILE, nil
	case "RLIMIT_MEMLOCK":
		return unix.RLIMIT_MEMLOCK, nil
	case "RLIMIT_AS":
		return unix.RLIMIT_AS, nil
	case "RLIMIT_LOCKS":
		return unix.RLIMIT_LOCKS, nil
	case "RLIMIT_SIGPENDING":
		return unix.RLIMIT_SIGPENDING, nil
	case "RLIMIT_MSGQUEUE":
		return unix.RLIMIT_MSGQUEUE, nil
	case "RLIMIT_NICE":
		return unix.RLIMIT_NICE, nil
	case "RLIMIT_RTPRIO":
		return unix.RLIMIT_RTPRIO, nil
	case "RLIMIT_RTTIME":
		return unix.RLIMIT_RTTIME, nil
	}
	return 0, fmt.Errorf("%w: process.rlimits names %q, which is no resource limit", errdefs.ErrInvalidArgument, name)
}
