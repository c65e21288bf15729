package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"berth/cmd/ctr/output"
	"berth/cmd/ctr/procio"
	"berth/internal/spec"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func tasksCommand() *cli.Command {
	one := 1
	return &cli.Command{
		Name:    "tasks",
		Aliases: []string{"t", "task"},
		Usage:   "Manage tasks",
		Commands: []*cli.Command{
			{Name: "attach", Usage: "Attach to the IO of a running container", ArgsUsage: "CONTAINER", Action: withSession(attachAction)},
			{
				Name: "checkpoint", Usage: "Checkpoint a container", ArgsUsage: "[flags] CONTAINER",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "exit", Usage: "Stop the container after the checkpoint"},
					&cli.StringFlag{Name: "image-path", Usage: "Path to criu image files"},
					&cli.StringFlag{Name: "work-path", Usage: "Path to criu work files and logs"},
				},
				Action: undoing(withSession(checkpointTaskAction)),
			},
			{
				Name: "delete", Aliases: []string{"del", "remove", "rm"}, Usage: "Delete one or more tasks", ArgsUsage: "CONTAINER [CONTAINER, ...]",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "Force delete task process"},
					&cli.StringFlag{Name: "exec-id", Usage: "Process ID to kill"},
				},
				Action: withSession(deleteTasksAction),
			},
			{
				Name: "exec", Usage: "Execute additional processes in an existing container", ArgsUsage: "[flags] CONTAINER CMD [ARG...]",
				Description: "Runs a command beside the container's own process; ctr exits with its status. Names of execs are free again when they have ended.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "cwd", Usage: "Working directory of the new process"},
					&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "Allocate a TTY for the container"},
					&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "Detach from the task after it has started execution"},
					&cli.StringFlag{Name: "exec-id", Usage: "Exec specific id for the process", Required: true},
					&cli.StringFlag{Name: "fifo-dir", Usage: "Directory used for storing IO FIFOs"},
					&cli.StringFlag{Name: "log-uri", Usage: "Log uri for custom shim logging"},
					&cli.StringFlag{Name: "user", Usage: "User id or name"},
				},
				StopOnNthArg: &one,
				Action:       withSession(execAction),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List tasks", ArgsUsage: "[flags]",
				Flags:  []cli.Flag{quietFlag("Print only the task id"), formatFlag()},
				Action: withSession(listTasksAction),
			},
			{
				Name: "kill", Usage: "Signal a container (default: SIGTERM)", ArgsUsage: "[flags] CONTAINER",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "Signal to send to the container"},
					&cli.StringFlag{Name: "exec-id", Usage: "Process ID to kill"},
					&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "Send signal to all processes inside the container"},
				},
				Action: withSession(killAction),
			},
			{
				Name: "metrics", Aliases: []string{"metric"}, Usage: "Get a single data point of metrics for a task with the built-in Linux runtime", ArgsUsage: "CONTAINER",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: `"table", "json", or a Go template`, Value: "table"}},
				Action: withSession(metricsAction),
			},
			{Name: "pause", Usage: "Pause an existing container", ArgsUsage: "CONTAINER", Action: withSession(pauseAction)},
			{
				Name: "ps", Usage: "List processes for container", ArgsUsage: "CONTAINER",
				Flags:  []cli.Flag{formatFlag()},
				Action: withSession(psAction),
			},
			{Name: "resume", Usage: "Resume a paused container", ArgsUsage: "CONTAINER", Action: withSession(resumeAction)},
			{
				Name: "start", Usage: "Start a container that has been created", ArgsUsage: "CONTAINER",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "no-pivot", Usage: "Disable use of pivot-root (linux only)"},
					&cli.BoolFlag{Name: "null-io", Usage: "Send all IO to /dev/null"},
					&cli.StringFlag{Name: "log-uri", Usage: "Log uri"},
					&cli.StringFlag{Name: "fifo-dir", Usage: "Directory used for storing IO FIFOs"},
					&cli.StringFlag{Name: "pid-file", Usage: "File path to write the task's pid"},
					&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "Detach from the task after it has started execution"},
				},
				Action: withSession(startAction),
			},
		},
	}
}

// loadContainer reads a container and, if it has one, the mounts of its snapshot.
func loadContainer(ctx context.Context, s *session, id string) (*created, error) {
	c := &created{}
	var err error
	if c.record, err = getContainer(ctx, s, id); err != nil {
		return nil, err
	}
	c.spec, err = containerSpec(c.record)
	return c, err
}

func snapshotMounts(ctx context.Context, s *session, c *containersapi.Container) ([]*types.Mount, error) {
	if c.SnapshotKey == "" {
		return nil, nil
	}
	if c.Snapshotter == "" {
		return nil, fmt.Errorf("container %s has a snapshot but no snapshotter: %w", c.ID, errdefs.ErrInvalidArgument)
	}
	resp, err := snapshotsapi.NewSnapshotsClient(s).Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: c.Snapshotter, Key: c.SnapshotKey})
	return resp.GetMounts(), err
}

func startAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	c, err := loadContainer(ctx, s, cmd.Args().First())
	if err != nil {
		return err
	}
	if c.rootfs, err = snapshotMounts(ctx, s, c.record); err != nil {
		return err
	}
	ctx, front, stop := interruptible(ctx)
	defer stop()
	status, _, err := runTask(ctx, cmd, s, front, c, cmd.Bool("detach"))
	if err != nil {
		return interrupted(ctx, err)
	}
	return exitWith(status)
}

func execAction(ctx context.Context, cmd *cli.Command, s *session) error {
	id, execID, terminal, detach := cmd.Args().First(), cmd.String("exec-id"), cmd.Bool("tty"), cmd.Bool("detach")
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	if cmd.String("log-uri") != "" && cmd.String("fifo-dir") != "" {
		return invalid("--log-uri and --fifo-dir cannot be used together")
	}
	c, err := loadContainer(ctx, s, id)
	if err != nil {
		return err
	}
	proc := c.spec.Process
	if proc == nil {
		return fmt.Errorf("the spec of container %s has no process to take the defaults from: %w", id, errdefs.ErrFailedPrecondition)
	}
	proc.Terminal, proc.Args = terminal, cmd.Args().Tail()
	if cwd := cmd.String("cwd"); cwd != "" {
		proc.Cwd = cwd
	}
	if err := setExecUser(ctx, s, c, cmd.String("user")); err != nil {
		return err
	}
	b, err := json.Marshal(proc)
	if err != nil {
		return err
	}
	ctx, front, stop := interruptible(ctx)
	defer stop()
	p := s.process(id, execID)
	pio, err := openIO(ctx, cmd, p, terminal, !detach)
	if err != nil {
		return err
	}
	if _, err := p.tasks.Exec(ctx, &tasksapi.ExecProcessRequest{
		ContainerID: id, ExecID: execID, Terminal: terminal,
		Stdin: pio.pipes.Stdin, Stdout: pio.pipes.Stdout, Stderr: pio.pipes.Stderr,
		Spec: &anypb.Any{TypeUrl: spec.ProcessTypeURL, Value: b},
	}); err != nil {
		pio.close(true)
		return err
	}
	if detach {
		defer pio.close(false)
		if err := p.start(ctx); err != nil {
			ctx, cancel := afterwards(ctx)
			defer cancel()
			p.delete(ctx)
			pio.close(true)
			return startError(err)
		}
		return nil
	}
	status, _, err := runProcess(ctx, front, p, pio, func() error { return nil })
	if err != nil {
		return interrupted(ctx, err)
	}
	return exitWith(status)
}

// setExecUser looks the user up in the container's root filesystem.
func setExecUser(ctx context.Context, s *session, c *created, name string) error {
	if name == "" {
		return nil
	}
	set := func(root *spec.Rootfs) (err error) {
		c.spec.Process.User, err = spec.LookupUser(root, name)
		return err
	}
	if c.record.SnapshotKey == "" {
		if c.spec.Root == nil || c.spec.Root.Path == "" || c.spec.Root.Path[0] != '/' {
			return fmt.Errorf("container %s has no root filesystem to look users up in: %w", c.record.ID, errdefs.ErrFailedPrecondition)
		}
		root, err := spec.OpenRootfsDir(c.spec.Root.Path)
		if err != nil {
			return err
		}
		defer root.Close()
		return set(root)
	}
	mounts, err := snapshotMounts(ctx, s, c.record)
	if err != nil {
		return err
	}
	return withRootfs(ctx, mounts, set)
}

func attachAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	p := s.process(cmd.Args().First(), "")
	state, err := p.state(ctx)
	if err != nil {
		return err
	}
	ctx, front, stop := interruptible(ctx)
	defer stop()
	pio := &processIO{pipes: &procio.Pipes{Stdin: state.Stdin, Stdout: state.Stdout, Stderr: state.Stderr, Terminal: state.Terminal}}
	defer pio.close(false)
	if err := pio.attach(p.closeStdin(ctx)); err != nil {
		return err
	}
	pio.copier.Started()
	exited := p.wait(ctx)
	if pio.con != nil {
		p.resize(ctx, pio.con)
	}
	front.started(ctx, p, pio.con)
	e := front.ended(ctx, p, exited)
	if e.err != nil {
		return interrupted(ctx, e.err)
	}
	if _, err := p.delete(ctx); ignoreNotFound(err) != nil {
		return err
	}
	pio.finish()
	procio.Discard(state.Stdin, state.Stdout, state.Stderr)
	return exitWith(e.status)
}

func deleteTasksAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if cmd.String("exec-id") == "" && !anyArgs(cmd, "container id") {
		return nil
	}
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	remove := func(p process) (uint32, error) {
		if cmd.Bool("force") {
			if err := p.kill(ctx, syscall.SIGKILL, p.execID == ""); err == nil {
				p.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: p.id, ExecID: p.execID})
			}
		}
		state, _ := p.state(ctx)
		status, err := p.delete(ctx)
		if err == nil {
			procio.Discard(state.GetStdin(), state.GetStdout(), state.GetStderr())
		}
		return status, err
	}
	if execID := cmd.String("exec-id"); execID != "" {
		status, err := remove(s.process(cmd.Args().First(), execID))
		if err != nil {
			return err
		}
		return exitWith(status)
	}
	return forEach(cmd.Args().Slice(), "unable to delete task", func(id string) error {
		status, err := remove(s.process(id, ""))
		if err != nil {
			return err
		}
		if status != 0 {
			output.Warn("task %s exited with status %d", id, status)
		}
		if c, err := getContainer(ctx, s, id); err == nil {
			detachStopped(ctx, s, c)
		}
		return nil
	})
}

func killAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	id, execID, all := cmd.Args().First(), cmd.String("exec-id"), cmd.Bool("all")
	if all && execID != "" {
		return invalid("--exec-id and --all cannot be used together")
	}
	name := cmd.String("signal")
	if name == "" {
		c, err := getContainer(ctx, s, id)
		if err != nil {
			return err
		}
		if name = c.Labels[stopSignalLabel]; name == "" {
			name = "SIGTERM"
		}
	}
	sig, err := parseSignal(name)
	if err != nil {
		return err
	}
	return s.process(id, execID).kill(ctx, sig, all)
}

// parseSignal reads a number, a name with or without SIG, or RTMIN+n and RTMAX-n.
func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= sigRTMax {
		return syscall.Signal(n), nil
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		offset, ok := strings.CutPrefix(upper, prefix)
		if !ok {
			continue
		}
		n := 0
		if offset != "" {
			var err error
			if n, err = strconv.Atoi(offset); err != nil {
				break
			}
		}
		if n += base; n >= sigRTMin && n <= sigRTMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, invalid("%q is not a signal; use a name such as SIGTERM or a number", name)
}

// Bounds of the real-time signals as C libraries have them.
const (
	sigRTMin = 34
	sigRTMax = 64
)

func pauseAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	_, err := tasksapi.NewTasksClient(s).Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: cmd.Args().First()})
	return err
}

func resumeAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	_, err := tasksapi.NewTasksClient(s).Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: cmd.Args().First()})
	return err
}

// taskView is a task as --format shows it.
type taskView struct {
	ID         string
	PID        uint32
	Status     string
	ExitStatus uint32
}

func listTasks(ctx context.Context, s *session) ([]*task.Process, error) {
	resp, err := tasksapi.NewTasksClient(s).List(ctx, &tasksapi.ListTasksRequest{})
	return resp.GetTasks(), err
}

func listTasksAction(ctx context.Context, cmd *cli.Command, s *session) error {
	list, err := listTasks(ctx, s)
	if err != nil {
		return err
	}
	if cmd.Bool("quiet") {
		return output.Names(list, func(t *task.Process) string { return t.ID })
	}
	rows := make([]taskView, len(list))
	for i, t := range list {
		rows[i] = taskView{ID: t.ID, PID: t.Pid, Status: t.Status.String(), ExitStatus: t.ExitStatus}
	}
	return output.List(cmd.String("format"), rows, output.Wide, "TASK\tPID\tSTATUS\t", func(t taskView) string {
		return fmt.Sprintf("%s\t%d\t%s", t.ID, t.PID, t.Status)
	})
}

// psView is a process of a task.
type psView struct {
	PID    uint32
	ExecID string
	Info   string
}

func psAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	resp, err := tasksapi.NewTasksClient(s).ListPids(ctx, &tasksapi.ListPidsRequest{ContainerID: cmd.Args().First()})
	if err != nil {
		return err
	}
	rows := make([]psView, len(resp.Processes))
	for i, p := range resp.Processes {
		rows[i] = psView{PID: p.Pid, Info: "-"}
		if p.Info == nil {
			continue
		}
		var details options.ProcessDetails
		if err := proto.Unmarshal(p.Info.Value, &details); err == nil {
			rows[i].ExecID, rows[i].Info = details.ExecID, details.String()
		}
	}
	return output.List(cmd.String("format"), rows, output.Wide, "PID\tINFO", func(p psView) string {
		return fmt.Sprintf("%d\t%s", p.PID, p.Info)
	})
}
