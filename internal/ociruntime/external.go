package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"berth/internal/cleanup"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// External is the driver that runs a program with the command line of runc.
type External struct {
	// Binary is the program's path, or its name on the PATH.
	Binary string
	// Root is the directory of the containers' state.
	Root string
	// SystemdCgroup has systemd make the cgroups.
	SystemdCgroup bool
	// Log is a file for the program's messages, of which errors are taken.
	Log string
}

var _ Driver = (*External)(nil)

type external struct {
	driver  *External
	id      string
	bundle  string
	init    *externalProcess
	ownPIDs bool
	// restored: the program runs already.
	restored bool
}

// externalProcess is a process that the program left us: its parent has ended, and
// we are the next subreaper.
type externalProcess struct {
	pid     int
	console *os.File

	mu   sync.Mutex
	done bool // collected: the PID may be another's
}

func (p *externalProcess) PID() int          { return p.pid }
func (p *externalProcess) Console() *os.File { return p.console }

func (p *externalProcess) Collect() (syscall.WaitStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.pid, &ws, 0, nil)
		if err != syscall.EINTR {
			return ws, os.NewSyscallError("wait4", err)
		}
	}
}

func (p *externalProcess) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return signalChild(p.pid, p.done, sig)
}

func (d *External) Create(ctx context.Context, id string, opts CreateOptions) (_ Container, err error) {
	if err := checkProcess(opts.Spec.Process); err != nil {
		return nil, err
	}
	if opts.Changed {
		raw, err := json.Marshal(opts.Spec)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(opts.Bundle, "config.json"), raw, 0o600); err != nil {
			return nil, err
		}
	}
	pidFile := opts.PIDFile
	if pidFile == "" {
		pidFile = filepath.Join(opts.Bundle, "init.pid")
	}
	args := []string{"create"}
	if opts.Checkpoint != "" {
		args = []string{"restore", "--detach", "--image-path", opts.Checkpoint}
		if opts.CriuWork != "" {
			args = append(args, "--work-path", opts.CriuWork)
		}
	}
	args = append(args, "--bundle", opts.Bundle, "--pid-file", pidFile)
	if opts.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if opts.NoNewKeyring && opts.Checkpoint == "" {
		args = append(args, "--no-new-keyring")
	}
	if _, err := os.Lstat(filepath.Join(d.Root, id)); err == nil {
		return nil, fmt.Errorf("%w: container %s has state in %s", errdefs.ErrAlreadyExists, id, d.Root)
	}
	c := &external{driver: d, id: id, bundle: opts.Bundle, ownPIDs: ownPIDs(opts.Spec), restored: opts.Checkpoint != ""}
	c.init, err = d.start(ctx, pidFile, opts.Stdio, opts.Spec.Process.Terminal, args, id)
	if err != nil {
		// The program clears away what it made, unless it was killed because the
		// caller has left, or had made it all.
		if _, serr := os.Lstat(filepath.Join(d.Root, id)); serr == nil {
			ctx, cancel := cleanup.Context(ctx)
			defer cancel()
			err = errors.Join(err, d.Destroy(ctx, id, nil))
		}
		return nil, err
	}
	return c, nil
}

// start runs the program so that it leaves a process, whose PID it writes.
func (d *External) start(ctx context.Context, pidFile string, stdio Stdio, terminal bool, args []string, id string) (*externalProcess, error) {
	var console *consoleSocket
	if terminal {
		var err error
		if console, err = newConsoleSocket(); err != nil {
			return nil, err
		}
		defer console.Close()
		args = append(args, "--console-socket", console.path)
	}
	cmd := d.command(ctx, append(args, id)...)
	if !terminal {
		// A nil *os.File in an interface would not be nil.
		if stdio.Stdin != nil {
			cmd.Stdin = stdio.Stdin
		}
		if stdio.Stdout != nil {
			cmd.Stdout = stdio.Stdout
		}
		if stdio.Stderr != nil {
			cmd.Stderr = stdio.Stderr
		}
	}
	if err := d.run(cmd); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("%s wrote no PID: %w", d.Binary, err)
	}
	p := new(externalProcess)
	if p.pid, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil || p.pid <= 0 {
		return nil, fmt.Errorf("%s wrote %q for a PID: %w", d.Binary, raw, errdefs.ErrInvalidArgument)
	}
	if terminal {
		if p.console, err = console.receive(); err != nil {
			_ = unix.Kill(p.pid, unix.SIGKILL)
			_, _ = p.Collect()
			return nil, err
		}
	}
	return p, nil
}

// command is an invocation of the program.
func (d *External) command(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", d.Root, "--log", d.Log, "--log-format", "json"}
	if d.SystemdCgroup {
		global = append(global, "--systemd-cgroup")
	}
	return exec.CommandContext(ctx, d.Binary, append(global, args...)...)
}

