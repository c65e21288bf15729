package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth/cmd/ctr/procio"

	"github.com/containerd/console"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// drainTime bounds the wait for output when the shim has let go of the process:
// its ends of the pipes are closed by then, so that this is only for shims that
// do otherwise.
const drainTime = 10 * time.Second

// process is the init of a task, or an exec in it.
type process struct {
	s          *session
	tasks      tasksapi.TasksClient
	id, execID string
}

func (s *session) process(id, execID string) process {
	return process{s: s, tasks: tasksapi.NewTasksClient(s), id: id, execID: execID}
}

func (p process) kill(ctx context.Context, sig syscall.Signal, all bool) error {
	_, err := p.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: p.id, ExecID: p.execID, Signal: uint32(sig), All: all})
	return err
}

func (p process) start(ctx context.Context) error {
	_, err := p.tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: p.id, ExecID: p.execID})
	return err
}

func (p process) state(ctx context.Context) (*task.Process, error) {
	resp, err := p.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: p.id, ExecID: p.execID})
	return resp.GetProcess(), err
}

// delete removes the stopped process and returns its status.
func (p process) delete(ctx context.Context) (uint32, error) {
	if p.execID != "" {
		resp, err := p.tasks.DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: p.id, ExecID: p.execID})
		return resp.GetExitStatus(), err
	}
	resp, err := p.tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: p.id})
	return resp.GetExitStatus(), err
}

// destroy kills the process if it runs, and deletes it.
func (p process) destroy(ctx context.Context) error {
	err := p.kill(ctx, syscall.SIGKILL, p.execID == "")
	if err == nil {
		_, err = p.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: p.id, ExecID: p.execID})
	}
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	_, err = p.delete(ctx)
	return ignoreNotFound(err)
}

func (p process) resize(ctx context.Context, con console.Console) error {
	size, err := con.Size()
	if err != nil {
		return err
	}
	_, err = p.tasks.ResizePty(ctx, &tasksapi.ResizePtyRequest{ContainerID: p.id, ExecID: p.execID, Width: uint32(size.Width), Height: uint32(size.Height)})
	return err
}

// exit is the answer to a wait.
type exit struct {
	status uint32
	err    error
}

// forwardTime bounds the handing on of one signal: the next one may be a second
// Ctrl-C because nothing happens.
const forwardTime = 10 * time.Second

// restartTime is how long a daemon that has gone away is waited for.
const restartTime = time.Minute

// lost says that nobody knows what becomes of a process, which runs on: nothing
// that belongs to it may be taken away.
type lost struct{ error }

func (l lost) Unwrap() error { return l.error }

func isLost(err error) bool {
	_, ok := errors.AsType[lost](err)
	return ok
}

func (p process) lost(err error) error {
	if p.execID != "" {
		return lost{fmt.Errorf("%w; the process runs on", err)}
	}
	return lost{fmt.Errorf("%w; the container runs on, 'ctr tasks attach %s' takes it up", err, p.id)}
}

// wait asks for the exit status, before the process is started. The process goes
// on when the daemon ends: the next daemon is asked, or else the error is lost.
func (p process) wait(ctx context.Context) <-chan exit {
	c := make(chan exit, 1)
	go func() {
		for {
			resp, err := p.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: p.id, ExecID: p.execID})
			if errdefs.IsUnavailable(err) && p.s.comesBack(ctx) {
				continue
			}
			if err != nil && !errdefs.IsNotFound(err) {
				err = p.lost(err)
			}
			c <- exit{resp.GetExitStatus(), err}
			return
		}
	}()
	return c
}

// comesBack waits for a daemon to answer again, and tells whether one does.
func (s *session) comesBack(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	_, err := versionapi.NewVersionClient(s).Version(ctx, &emptypb.Empty{}, grpc.WaitForReady(true))
	return err == nil
}

// processIO says where the streams of a new process lead.
type processIO struct {
	pipes  *procio.Pipes // its paths may be URIs, or empty
	copier *procio.Copier
	con    console.Console // in raw mode; nil without a terminal
}

// openIO makes the IO that the flags null-io, log-uri and fifo-dir describe.
func openIO(ctx context.Context, cmd *cli.Command, p process, terminal, attach bool) (*processIO, error) {
	logURI, nullIO := cmd.String("log-uri"), cmd.Bool("null-io")
	switch {
	case terminal && (nullIO || logURI != ""):
		return nil, invalid("--tty cannot be used with --null-io or --log-uri")
	case nullIO:
		return &processIO{pipes: &procio.Pipes{}}, nil
	case logURI != "":
		if u, err := url.Parse(logURI); err != nil || u.Scheme == "" {
			return nil, invalid("--log-uri %s is not a URI such as file:///var/log/x or binary:///usr/bin/logger", logURI)
		}
		return &processIO{pipes: &procio.Pipes{Stdout: logURI, Stderr: logURI}}, nil
	}
	name := p.id
	if p.execID != "" {
		name = p.execID
	}
	if strings.ContainsRune(name, '/') {
		return nil, invalid("%q is not a valid id: it contains a slash", name)
	}
	pipes, err := procio.New(cmd.String("fifo-dir"), name, terminal)
	if err != nil {
		return nil, err
	}
	pio := &processIO{pipes: pipes}
	if attach {
		err = pio.attach(p.closeStdin(ctx))
	} else {
		pio.copier, err = procio.Hold(pipes)
	}
	if err != nil {
		pio.close(true)
		return nil, err
	}
	return pio, nil
}

