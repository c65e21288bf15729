package diff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Processor is a program that turns layers of some media types into another.
// It reads the layer on its standard input and writes on its standard output;
// what it says on standard error becomes part of the error if it fails. The
// environment variable STREAM_PROCESSOR_MEDIATYPE names the type that it gets,
// and the payload of its ID, if a client has sent one, can be read on
// descriptor 3 as a google.protobuf.Any.
type Processor struct {
	ID      string
	Accepts []string // media types
	Returns string   // media type
	Path    string   // a program, looked up on PATH
	Args    []string
	Env     []string
	// Stall is how long it may neither take nor give anything while there is
	// something to do; defaultStall when 0.
	Stall time.Duration
}

const (
	// Differs from containerd: there a program may hang for ever.
	defaultStall = 2 * time.Minute
	// maxChain bounds programs that hand a layer round in a circle.
	maxChain = 16
	// maxStderr of what a program says is kept, its end.
	maxStderr = 4 << 10
)

// Open returns the tar archive that r holds as mediaType, by way of the
// processors that want it. Reading it to its end tells of a processor's failure.
// Closing it ends them. errdefs.ErrNotImplemented when nothing knows the type.
func (w *Walking) Open(ctx context.Context, mediaType string, r io.Reader, payloads map[string]object.Any) (io.ReadCloser, error) {
	var chain []Processor
	for {
		// Those of the configuration come before what is built in.
		i := slices.IndexFunc(w.processors, func(p Processor) bool { return slices.Contains(p.Accepts, mediaType) })
		if i < 0 {
			break
		}
		if len(chain) == maxChain {
			return nil, fmt.Errorf("%d stream processors do not come to an end, the last is %q for %s: %w", maxChain, w.processors[i].ID, mediaType, errdefs.ErrInvalidArgument)
		}
		p := w.processors[i]
		p.Env = append(slices.Clip(p.Env), "STREAM_PROCESSOR_MEDIATYPE="+mediaType)
		chain = append(chain, p)
		mediaType = p.Returns
	}
	f, err := formatOf(mediaType)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return f.open(r)
	}
	s, err := startChain(ctx, chain, r, payloads)
	if err != nil {
		return nil, err
	}
	layer, err := f.open(s)
	if err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	return &processed{layer, s}, nil
}

// processed is a layer decoded from what processors make.
type processed struct {
	io.ReadCloser
	chain *stream
}

// Read goes on past what the decoder wanted: the programs' end is a part of it.
func (p *processed) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if err == io.EOF {
		if _, cerr := io.Copy(io.Discard, p.chain); cerr != nil {
			err = cerr
		}
	}
	return n, err
}

// explain adds to an error about the layer what the programs have said.
func (p *processed) explain(err error) error {
	for i, stderr := range p.chain.stderr {
		if said := stderr.String(); said != "" && !strings.Contains(err.Error(), said) {
			err = fmt.Errorf("%w (stream processor %q says: %s)", err, p.chain.ids[i], said)
		}
	}
	return err
}

// Close ends the programs first: the decoder may be reading from them.
func (p *processed) Close() error {
	return errors.Join(p.chain.Close(), p.ReadCloser.Close())
}

// stream is the output of the last of a chain of programs.
type stream struct {
	cancel context.CancelFunc
	ids    []string
	cmds   []*exec.Cmd
	stderr []*tail
	source *source
	out    *os.File

	stall   time.Duration
	watch   *time.Timer
	last    atomic.Int64 // bytes that had gone through when watch last fired
	given   atomic.Int64
	reading atomic.Bool // somebody waits for the output
	stalled atomic.Bool

	once sync.Once
	err  error // of the programs, once they have ended
}

func startChain(ctx context.Context, chain []Processor, r io.Reader, payloads map[string]object.Any) (_ *stream, err error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{cancel: cancel, source: &source{r: r}, stall: defaultStall}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.abandon())
		}
	}()
	var in io.Reader = s.source
	for _, p := range chain {
		if s.out, err = s.start(ctx, p, in, payloads); err != nil {
			return s, fmt.Errorf("stream processor %q: %w", p.ID, err)
		}
		in = s.out
		if p.Stall > 0 {
			s.stall = min(s.stall, p.Stall)
		}
	}
	s.watch = time.AfterFunc(time.Hour, s.check)
	s.watch.Reset(s.stall) // not before check can see it
	return s, nil
}