// run runs the program and makes its last message the error.
func (d *External) run(cmd *exec.Cmd) error {
	logged := logSize(d.Log)
	var stderr bytes.Buffer
	if !leavesProcess(cmd.Args) {
		cmd.Stderr = &stderr
	}
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("OCI runtime %s: %w: %w", d.Binary, err, errdefs.ErrNotFound)
	}
	msg := lastError(d.Log, logged)
	if msg == "" {
		msg = strings.TrimSpace(stderr.String())
	}
	var kind error = errdefs.ErrUnknown
	if strings.Contains(msg, "does not exist") || strings.Contains(msg, "process already finished") || strings.Contains(msg, "container not running") {
		kind = errdefs.ErrNotFound
	}
	if msg == "" {
		return fmt.Errorf("%s %s: %w", filepath.Base(d.Binary), cmd.Args[len(cmd.Args)-1], err)
	}
	return &programError{msg: filepath.Base(d.Binary) + ": " + msg, kind: kind}
}

// programError is what the program said, which says it all.
type programError struct {
	msg  string
	kind error
}

func (e *programError) Error() string { return e.msg }
func (e *programError) Unwrap() error { return e.kind }

// leavesProcess tells the commands whose streams become those of a process of the
// container.
func leavesProcess(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == "create" || a == "exec" || a == "restore" })
}

func logSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// maxLog bounds how much of a log is read for an error.
const maxLog = 1 << 20

// lastError returns the last error in the log after offset.
func lastError(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	raw := make([]byte, maxLog)
	n, _ := f.ReadAt(raw, offset)
	var last string
	for line := range bytes.Lines(raw[:n]) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	return last
}

func (d *External) Destroy(ctx context.Context, id string, _ *specs.Spec) error {
	err := d.run(d.command(ctx, "delete", "--force", id))
	if errdefs.IsNotFound(err) && !errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	return err
}

func (c *external) Init() Process { return c.init }

func (c *external) simple(ctx context.Context, args ...string) error {
	return c.driver.run(c.driver.command(ctx, append(args, c.id)...))
}

func (c *external) Start(ctx context.Context) error {
	if c.restored {
		return nil
	}
	return c.simple(ctx, "start")
}

func (c *external) Exec(ctx context.Context, opts ExecOptions) (Process, error) {
	if err := checkProcess(opts.Spec); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(opts.Spec)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(c.bundle, "exec-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	spec, pidFile := filepath.Join(dir, "process.json"), filepath.Join(dir, "pid")
	if err := os.WriteFile(spec, raw, 0o600); err != nil {
		return nil, err
	}
	args := []string{"exec", "--detach", "--process", spec, "--pid-file", pidFile}
	p, err := c.driver.start(ctx, pidFile, opts.Stdio, opts.Spec.Terminal, args, c.id)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (c *external) Signal(ctx context.Context, sig syscall.Signal) error {
	if sig == unix.SIGKILL && !c.ownPIDs {
		return c.KillAll(ctx)
	}
	return c.init.signal(sig)
}

func (c *external) KillAll(ctx context.Context) error {
	err := c.driver.run(c.driver.command(ctx, "kill", "--all", c.id, "KILL"))
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *external) Pause(ctx context.Context) error  { return c.simple(ctx, "pause") }
func (c *external) Resume(ctx context.Context) error { return c.simple(ctx, "resume") }
func (c *external) Delete(ctx context.Context) error { return c.simple(ctx, "delete", "--force") }

func (c *external) Update(ctx context.Context, resources *specs.LinuxResources) error {
	raw, err := json.Marshal(resources)
	if err != nil {
		return err
	}
	cmd := c.driver.command(ctx, "update", "--resources", "-", c.id)
	cmd.Stdin = bytes.NewReader(raw)
	return c.driver.run(cmd)
}

func (c *external) Pids(ctx context.Context) (pids []int, err error) {
	cmd := c.driver.command(ctx, "ps", "--format", "json", c.id)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := c.driver.run(cmd); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out.Bytes(), &pids); err != nil {
		return nil, fmt.Errorf("%s ps wrote no list of PIDs: %w", c.driver.Binary, err)
	}
	return pids, nil
}

func (c *external) Checkpoint(ctx context.Context, o CheckpointOptions) error {
	args := []string{"checkpoint", "--image-path", o.ImagePath}
	add := func(set bool, flag ...string) {
		if set {
			args = append(args, flag...)
		}
	}
	add(o.WorkPath != "", "--work-path", o.WorkPath)
	add(o.ParentPath != "", "--parent-path", o.ParentPath)
	add(!o.Exit, "--leave-running")
	add(o.OpenTCP, "--tcp-established")
	add(o.ExternalUnixSockets, "--ext-unix-sk")
	add(o.Terminal, "--shell-job")
	add(o.FileLocks, "--file-locks")
	add(o.CgroupsMode != "", "--manage-cgroups-mode", o.CgroupsMode)
	for _, ns := range o.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return c.simple(ctx, args...)
}

// consoleSocket is where the program sends the master of a terminal.
type consoleSocket struct {
	dir, path string
	l         *net.UnixListener
}

func newConsoleSocket() (*consoleSocket, error) {
	dir, err := os.MkdirTemp("", "pty") // the path of a socket has 107 bytes
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("make the console's socket: %w", err)
	}
	return &consoleSocket{dir, path, l}, nil
}

// receive is called once the program has sent the terminal.
func (s *consoleSocket) receive() (*os.File, error) {
	conn, err := s.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := conn.File() // blocking
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return receiveConsole(int(f.Fd()))
}

func (s *consoleSocket) Close() {
	s.l.Close()
	os.RemoveAll(s.dir)
}