// closeStdin tells the shim that no more input comes, however the command ends.
func (p process) closeStdin(ctx context.Context) func() {
	ctx = context.WithoutCancel(ctx)
	return func() {
		p.tasks.CloseIO(ctx, &tasksapi.CloseIORequest{ContainerID: p.id, ExecID: p.execID, Stdin: true})
	}
}

// attach joins the pipes with our own streams; stdinEOF is called at the end of
// ours. With a terminal, ours becomes raw.
func (pio *processIO) attach(stdinEOF func()) (err error) {
	streams := procio.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if pio.pipes.Terminal {
		if pio.con, err = currentConsole(); err != nil {
			return err
		}
		if err := pio.con.SetRaw(); err != nil {
			return fmt.Errorf("switching the terminal to raw mode: %w", err)
		}
		streams = procio.Streams{Stdin: pio.con, Stdout: pio.con}
	}
	pio.copier, err = procio.Start(pio.pipes, streams, stdinEOF)
	return err
}

func currentConsole() (console.Console, error) {
	for _, f := range []*os.File{os.Stderr, os.Stdout, os.Stdin} {
		if c, err := console.ConsoleFromFile(f); err == nil {
			return c, nil
		}
	}
	return nil, invalid("a terminal is asked for, but none of stdin, stdout and stderr is one; leave --tty out")
}

// close gives the terminal back; with remove the pipes go too.
func (pio *processIO) close(remove bool) {
	if pio.copier != nil {
		pio.copier.Close()
	}
	if pio.con != nil {
		pio.con.Reset()
	}
	if remove {
		pio.pipes.Remove()
	}
}

// finish takes what is left of the output when the process is deleted.
func (pio *processIO) finish() {
	if pio.copier != nil && !pio.copier.Drain(drainTime) {
		fmt.Fprintln(os.Stderr, "ctr: the container's output did not end with its process; the rest of it is dropped")
	}
	pio.close(true)
}

// foreground takes our signals: until started is called they end the command's
// context, from then on they are the process's.
type foreground struct {
	signals chan os.Signal
	hold    chan struct{}
	forward chan func(syscall.Signal)
	alone   chan struct{} // an interrupt came, and no daemon is there to take it
}

func isInterrupt(sig syscall.Signal) bool {
	return sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGHUP || sig == syscall.SIGQUIT
}

// outputClosed tells whether nobody reads our stdout or stderr any more.
func outputClosed() bool {
	fds := []unix.PollFd{{Fd: 1}, {Fd: 2}}
	n, err := unix.Poll(fds, 0) // errors and hang-ups are reported unasked
	return err == nil && n > 0
}

// ended waits for the end of p.
func (f *foreground) ended(ctx context.Context, p process, exited <-chan exit) exit {
	select {
	case e := <-exited:
		return e
	case <-f.alone:
		return exit{err: p.lost(errors.New("interrupted while the daemon is away"))}
	case <-ctx.Done():
		return exit{err: ctx.Err()}
	}
}

// starting keeps signals for the process, whose output may be seen before its
// start returns, until started is called. A second interrupt ends the context.
func (f *foreground) starting() { f.hold <- struct{}{} }

// interruptible is a context that an interrupt ends until started is called.
func interruptible(ctx context.Context) (context.Context, *foreground, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &foreground{signals: make(chan os.Signal, 128), hold: make(chan struct{}), forward: make(chan func(syscall.Signal)), alone: make(chan struct{}, 1)}
	signal.Notify(f.signals)
	stopped := make(chan struct{})
	go func() {
		handle := func(sig syscall.Signal) {
			if isInterrupt(sig) {
				cancel(withStatus{fmt.Errorf("interrupted by %s before the process was started", unix.SignalName(sig)), 128 + int(sig)})
			}
		}
		var held []syscall.Signal
		for {
			select {
			case sig := <-f.signals:
				handle(sig.(syscall.Signal))
			case <-f.hold:
				interrupt := handle
				handle = func(sig syscall.Signal) {
					if slices.Contains(held, sig) {
						interrupt(sig)
						return
					}
					held = append(held, sig)
				}
			case handle = <-f.forward:
				for _, sig := range held {
					handle(sig)
				}
				held = nil
			case <-stopped:
				return
			}
		}
	}()
	return ctx, f, func() { signal.Stop(f.signals); close(stopped); cancel(context.Canceled) }
}

