package stdio

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// output is where a stream of the process leads.
type output struct {
	file *os.File
	// fifo: file is open for reading, too, so that writing never fails.
	fifo bool
}

// pipeInput makes the pipe that is stdin of the process.
func (s *Streams) pipeInput(opts Options) error {
	if s.io.Stdin == "" {
		return nil
	}
	theirs, ours, err := pipe(opts, writeEnd)
	if err != nil {
		return err
	}
	s.child[0], s.input = theirs, ours
	return nil
}

// openInput opens the read end of a FIFO, and a write end that keeps it from
// being at its end before a client came, or when one goes away.
func openInput(path string) (in, hold *os.File, err error) {
	// Non-blocking opens in this order neither wait nor fail.
	if in, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	if hold, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, hold, nil
}

// pipeOutputs connects stdout and stderr.
func (s *Streams) pipeOutputs(ctx context.Context, opts Options) error {
	if uri, ok := loggerURI(s.io.Stdout); ok {
		// Compat: one logger takes both streams, whatever stderr says.
		return s.startLogger(ctx, uri, opts)
	}
	for i, path := range []string{s.io.Stdout, s.io.Stderr} {
		if path == "" {
			continue
		}
		if i == 1 && path == s.io.Stdout {
			// One stream, so that the order of what is written is kept.
			fd, err := unix.FcntlInt(s.child[1].Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return os.NewSyscallError("fcntl", err)
			}
			s.child[2] = os.NewFile(uintptr(fd), path)
			continue
		}
		out, err := openOutput(ctx, path, opts.Patience)
		if err != nil {
			return err
		}
		ours, theirs, err := pipe(opts, readEnd)
		if err != nil {
			out.file.Close()
			return err
		}
		s.child[1+i] = theirs
		s.pumps = append(s.pumps, s.outputPump(ours, out))
	}
	return nil
}

func (s *Streams) outputPump(src *os.File, out output) pump {
	p := pump{src: src, dst: out.file, copy: copyBuffered, moved: s.watch(src, out)}
	if out.fifo {
		p.copy = splice
	}
	p.end = func() {
		src.Close()
		s.finish(out)
	}
	return p
}

// attachOutput passes on what a terminal shows.
func (s *Streams) attachOutput(ctx context.Context, console *os.File, opts Options) error {
	if uri, ok := loggerURI(s.io.Stdout); ok {
		return s.attachLogger(ctx, uri, console, opts)
	}
	path := s.io.Stdout
	if path == "" {
		path = os.DevNull // somebody must read, or the process stops when the terminal is full
	}
	out, err := openOutput(ctx, path, opts.Patience)
	if err != nil {
		return err
	}
	s.run(pump{src: console, dst: out.file, copy: copyBuffered, moved: s.watch(console, out), end: func() { s.finish(out) }})
	return nil
}

// finish closes an output that is at its end. What stands in a FIFO that no client
// has open for reading is kept: until one comes, which then finds the end behind
// it, or until Close.
func (s *Streams) finish(out output) {
	if !out.fifo {
		out.file.Close()
		return
	}
	// A write end of its own, which has an error as long as nobody reads.
	path := out.file.Name()
	w, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	out.file.Close()
	if err != nil {
		return // the client has removed the FIFO
	}
	poll := []unix.PollFd{{Fd: int32(w)}}
	if _, err := unix.Poll(poll, 0); err != nil || poll[0].Revents&unix.POLLERR == 0 {
		unix.Close(w)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		unix.Close(w)
		return
	}
	l := &lateFIFO{w: w, done: make(chan struct{})}
	s.late = append(s.late, l)
	go func() {
		defer close(l.done)
		// Waits, on a thread of its own, until the FIFO has a reader: a client, or
		// dismiss. The kernel counts the reader before we go on and close our end.
		if fd, err := unix.Open(l.path(), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
		}
		s.mu.Lock()
		unix.Close(l.w)
		l.w = -1
		s.mu.Unlock()
	}()
}

