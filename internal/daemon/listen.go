package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into a sockaddr_un with its final NUL.
const maxSocketPath = 107

// listenUnix makes the socket at path, which only root and the given user and
// group may use. A socket that nobody listens on is replaced;
// errdefs.ErrAlreadyExists when somebody does.
//
// Differs from containerd: the group has access only when it is not root's.
func listenUnix(path string, uid, gid int) (net.Listener, error) {
	path = strings.TrimPrefix(path, "unix://")
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, the kernel takes no more than %d: %w", path, len(path), maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := bindUnix(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	mode := os.FileMode(0o600)
	if gid != 0 {
		mode = 0o660
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode)); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("owner and mode of %s: %w", path, err)
	}
	return l, nil
}

// bindUnix makes a socket that is root's alone from its first moment, whatever the
// umask: what is bound has the mode of the descriptor.
func bindUnix(path string) (net.Listener, error) {
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	return private.Listen(context.Background(), "unix", path)
}

// removeStale removes a socket that a daemon has left behind, never anything else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("socket %s: there is something else in its place: %w", path, errdefs.ErrFailedPrecondition)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		defer conn.Close()
		return fmt.Errorf("socket %s: %s listens there: %w", path, peer(conn), errdefs.ErrAlreadyExists)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket %s: try whether somebody listens: %w", path, err)
	}
	return os.Remove(path)
}

// peer names the process at the other end of a connection.
func peer(conn net.Conn) string {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "another process"
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if cred == nil {
		return "another process"
	}
	return process(int(cred.Pid))
}

// process describes a process by name and PID.
func process(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), pid)
}
