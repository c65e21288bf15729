package shimconn

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// shortDir is a directory whose sockets' paths fit.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "sc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := shortDir(t) + "/s/x"
	fd, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("while somebody listens: %v, want AlreadyExists", err)
	}
	unix.Close(fd)
	if _, err := Connect(t.Context(), "ttrpc", "unix://"+path); !NobodyListens(err) {
		t.Errorf("after the end: %v", err)
	}
	fd, err = Listen(path) // the file that was left is replaced
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// A shim that hangs, and has as many connections waiting as it can have, is one.
func TestListenFullQueue(t *testing.T) {
	path := shortDir(t) + "/s"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if fd, err := Listen(path); !errdefs.IsAlreadyExists(err) {
		unix.Close(fd)
		t.Errorf("listen beside a shim with a full queue: %v", err)
	}
}

// Where gRPC is spoken a bare path is a path.
func TestBarePath(t *testing.T) {
	path := shortDir(t) + "/x"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Connect(t.Context(), "grpc", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := Connect(t.Context(), "ttrpc", path); !NobodyListens(err) {
		t.Errorf("without a scheme ttrpc's sockets are abstract: %v", err)
	}
}

// A listener that never answers, and then ends.
func TestLoss(t *testing.T) {
	for _, protocol := range []string{"ttrpc", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			path := shortDir(t) + "/x"
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			conns := make(chan net.Conn, 4)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					conns <- c
				}
			}()
			c, err := Connect(t.Context(), protocol, "unix://"+path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := c.Call(ctx, 3, "ns", "State", &taskapi.StateRequest{}, &taskapi.StateResponse{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("no answer: %v, want DeadlineExceeded", err)
			}
			l.Close()
			(<-conns).Close()
			<-c.Done()
			err = c.Call(t.Context(), 3, "ns", "State", &taskapi.StateRequest{}, &taskapi.StateResponse{})
			if !errors.Is(err, ErrLost) || !errdefs.IsUnavailable(err) {
				t.Errorf("after the loss: %v, want ErrLost", err)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for address, kind := range map[string]func(error) bool{
		"vsock://nobody":            errdefs.IsInvalidArgument,
		"vsock://4000000000:1024":   func(err error) bool { return !errdefs.IsInvalidArgument(err) }, // no such machine
		"tcp://127.0.0.1:1":         errdefs.IsNotImplemented,
		"hvsock:///nonexistent":     errdefs.IsInvalidArgument,
		"hvsock:///nonexistent:1":   NobodyListens,
		"unix:///nonexistent/x":     NobodyListens,
		"abstract-name-of-no-shim1": NobodyListens,
	} {
		if _, err := Connect(t.Context(), "ttrpc", address); err == nil || !kind(err) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// The socket of a virtual machine's monitor: a line each way comes first.
func TestHybridVsock(t *testing.T) {
	path := shortDir(t) + "/v"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{"OK 1073741824\nrest", "NO\n"}
	go func() {
		for _, answer := range answers {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64)
			n, _ := c.Read(buf)
			if string(buf[:n]) != "CONNECT 42\n" {
				answer = "NO\n"
			}
			c.Write([]byte(answer))
			c.Close()
		}
	}()
	c, err := dial(t.Context(), "hvsock://"+path+":42")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, _ := c.Read(buf)
	if !strings.HasPrefix("rest", string(buf[:n])) || n == 0 {
		t.Errorf("read %q after the handshake", buf[:n])
	}
	c.Close()
	if _, err := dial(t.Context(), "hvsock://"+path+":42"); err == nil {
		t.Error("refused, yet connected")
	}
}