// started hands signals to p from now on.
func (f *foreground) started(ctx context.Context, p process, con console.Console) {
	f.forward <- func(sig syscall.Signal) {
		switch sig {
		case unix.SIGURG, unix.SIGCHLD: // the Go runtime's, and about our own children
		case unix.SIGWINCH:
			if con != nil {
				p.resize(ctx, con)
			}
		default:
			if sig == unix.SIGPIPE && !outputClosed() {
				return // the daemon's connection has broken, which is not the process's affair
			}
			ctx, cancel := context.WithTimeout(ctx, forwardTime)
			err := p.kill(ctx, sig, false)
			cancel()
			if isInterrupt(sig) && (errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err)) {
				select {
				case f.alone <- struct{}{}:
				default:
				}
			} else if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
				fmt.Fprintf(os.Stderr, "ctr: forwarding %s: %v\n", sig, err)
			}
		}
	}
}

// runProcess starts p, waits for it with its IO and our signals, deletes it, and
// returns its status, or the error lost. The process exists already; on an error
// before its start it is removed. It closes the IO.
func runProcess(ctx context.Context, f *foreground, p process, pio *processIO, beforeStart func() error) (status uint32, started bool, err error) {
	defer func() {
		pio.close(!isLost(err))
	}()
	waitCtx := context.WithoutCancel(ctx)
	exited := p.wait(waitCtx)
	if err = beforeStart(); err == nil {
		if pio.con != nil && p.execID == "" {
			p.resize(ctx, pio.con)
		}
		f.starting()
		err = p.start(ctx)
	}
	if err != nil {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		p.destroy(ctx)
		return 0, false, startError(err)
	}
	if pio.copier != nil {
		pio.copier.Started()
	}
	if pio.con != nil && p.execID != "" {
		p.resize(ctx, pio.con)
	}
	f.started(waitCtx, p, pio.con)
	end := f.ended(ctx, p, exited)
	timedOut := ctx.Err() != nil // --timeout
	ctx, cancel := afterwards(ctx)
	defer cancel()
	switch {
	case end.err != nil && timedOut:
		return 0, true, errors.Join(context.DeadlineExceeded, p.destroy(ctx))
	case end.err != nil:
		return 0, true, end.err
	}
	_, err = p.delete(ctx)
	pio.finish()
	return end.status, true, ignoreNotFound(err)
}

// startError gives the failure to find or execute the command the status that a
// shell gives it.
func startError(err error) error {
	msg := err.Error()
	switch {
	case strings.Contains(msg, "executable file not found") || strings.Contains(msg, "exec:") && strings.Contains(msg, "no such file or directory"):
		return withStatus{err, 127}
	case strings.Contains(msg, "exec:") && (strings.Contains(msg, "permission denied") || strings.Contains(msg, "is a directory")):
		return withStatus{err, 126}
	}
	return err
}

func exitWith(status uint32) error {
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}

// newTask creates the task of c.
func newTask(ctx context.Context, cmd *cli.Command, s *session, c *created, pio *processIO) (uint32, error) {
	opts, err := taskOptions(cmd, c)
	if err != nil {
		return 0, err
	}
	p := pio.pipes
	resp, err := tasksapi.NewTasksClient(s).Create(ctx, &tasksapi.CreateTaskRequest{
		ContainerID: c.record.ID, Rootfs: c.rootfs, Options: opts,
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal, Checkpoint: c.checkpoint,
	})
	return resp.GetPid(), err
}

// taskOptions are the container's runtime options with what a task adds, nil when
// it adds nothing.
func taskOptions(cmd *cli.Command, c *created) (*anypb.Any, error) {
	linux := c.spec.Linux
	remapped := linux != nil && (len(linux.UIDMappings) > 0 || len(linux.GIDMappings) > 0)
	if !cmd.Bool("no-pivot") && !remapped {
		return nil, nil
	}
	opts := &options.Options{}
	if stored := c.record.Runtime.GetOptions(); stored != nil {
		if stored.TypeUrl != string(opts.ProtoReflect().Descriptor().FullName()) {
			return nil, invalid("the runtime %s takes no options for --no-pivot or user namespaces", c.record.Runtime.GetName())
		}
		if err := proto.Unmarshal(stored.Value, opts); err != nil {
			return nil, fmt.Errorf("runtime options of the container: %w", err)
		}
	}
	opts.NoPivotRoot = cmd.Bool("no-pivot")
	if remapped {
		for _, m := range linux.UIDMappings[:min(1, len(linux.UIDMappings))] {
			opts.IoUid = m.HostID
		}
		for _, m := range linux.GIDMappings[:min(1, len(linux.GIDMappings))] {
			opts.IoGid = m.HostID
		}
	}
	return marshalAny(opts)
}

// writePID puts the pid into a file, whole or not at all.
func writePID(path string, pid uint32) error {
	if path == "" {
		return nil
	}
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	err := os.WriteFile(tmp, fmt.Append(nil, pid), 0o644)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}
