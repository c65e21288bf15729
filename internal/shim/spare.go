package shim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
	"unsafe"

	"berth/internal/failpoint"

	"golang.org/x/sys/unix"
)

// assignment is what a spare shim is told to become.
type assignment struct {
	Namespace    string `json:"namespace"`
	ID           string `json:"id"`
	Bundle       string `json:"bundle"`
	Address      string `json:"address"`
	TTRPCAddress string `json:"ttrpc_address"`
	Socket       string `json:"socket"`
	Debug        bool   `json:"debug"`
}

// maxAssignment bounds the message.
const maxAssignment = 64 << 10

// controlFD is the socket on which a spare shim gets its assignment.
const controlFD = 3

// maxLives is how many assignments a process takes one after the other, so that
// nothing that it might lose in one of them adds up.
const maxLives = 100

// ServeSpare waits on the control socket for an assignment, is the shim of it,
// and when all its containers are deleted is a spare again. It returns nil when
// the other end of the socket is closed while it is a spare: a spare dies with
// its daemon.
//
// The message is its length in 4 bytes, big-endian, and a JSON object with the
// fields of assignment; the listening socket comes with it (SCM_RIGHTS). The
// answer is one line of JSON: {"pid":N,"version":3} or {"error":"…"}. A second
// line, {"idle":true}, tells that the assignment is over: the socket is removed,
// all events are delivered, no child is left, and another may come. A process
// that cannot say that of itself ends instead.
func ServeSpare(ctx context.Context) error {
	unix.CloseOnExec(controlFD)
	h, line := new(host), newCommandLine()
	preferDaemon(os.Getpid())
	tune()
	warm()
	for range maxLives {
		again, err := h.takeAssignment(ctx, line)
		if err != nil || !again {
			return err
		}
		line.reset()
		if !answer(controlFD, map[string]any{"idle": true}) {
			return nil
		}
	}
	return nil
}

// takeAssignment waits for one and carries it out; again tells that the process
// is as good as new.
func (h *host) takeAssignment(ctx context.Context, line *commandLine) (again bool, err error) {
	shrink := time.AfterFunc(idleAfter, keepSmall)
	raw, listener, err := receiveAssignment(controlFD)
	shrink.Stop()
	tune()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	var a assignment
	if err == nil {
		if err = json.Unmarshal(raw, &a); err != nil {
			err = fmt.Errorf("decode the assignment: %w", err)
		}
	}
	if err == nil {
		err = os.Chdir(a.Bundle)
	}
	if err != nil {
		answer(controlFD, map[string]any{"error": err.Error()})
		return false, err
	}
	failpoint.Hit("shim.serve.assigned")
	line.show("-namespace", a.Namespace, "-id", a.ID, "-address", a.Address)
	answer(controlFD, map[string]any{"pid": os.Getpid(), "version": 3})
	clean, err := h.serve(ctx, Config{Namespace: a.Namespace, TTRPCAddress: a.TTRPCAddress, Listener: listener, Log: newLog(os.Stderr, a.Debug)})
	return clean && err == nil && os.Chdir("/") == nil, err
}

func newLog(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// receiveAssignment blocks its thread: a spare has nothing else to do.
func receiveAssignment(fd int) ([]byte, net.Listener, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	var raw []byte
	socket := -1
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, nil, os.NewSyscallError("recvmsg", err)
		}
		if n == 0 && len(raw) == 0 {
			return nil, nil, io.EOF
		}
		if n == 0 {
			return nil, nil, io.ErrUnexpectedEOF
		}
		if oobn > 0 {
			if socket, err = passedFD(oob[:oobn]); err != nil {
				return nil, nil, err
			}
		}
		raw = append(raw, buf[:n]...)
		if len(raw) < 4 {
			continue
		}
		size := binary.BigEndian.Uint32(raw)
		if size > maxAssignment {
			return nil, nil, fmt.Errorf("an assignment of %d bytes is too long", size)
		}
		if len(raw)-4 < int(size) {
			continue
		}
		if socket < 0 {
			return nil, nil, errors.New("no listening socket came with the assignment")
		}
		f := os.NewFile(uintptr(socket), "listener")
		defer f.Close()
		l, err := net.FileListener(f)
		return raw[4 : 4+size], l, err
	}
}

func passedFD(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	for _, m := range msgs {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("not exactly one file descriptor came with the assignment")
}

// answer tells whether the daemon is there to read it.
func answer(fd int, v any) bool {
	line, err := json.Marshal(v)
	return err == nil && unix.Send(fd, append(line, '\n'), unix.MSG_NOSIGNAL) == nil
}

// commandLine is the memory of this process's arguments, which the kernel shows
// to those who ask for its command line.
type commandLine struct {
	room []byte
	own  []string
}

func newCommandLine() *commandLine {
	c := &commandLine{}
	for _, a := range os.Args {
		c.own = append(c.own, strings.Clone(a))
	}
	if n := len(os.Args); n > 1 {
		// The arguments lie one after the other, each with a NUL at its end.
		first := unsafe.StringData(os.Args[1])
		last := unsafe.StringData(os.Args[n-1])
		size := uintptr(unsafe.Pointer(last)) + uintptr(len(os.Args[n-1])) - uintptr(unsafe.Pointer(first))
		c.room = unsafe.Slice(first, size)
	}
	os.Args = c.own // those in the room are not to be used any more
	return c
}

// show makes the arguments after the program's name those given, as far as they
// fit in the memory of the first ones. No other goroutine may use os.Args.
func (c *commandLine) show(args ...string) {
	line := make([]byte, 0, len(c.room))
	for _, a := range args {
		line = append(append(line, a...), 0)
	}
	line = line[:max(0, min(len(line)-1, len(c.room)))]
	os.Args = append([]string{c.own[0]}, args...)
	clear(c.room)
	copy(c.room, line)
}

// reset shows the arguments with which the program was started.
func (c *commandLine) reset() { c.show(c.own[1:]...) }
