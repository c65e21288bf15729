package shimconn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Listen makes a listening Unix socket that only root can reach. A file that an
// ended shim left there is replaced; errdefs.ErrAlreadyExists when somebody
// listens. The caller closes the descriptor.
func Listen(path string) (int, error) {
	fd, err := listenOnce(path)
	if err == unix.ENOENT {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return -1, fmt.Errorf("make directory of shim sockets: %w", err)
		}
		fd, err = listenOnce(path)
	}
	if err == unix.EADDRINUSE {
		c, derr := net.Dial("unix", path)
		if derr == nil {
			c.Close()
		}
		if !NobodyListens(derr) { // who has a full queue does listen
			return -1, fmt.Errorf("somebody listens on %s: %w", path, errdefs.ErrAlreadyExists)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return -1, fmt.Errorf("remove old shim socket: %w", err)
		}
		fd, err = listenOnce(path)
	}
	if err != nil {
		return -1, fmt.Errorf("listen on shim socket %s: %w", path, err)
	}
	return fd, nil
}

func listenOnce(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	// The mode of the socket becomes that of the file: there is no moment at
	// which others could connect.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// dial connects to a shim. Addresses are unix://PATH, vsock://CID:PORT,
// hvsock://PATH:PORT, or the name of an abstract socket.
func dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case !ok:
		return d.DialContext(ctx, "unix", "\x00"+address)
	case scheme == "unix":
		return d.DialContext(ctx, "unix", rest)
	case scheme == "hvsock":
		return dialHybrid(ctx, rest)
	case scheme == "vsock":
		return dialVsock(ctx, rest)
	default:
		return nil, fmt.Errorf("shim address %q: scheme %s is not supported: %w", address, scheme, errdefs.ErrNotImplemented)
	}
}

// dialHybrid reaches a port in a virtual machine through the socket of its
// monitor: CONNECT and the port, answered by a line with OK.
func dialHybrid(ctx context.Context, rest string) (net.Conn, error) {
	path, port, ok := strings.Cut(rest, ":")
	if !ok {
		return nil, fmt.Errorf("shim address hvsock://%s lacks a port: %w", rest, errdefs.ErrInvalidArgument)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(conn, "CONNECT %s\n", port); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to port %s of %s: %w", port, path, err)
	}
	// One byte at a time: what follows the line belongs to the protocol above.
	line, err := bufio.NewReaderSize(oneByte{conn}, 16).ReadString('\n')
	if err == nil && !strings.Contains(line, "OK") {
		err = fmt.Errorf("answer %q: %w", line, errdefs.ErrUnavailable)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to port %s of %s: %w", port, path, err)
	}
	return conn, nil
}

type oneByte struct{ net.Conn }

func (c oneByte) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.Conn.Read(p[:1])
}

// NobodyListens tells from the error of Connect that there is no shim at the
// address, rather than one that does not answer.
func NobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOTSOCK)
}

// stallGuard bounds how long a write to a shim that does not read may block: the
// client holds a lock over its writes, which no context of a call can break.
type stallGuard struct{ net.Conn }

const stallTimeout = 10 * time.Second

func (c stallGuard) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