// lateFIFO is a FIFO with output that no client has come for.
type lateFIFO struct {
	w    int // a write end, -1 when it is closed; Streams.mu guards it
	done chan struct{}
}

// path leads to the FIFO even if the client has removed it.
func (l *lateFIFO) path() string { return "/proc/self/fd/" + strconv.Itoa(l.w) }

// dismiss ends the wait for a client. Streams.mu is not held.
func (s *Streams) dismiss(l *lateFIFO) {
	s.mu.Lock()
	if l.w < 0 {
		s.mu.Unlock()
		return
	}
	r, err := unix.Open(l.path(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	s.mu.Unlock()
	if err != nil {
		return // no descriptor is left: the goroutine waits on
	}
	<-l.done
	unix.Close(r)
}

// openOutput opens a FIFO, a file:// URI or a plain file for writing.
func openOutput(ctx context.Context, path string, patience time.Duration) (output, error) {
	if strings.Contains(path, "://") {
		u, err := url.Parse(path)
		if err != nil {
			return output{}, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		if u.Scheme != "file" && u.Scheme != "fifo" {
			return output{}, fmt.Errorf("%w: %s: streams lead to a FIFO's path, a file:// or a binary:// URI", errdefs.ErrInvalidArgument, path)
		}
		path = u.Path
		if u.Scheme == "file" {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return output{}, err
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			return output{file: f}, err
		}
	}
	if !filepath.IsAbs(path) {
		return output{}, fmt.Errorf("%w: %q is not an absolute path", errdefs.ErrInvalidArgument, path)
	}
	st, err := os.Stat(path)
	if err != nil {
		return output{}, err
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		return output{file: f}, err
	}
	w, err := awaitReader(ctx, path, patience)
	if err != nil {
		return output{}, err
	}
	// Opening a FIFO for both never waits (fifo(7)). Only then is the write end
	// closed, or the reader would find the end of the stream.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	w.Close()
	return output{file: f, fifo: true}, err
}

// awaitReader waits, for the patience given and as long as ctx at most, until
// somebody opens a FIFO for reading, and returns a write end.
//
// Clients open their ends beside the call that has a process made, and give up
// those that are not open when it has ended: of one that is quicker than its client
// they would see nothing.
func awaitReader(ctx context.Context, path string, patience time.Duration) (*os.File, error) {
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if !errors.Is(err, unix.ENXIO) {
		return w, err
	}
	// A handle that leads to the FIFO even when the client has removed its name:
	// both ends below are of the same one.
	handle, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	path = "/proc/self/fd/" + strconv.Itoa(int(handle.Fd()))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type result struct {
		w   *os.File
		err error
	}
	opened := make(chan result, 1)
	go func() { // waits on a thread of its own
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		opened <- result{w, err}
	}()
	select {
	case r := <-opened:
		return r.w, r.err
	case <-ctx.Done():
	}
	// A reader of our own lets it go. What is written waits for the client.
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err // no descriptor is left: the goroutine waits on
	}
	defer r.Close()
	late := <-opened
	return late.w, late.err
}

func checkFIFO(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%w: %q is not an absolute path", errdefs.ErrInvalidArgument, path)
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		return fmt.Errorf("%w: %s is not a FIFO", errdefs.ErrInvalidArgument, path)
	}
	return nil
}

type end int

const (
	readEnd end = iota
	writeEnd
	neither
)

// pipe returns the read and the write end of a pipe that uid and gid own, so
// that the process can open /dev/stdout anew. Our end is non-blocking: a
// goroutine that waits for it takes no thread.
func pipe(opts Options, ours end) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
		}
	}()
	if ours != neither {
		if err := unix.SetNonblock(fds[ours], true); err != nil {
			return nil, nil, os.NewSyscallError("fcntl", err)
		}
	}
	if opts.UID != 0 || opts.GID != 0 {
		// Both ends are one inode.
		if err := unix.Fchown(fds[0], opts.UID, opts.GID); err != nil {
			return nil, nil, os.NewSyscallError("fchown", err)
		}
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}