// start runs a program that reads in, and returns its output. If in is a pipe
// of ours, it is closed here.
func (s *stream) start(ctx context.Context, p Processor, in io.Reader, payloads map[string]object.Any) (*os.File, error) {
	cmd := exec.CommandContext(ctx, p.Path, p.Args...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdin = in
	stderr := &tail{}
	cmd.Stderr = stderr
	// A group of its own: what it has started must not hold the pipes open.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if f, ok := in.(*os.File); ok {
		defer f.Close()
	}
	out, child, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer child.Close()
	cmd.Stdout = child
	if payload, ok := payloads[p.ID]; ok {
		f, err := payloadPipe(payload)
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	s.ids, s.cmds, s.stderr = append(s.ids, p.ID), append(s.cmds, cmd), append(s.stderr, stderr)
	return out, nil
}

// payloadPipe can be read once. Its writer ends when the reader is closed.
func payloadPipe(payload object.Any) (*os.File, error) {
	data, err := payload.MarshalBinary()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		_, _ = w.Write(data) // a program may leave its payload unread
	}()
	return r, nil
}

// check ends the programs when nothing has moved since it ran last, unless it
// is for the source or for the reader to go on.
func (s *stream) check() {
	now := s.source.taken.Load() + s.given.Load()
	if s.last.Swap(now) == now && !s.source.waiting.Load() && s.reading.Load() {
		s.stalled.Store(true)
		s.cancel()
		return
	}
	s.watch.Reset(s.stall)
}

func (s *stream) Read(p []byte) (int, error) {
	s.reading.Store(true)
	n, err := s.out.Read(p)
	s.reading.Store(false)
	s.given.Add(int64(n))
	if n > 0 || err == nil {
		return n, nil
	}
	if werr := s.wait(); werr != nil {
		return 0, werr
	}
	return 0, err
}

// wait returns when all programs have ended: the error of the first that
// failed, for the others' are mostly of its making.
func (s *stream) wait() error {
	s.once.Do(func() {
		for i, cmd := range s.cmds {
			err := cmd.Wait()
			if err == nil || s.err != nil {
				continue
			}
			if s.stalled.Load() {
				err = fmt.Errorf("it took nothing and gave nothing for %v, and was killed: %w", s.stall, context.DeadlineExceeded)
			}
			if said := s.stderr[i].String(); said != "" {
				err = fmt.Errorf("%w: %s", err, said)
			}
			s.err = fmt.Errorf("stream processor %q: %w", s.ids[i], err)
		}
		if s.watch != nil {
			s.watch.Stop()
		}
		if err := s.source.err.Load(); s.err != nil && err != nil {
			s.err = *err // they had too little to work with
		}
	})
	return s.err
}

// abandon ends the programs and tells why they had failed before, if they had.
func (s *stream) abandon() error {
	var early []error
	for i := range s.cmds {
		if said := s.stderr[i].String(); said != "" {
			early = append(early, fmt.Errorf("stream processor %q says: %s", s.ids[i], said))
		}
	}
	return errors.Join(append(early, s.Close())...)
}

// Close ends the programs. It reports no failure: Read has.
func (s *stream) Close() error {
	s.cancel()
	var err error
	if s.out != nil {
		err = s.out.Close()
	}
	_ = s.wait()
	return err
}

// source is what the first program reads.
type source struct {
	r       io.Reader
	taken   atomic.Int64
	waiting atomic.Bool           // for r
	err     atomic.Pointer[error] // of r
}

func (s *source) Read(p []byte) (int, error) {
	s.waiting.Store(true)
	n, err := s.r.Read(p)
	s.waiting.Store(false)
	s.taken.Add(int64(n))
	if err != nil && err != io.EOF {
		s.err.Store(&err)
	}
	return n, err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > maxStderr {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-maxStderr:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
