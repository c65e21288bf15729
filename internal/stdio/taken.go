package stdio

import (
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// fifoOutput is a FIFO that output goes to.
type fifoOutput struct {
	src, dst *os.File
	path     string
	moved    atomic.Int64 // bytes from src to dst
}

// watch remembers an output that is a FIFO for AwaitTaken and returns where its
// bytes are to be counted.
func (s *Streams) watch(src *os.File, out output) *atomic.Int64 {
	if !out.fifo {
		return nil
	}
	f := &fifoOutput{src: src, dst: out.file, path: out.file.Name()}
	s.mu.Lock()
	s.fifos = append(s.fifos, f)
	s.mu.Unlock()
	return &f.moved
}

// AwaitTaken returns when no client has an end of a FIFO open without having begun
// to read the output that came, or after the limit. It is for a process that has
// ended: a client that learns of the end before it has got as far as reading gives
// its FIFOs up, and the output of a short process would be lost with them. Who has
// begun reads on to the end.
func (s *Streams) AwaitTaken(limit time.Duration) {
	const slowest = 20 * time.Millisecond
	pause := 500 * time.Microsecond
	for end := time.Now().Add(limit); s.IsUntaken() && time.Now().Before(end); pause = min(2*pause, slowest) {
		time.Sleep(pause) // the kernel does not tell a writer that somebody has read
	}
}

// IsUntaken tells whether AwaitTaken would wait.
func (s *Streams) IsUntaken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	for _, f := range s.fifos {
		if f.isUntaken() {
			return true
		}
	}
	return false
}

func (f *fifoOutput) isUntaken() bool {
	// In the order that bytes go, so that none on their way is missed. Of a terminal
	// or pipe that fails nothing more comes.
	toCome, err := unread(f.src)
	if err != nil {
		toCome = 0
	}
	moved := f.moved.Load()
	inFIFO, err := unread(f.dst)
	if err != nil { // closed: the stream is at its end, and all is counted
		moved = f.moved.Load()
		return moved > 0 && f.holds(moved)
	}
	if inFIFO < moved {
		return false
	}
	return inFIFO > 0 || toCome > 0
}

// holds tells whether there are as many bytes in the FIFO and a reader for them.
func (f *fifoOutput) holds(n int64) bool {
	// Only one that has a reader can be opened like this (fifo(7)).
	w, err := os.OpenFile(f.path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer w.Close()
	there, err := unread(w)
	return err == nil && there == n
}

// unread is how many bytes stand in a pipe or FIFO.
func unread(f *os.File) (int64, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var ioctl error
	if err := raw.Control(func(fd uintptr) { n, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return 0, err
	}
	return int64(n), ioctl
}
