package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// spliceSize is how much one call may move: as much as a pipe can be made to hold.
const spliceSize = 1 << 20

// splice moves bytes between two pipes or FIFOs, both non-blocking, until src is
// at its end or dst has no reader, and counts them.
func splice(dst, src *os.File, moved *atomic.Int64) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	for {
		// dst may be closed by another meanwhile: its number is only valid
		// inside of Write.
		var full bool
		var n int64
		var serr error
		move := func(rfd, wfd uintptr) (again bool) {
			for {
				n, serr = unix.Splice(int(rfd), nil, int(wfd), nil, spliceSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				if serr != unix.EINTR {
					return serr == unix.EAGAIN
				}
			}
		}
		err = in.Read(func(rfd uintptr) bool {
			full = false
			werr := out.Control(func(wfd uintptr) {
				if move(rfd, wfd) {
					// One of them cannot; if src has something, or is at its end, it is dst.
					poll := []unix.PollFd{{Fd: int32(rfd), Events: unix.POLLIN}}
					n, perr := unix.Poll(poll, 0)
					full = perr == nil && n > 0
				}
			})
			if werr != nil {
				serr = werr
				return true
			}
			return serr != unix.EAGAIN || full
		})
		if err == nil && full {
			err = out.Write(func(wfd uintptr) bool {
				again := false
				if rerr := in.Control(func(rfd uintptr) { again = move(rfd, wfd) }); rerr != nil {
					serr = rerr
					return true
				}
				return !again
			})
		}
		switch {
		case err != nil:
			return err
		case serr != nil:
			return serr
		case n == 0:
			return nil
		}
		moved.Add(n)
	}
}

// buffers for streams that cannot be spliced: terminals and files.
var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// copyBuffered copies until src is at its end, which a terminal that nobody
// has open tells by EIO.
func copyBuffered(dst, src *os.File, moved *atomic.Int64) error {
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
			moved.Add(int64(n))
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, unix.EIO):
			return nil
		case err != nil:
			return err
		}
	}
}
