// Package stdio connects the streams of a container's process with where its
// client wants them: FIFOs that the client made, files, logger programs, or
// nothing.
//
// Whoever goes away and comes back (the client, the daemon) never disturbs the
// process: both ends of every FIFO stay open here until the process's own end
// of the stream is closed, so that a write finds a reader and a new client can
// open the FIFO again. A client that does not read holds the process up once
// pipe and FIFO are full, and nobody else.
//
// Between pipe and FIFO data moves by splice(2), without a copy and without a
// buffer in this process. A stream is one goroutine that sleeps in the poller.
package stdio

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Streams is the outer side of the streams of one process.
//
// The order of use: Open, hand Child's files to the process, Started (or Close
// when it did not start), Attach when it has a terminal, Input, Drain after its
// end, Close. AwaitTaken comes between the process's end and its report.
type Streams struct {
	io    live.TaskIO
	child [3]*os.File
	// pumps are started by Started or Attach; each ends when its source does.
	pumps []pump
	// outputs counts the running pumps of stdout and stderr.
	outputs sync.WaitGroup
	// keep holds what lives until Close.
	keep []*os.File

	mu      sync.Mutex
	flowing []*os.File // both ends of the pumps of stdout and stderr
	input   *os.File   // of the process: its terminal, or the write end of its stdin
	stdin   *os.File   // our write end of stdin's FIFO
	ended   bool       // CloseStdin was called
	console *os.File
	fifos   []*fifoOutput
	late    []*lateFIFO
	closed  bool
}

// pump moves bytes from one file to another, then calls end.
type pump struct {
	src, dst *os.File
	copy     func(dst, src *os.File, moved *atomic.Int64) error
	end      func()
	input    bool
	// moved counts the bytes; nil when nobody asks.
	moved *atomic.Int64
}

// Options of Open.
type Options struct {
	// UID and GID own the pipes that the process gets.
	UID, GID int
	// Namespace and ID are told to logger programs.
	Namespace, ID string
	// Patience is how long Open and Attach wait for a client to open its end of an
	// output that is a FIFO.
	Patience time.Duration
}

// Open prepares the streams that io names. FIFOs must exist.
func Open(ctx context.Context, io live.TaskIO, opts Options) (_ *Streams, err error) {
	s := &Streams{io: io}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if io.Stdin != "" {
		if err = checkFIFO(io.Stdin); err != nil {
			return nil, fmt.Errorf("open stdin: %w", err)
		}
	}
	if io.Terminal {
		// The streams are made when the terminal is there.
		return s, nil
	}
	if err = s.pipeInput(opts); err != nil {
		return nil, fmt.Errorf("open stdin: %w", err)
	}
	if err = s.pipeOutputs(ctx, opts); err != nil {
		return nil, fmt.Errorf("open stdout and stderr: %w", err)
	}
	return s, nil
}

// Child is the files for the process; nil stands for /dev/null.
func (s *Streams) Child() (stdin, stdout, stderr *os.File) {
	return s.child[0], s.child[1], s.child[2]
}

// Started tells that the process has its files: ours of them are closed, and
// the streams flow.
func (s *Streams) Started() {
	s.closeChild()
	for _, p := range s.pumps {
		s.run(p)
	}
	s.pumps = nil
}

func (s *Streams) run(p pump) {
	flow := func() {
		// A stream that fails is at its end: its reader or writer is gone.
		_ = p.copy(p.dst, p.src, cmp.Or(p.moved, new(atomic.Int64)))
		p.end()
	}
	if p.input {
		go flow() // ends with the client, or with Close
		return
	}
	s.mu.Lock()
	s.flowing = append(s.flowing, p.src, p.dst)
	s.mu.Unlock()
	s.outputs.Go(flow)
}

func (s *Streams) closeChild() {
	for i, f := range s.child {
		if f != nil {
			f.Close()
			s.child[i] = nil
		}
	}
}

// Attach connects the master of the process's terminal, which it takes over.
func (s *Streams) Attach(ctx context.Context, console *os.File, opts Options) error {
	s.mu.Lock()
	s.console = console
	s.mu.Unlock()
	if err := s.attachOutput(ctx, console, opts); err != nil {
		return fmt.Errorf("open stdout: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.io.Stdin != "" {
		s.input = console
	}
	return nil
}

// Input lets the client's input flow to the process. A client can open its end of
// the FIFO from now on and not before: so one that has all input at hand does not
// write, close and ask for CloseStdin before it knows of the process.
func (s *Streams) Input() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.input == nil || s.closed {
		return nil
	}
	in, hold, err := openInput(s.io.Stdin)
	if err != nil {
		return fmt.Errorf("open stdin: %w", err)
	}
	s.keep = append(s.keep, in)
	if s.ended {
		hold.Close()
	} else {
		s.stdin = hold
	}
	dst := s.input
	p := pump{src: in, dst: dst, copy: splice, end: func() { dst.Close() }, input: true}
	if s.io.Terminal {
		// The end of input does not end a terminal.
		p.copy, p.end = copyBuffered, func() {}
	}
	s.input = nil
	s.run(p)
	return nil
}

// CloseStdin ends the process's standard input once what the client has written
// is read and the client has closed its end, too.
func (s *Streams) CloseStdin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.stdin == nil {
		return nil
	}
	err := s.stdin.Close()
	s.stdin = nil
	return err
}

// Resize sets the size of the terminal; errdefs.ErrFailedPrecondition when
// there is none.
func (s *Streams) Resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console == nil {
		return fmt.Errorf("%w: the process has no terminal", errdefs.ErrFailedPrecondition)
	}
	raw, err := s.console.SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	if err := raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: clamp16(height), Col: clamp16(width)})
	}); err != nil {
		return err
	}
	return ioctl
}

func clamp16(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// Drain returns when all output has been passed on, or after the timeout: a
// child that the process left may hold its streams open.
func (s *Streams) Drain(timeout time.Duration) {
	done := make(chan struct{})
	go func() {
		s.outputs.Wait()
		close(done)
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// Close ends the streams and releases everything. It may be called at any time,
// and again.
func (s *Streams) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	files := append(s.keep, s.stdin, s.input, s.console)
	// A pump may wait for a client that does not read, or for a process that has
	// left its container: it ends now.
	files = append(files, s.flowing...)
	s.keep, s.stdin, s.input, s.flowing = nil, nil, nil, nil
	s.mu.Unlock()
	for _, l := range s.late { // complete: nothing is added once closed is set
		s.dismiss(l)
	}
	s.closeChild()
	for _, p := range s.pumps {
		files = append(files, p.src, p.dst)
	}
	s.pumps = nil
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
