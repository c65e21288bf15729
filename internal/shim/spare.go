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

// ServeSpare waits on the control socket for an assignment and then is the shim of
// it. It returns nil at once when the other end is closed before: a spare dies
// with its daemon.
//
// The message is its length in 4 bytes, big-endian, and a JSON object with the
// fields of assignment; the listening socket comes with it (SCM_RIGHTS). The
// answer is one line of JSON: {"pid":N,"version":3} or {"error":"…"}.
func ServeSpare(ctx context.Context) error {
	tune()
	warm()
	raw, listener, err := receiveAssignment(controlFD)
	if errors.Is(err, io.EOF) {
		return nil
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
		return err
	}
	failpoint.Hit("shim.serve.assigned")
	showCommandLine("-namespace", a.Namespace, "-id", a.ID, "-address", a.Address)
	answer(controlFD, map[string]any{"pid": os.Getpid(), "version": 3})
	return Serve(ctx, Config{Namespace: a.Namespace, TTRPCAddress: a.TTRPCAddress, Listener: listener, Log: newLog(os.Stderr, a.Debug)})
}

func newLog(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// receiveAssignment blocks its thread: a spare has no other goroutine.
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

func answer(fd int, v any) {
	line, err := json.Marshal(v)
	if err == nil {
		// A daemon that is gone does not need it.
		_ = unix.Send(fd, append(line, '\n'), unix.MSG_NOSIGNAL)
	}
	unix.Close(fd)
}

// showCommandLine makes the arguments after the program's name those given, as
// far as they fit in the memory of the present ones, which the kernel shows as
// the command line. It must come before os.Args is used by another goroutine.
func showCommandLine(args ...string) {
	var room []byte
	if n := len(os.Args); n > 1 {
		// The arguments lie one after the other, each with a NUL at its end.
		first := unsafe.StringData(os.Args[1])
		last := unsafe.StringData(os.Args[n-1])
		size := uintptr(unsafe.Pointer(last)) + uintptr(len(os.Args[n-1])) - uintptr(unsafe.Pointer(first))
		room = unsafe.Slice(first, size)
	}
	line := make([]byte, 0, len(room))
	for _, a := range args {
		line = append(append(line, a...), 0)
	}
	line = line[:max(0, min(len(line)-1, len(room)))]
	os.Args = append([]string{string([]byte(os.Args[0]))}, args...)
	clear(room)
	copy(room, line)
}
