// Package procio carries the standard streams of a container's process: named
// pipes that the client makes, that the shim opens, and whose paths travel in
// the create or exec request.
//
// A client makes the pipes (New), starts copying (Start) before it asks for the
// process, lets stdin's end through once the process runs (Started), and, when
// the process is gone and its shim has closed its ends (deleting the task or exec
// does that), waits for what is left in them (Drain). Then nothing that the
// process wrote is lost, and nothing waits longer than that.
//
// Compat: the directory and file names are those of containerd's client, so that
// any client can attach to what another one started.
package procio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where the pipes of each process get a directory of their own.
const DefaultDir = "/run/containerd/fifo"

// Pipes are the paths of the streams, as create and exec requests carry them.
// Empty means /dev/null.
type Pipes struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
	dir                   string
}

// New makes the pipes for process id in a fresh directory below dir (DefaultDir
// when empty). A terminal has no stderr. Remove takes them away.
func New(dir, id string, terminal bool) (*Pipes, error) {
	if dir == "" {
		dir = DefaultDir
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for the container's IO: %w", err)
	}
	own, err := os.MkdirTemp(dir, "")
	if err != nil {
		return nil, fmt.Errorf("directory for the container's IO: %w", err)
	}
	p := &Pipes{Terminal: terminal, dir: own}
	for _, pipe := range []struct {
		name string
		path *string
	}{{"stdin", &p.Stdin}, {"stdout", &p.Stdout}, {"stderr", &p.Stderr}} {
		if terminal && pipe.name == "stderr" {
			continue
		}
		*pipe.path = filepath.Join(own, id+"-"+pipe.name)
		if err := unix.Mkfifo(*pipe.path, 0o700); err != nil {
			p.Remove()
			return nil, fmt.Errorf("pipe for the container's IO: %w", &os.PathError{Op: "mkfifo", Path: *pipe.path, Err: err})
		}
	}
	return p, nil
}

// Make makes the pipes that are named and not there; Remove does not take those
// away.
func (p *Pipes) Make() error {
	for _, path := range []string{p.Stdin, p.Stdout, p.Stderr} {
		if path == "" {
			continue
		}
		if err := unix.Mkfifo(path, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("pipe for the container's IO: %w", &os.PathError{Op: "mkfifo", Path: path, Err: err})
		}
	}
	return nil
}

// Remove takes the pipes away from the file system.
func (p *Pipes) Remove() {
	if p != nil && p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// Discard takes away the pipes that the program which started a process has made for
// it, and their directory when nothing else is in it. Other paths, and URIs, are left
// alone.
func Discard(paths ...string) {
	for _, path := range paths {
		if st, err := os.Lstat(path); filepath.IsAbs(path) && err == nil && st.Mode()&os.ModeNamedPipe != 0 {
			os.Remove(path)
			os.Remove(filepath.Dir(path)) // fails if it is not empty
		}
	}
}

// Streams are what the process's streams are joined with. Nil ones are left
// alone.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Copier moves bytes between Pipes and Streams.
type Copier struct {
	pipes   *Pipes
	outputs []*os.File
	copying sync.WaitGroup // of the outputs
	started chan struct{}
	stop    chan struct{}
	once    sync.Once
	eof     func()
}

// Start begins to copy. stdinEOF is called when Streams.Stdin has ended and all
// of it is written; it tells the shim to close its end of stdin.
func Start(p *Pipes, s Streams, stdinEOF func()) (*Copier, error) {
	c := &Copier{pipes: p, started: make(chan struct{}), stop: make(chan struct{}), eof: stdinEOF}
	for _, out := range []struct {
		path string
		w    io.Writer
	}{{p.Stdout, s.Stdout}, {p.Stderr, s.Stderr}} {
		if out.path == "" || out.w == nil {
			continue
		}
		// Opening for reading without blocking succeeds before there is a writer.
		f, err := os.OpenFile(out.path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("opening the container's output: %w", err)
		}
		c.outputs = append(c.outputs, f)
		c.copying.Go(func() { copyOutput(out.w, f) })
	}
	if p.Stdin != "" && s.Stdin != nil {
		go c.copyInput(s.Stdin)
	}
	return c, nil
}

// Hold opens the outputs without reading them, for a client that detaches: a
// shim does not start a process whose output nobody has open. Close it when the
// process has started; what was written by then stays in the pipes.
func Hold(p *Pipes) (*Copier, error) {
	c := &Copier{pipes: p, started: make(chan struct{}), stop: make(chan struct{})}
	for _, path := range []string{p.Stdout, p.Stderr} {
		if path == "" || strings.Contains(path, "://") {
			continue
		}
		f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("opening the container's output: %w", err)
		}
		c.outputs = append(c.outputs, f)
	}
	return c, nil
}

// copyOutput copies until every writer has closed the pipe. A read from a pipe
// that no writer has opened yet returns at once with nothing, as at the end, so
// the first one waits for the poller to report data or a hang-up.
func copyOutput(w io.Writer, f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	if err := raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return err == nil && n > 0
	}); err != nil {
		return
	}
	if _, err := io.Copy(w, onlyReader{f}); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		// Our own output is gone (a closed pipe, a full disk): the process must
		// not stall for that.
		io.Copy(io.Discard, f)
	}
}

// onlyReader hides File.WriteTo, which would try splice first.
type onlyReader struct{ io.Reader }

// copyInput waits for the shim to open stdin, so that nothing written is lost.
func (c *Copier) copyInput(r io.Reader) {
	select {
	case <-c.started:
	case <-c.stop:
		return
	}
	f, err := openWriter(c.pipes.Stdin, c.stop)
	if err != nil {
		return
	}
	_, err = io.Copy(f, r)
	f.Close()
	if err == nil && c.eof != nil {
		c.eof()
	}
}

// openWriter opens a pipe for writing once it has a reader. Opening without
// blocking fails until then; a blocking open is not interruptible, so that stop
// gives it the reader that it waits for.
func openWriter(path string, stop <-chan struct{}) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if !errors.Is(err, unix.ENXIO) {
		return f, err
	}
	opened := make(chan struct{})
	defer close(opened)
	go func() {
		select {
		case <-opened:
		case <-stop:
			if r, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
				<-opened
				r.Close()
			}
		}
	}()
	return os.OpenFile(path, unix.O_WRONLY, 0)
}

// Started says that the process runs: the shim has opened the pipes, and the end
// of stdin may be passed on.
func (c *Copier) Started() { close(c.started) }

// Drain waits until the outputs are at their end, at most for limit: the writers
// are gone when the task or exec is deleted. It tells whether they were.
func (c *Copier) Drain(limit time.Duration) bool {
	done := make(chan struct{})
	go func() { c.copying.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// Close ends the copying, whatever is left in the pipes.
func (c *Copier) Close() {
	c.once.Do(func() {
		close(c.stop)
		for _, f := range c.outputs {
			f.Close()
		}
	})
}
