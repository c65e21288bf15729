package shimconn

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dialVsock connects to a port of a virtual machine, <context ID>:<port>.
func dialVsock(ctx context.Context, rest string) (net.Conn, error) {
	cid, port, ok := strings.Cut(rest, ":")
	c, cerr := strconv.ParseUint(cid, 10, 32)
	p, perr := strconv.ParseUint(port, 10, 32)
	if !ok || cerr != nil || perr != nil {
		return nil, fmt.Errorf("shim address vsock://%s is not <context ID>:<port>: %w", rest, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	conn := &vsockConn{File: os.NewFile(uintptr(fd), "vsock://"+rest)}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)})
	if err == unix.EINPROGRESS {
		err = conn.awaitConnect(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, os.NewSyscallError("connect", err)
	}
	return conn, nil
}

// vsockConn is a socket of a family that package net does not know.
type vsockConn struct{ *os.File }

// awaitConnect waits until the socket is connected, or cannot be.
func (c *vsockConn) awaitConnect(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(poll, 0); n == 0 || err == unix.EINTR {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		failure = err
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return failure
}

func (c *vsockConn) LocalAddr() net.Addr  { return vsockAddr(c.Name()) }
func (c *vsockConn) RemoteAddr() net.Addr { return vsockAddr(c.Name()) }

type vsockAddr string

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return string(a) }
