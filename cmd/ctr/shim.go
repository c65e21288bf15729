package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"berth/cmd/ctr/output"
	"berth/cmd/ctr/procio"
	"berth/internal/spec"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

func shimCommand() *cli.Command {
	version := func() cli.Flag {
		return &cli.IntFlag{Name: "api-version", Usage: "shim API version {2,3}", Value: 3}
	}
	return &cli.Command{
		Name: "shim", Usage: "Interact with a shim directly",
		Description: "Speaks to the shim of a container past the daemon, which may be down. What is changed here the daemon learns from the shim's events alone.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "id", Usage: "shim ID"},
			&cli.StringFlag{Name: "shim-address", Usage: "shim address (default: computed from shim ID)"},
		},
		Commands: []*cli.Command{
			{Name: "delete", Usage: "Delete a container with a task", ArgsUsage: "[CONTAINER]", Action: withShim(shimDeleteAction)},
			{
				Name: "exec", Usage: "Exec a new process in the task's container", ArgsUsage: "[flags] EXEC-ID",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "stdin", Usage: "Specify the path to the stdin fifo"},
					&cli.StringFlag{Name: "stdout", Usage: "Specify the path to the stdout fifo"},
					&cli.StringFlag{Name: "stderr", Usage: "Specify the path to the stderr fifo"},
					&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "Enable tty support"},
					&cli.BoolFlag{Name: "attach", Aliases: []string{"a"}, Usage: "Stay attached to the container and open the fifos"},
					&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "Add environment vars"},
					&cli.StringFlag{Name: "cwd", Usage: "Current working directory"},
					&cli.StringFlag{Name: "spec", Usage: "Runtime spec"},
					&cli.StringFlag{Name: "task-id", Usage: "task ID (default: shim ID)"},
				},
				Action: withShim(shimExecAction),
			},
			{Name: "start", Usage: "Start a container with a task", ArgsUsage: "[CONTAINER]", Action: withShim(shimStartAction)},
			{
				Name: "state", Usage: "Get the state of all main process of the task",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "task-id", Aliases: []string{"t"}, Usage: "task ID"}, version(),
				},
				Action: withShim(shimStateAction),
			},
			{Name: "shutdown", Usage: "Shutdown shim if there is no active container", Flags: []cli.Flag{version()}, Action: withShim(shimShutdownAction)},
			{Name: "pprof", Usage: "Provide golang pprof outputs for containerd-shim", Commands: profileCommands(shimProfiles)},
		},
	}
}

// shimConn is a connection to a shim.
type shimConn struct {
	*ttrpc.Client
	id string // of the task, unless a command names another
}

// withShim runs fn with a connection to the shim that the flags name.
func withShim(fn func(ctx context.Context, cmd *cli.Command, c shimConn) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if v := cmd.Int("api-version"); v != 0 && v != 2 && v != 3 {
			return invalid("--api-version must be 2 or 3")
		}
		conn, err := dialShim(cmd)
		if err != nil {
			return err
		}
		client := ttrpc.NewClient(conn)
		defer client.Close()
		if limit := cmd.Duration("timeout"); limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		err = fn(ctx, cmd, shimConn{client, cmd.String("id")})
		if _, ok := status.FromError(err); ok {
			err = errgrpc.ToNative(err)
		}
		return err
	}
}

// dialShim tries the addresses that the shim may have, the likeliest first.
func dialShim(cmd *cli.Command) (net.Conn, error) {
	id, address := cmd.String("id"), cmd.String("shim-address")
	if id == "" && address == "" {
		return nil, invalid("name the shim with --id (a container's id, or its sandbox's) or --shim-address")
	}
	var sockets []string
	if address != "" {
		sockets = append(sockets, address)
	}
	if id != "" {
		namespace := cmd.String("namespace")
		sockets = append(sockets, shimSocket(cmd.String("address"), namespace, id))
		sockets = append(sockets, bundleAddresses(namespace, id)...)
		// Compat: where shims of containerd 1.2 listened.
		sockets = append(sockets, "\x00"+filepath.Join("/containerd-shim", namespace, id, "shim.sock"))
	}
	var tried []string
	for _, socket := range sockets {
		socket = strings.TrimPrefix(socket, "unix://")
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn, nil
		}
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = errno
		}
		tried = append(tried, fmt.Sprintf("%s (%v)", strings.Replace(socket, "\x00", "@", 1), err))
	}
	return nil, fmt.Errorf("no shim answers; tried %s: is the container running ('ctr tasks ls'), and in this namespace?", strings.Join(tried, ", "))
}

// shimSocket is the address that shims compute: the hash of the daemon's address,
// the namespace and the id; of its debug server, with another word.
func shimSocket(daemon string, words ...string) string {
	path := filepath.Join(append([]string{strings.TrimPrefix(daemon, "unix://")}, words...)...)
	return fmt.Sprintf("/run/containerd/s/%x", sha256.Sum256([]byte(path)))
}

// bundleAddresses are what the bundles of running shims of that name say: the
// daemon may have another state directory than the default.
func bundleAddresses(namespace, id string) []string {
	var out []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd") // of a constant pattern
	for _, link := range links {
		bundle, err := os.Readlink(link)
		if err != nil || !strings.HasSuffix(bundle, "/io.containerd.runtime.v2.task/"+namespace+"/"+id) {
			continue
		}
		var boot struct{ Address string }
		if b, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json")); err == nil && json.Unmarshal(b, &boot) == nil && boot.Address != "" {
			out = append(out, boot.Address)
		} else if b, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
			out = append(out, strings.TrimSpace(string(b)))
		}
	}
	return out
}

// task is the id that an argument gives, or the shim's.
func (c shimConn) task(cmd *cli.Command) (string, error) {
	if id := cmd.Args().First(); id != "" {
		return id, nil
	}
	if c.id == "" {
		return "", invalid("container id must be provided")
	}
	return c.id, nil
}

func shimStartAction(ctx context.Context, cmd *cli.Command, c shimConn) error {
	id, err := c.task(cmd)
	if err != nil {
		return err
	}
	_, err = taskv3.NewTTRPCTaskClient(c.Client).Start(ctx, &taskv3.StartRequest{ID: id})
	return err
}

func shimDeleteAction(ctx context.Context, cmd *cli.Command, c shimConn) error {
	id, err := c.task(cmd)
	if err != nil {
		return err
	}
	resp, err := taskv3.NewTTRPCTaskClient(c.Client).Delete(ctx, &taskv3.DeleteRequest{ID: id})
	if err != nil {
		return err
	}
	output.Line("container deleted and returned exit status %d", resp.ExitStatus)
	return nil
}

func shimStateAction(ctx context.Context, cmd *cli.Command, c shimConn) (err error) {
	id := cmd.String("task-id")
	if id == "" {
		id = c.id
	}
	var state any
	if cmd.Int("api-version") == 2 {
		state, err = taskv2.NewTTRPCTaskClient(c.Client).State(ctx, &taskv2.StateRequest{ID: id})
	} else {
		state, err = taskv3.NewTTRPCTaskClient(c.Client).State(ctx, &taskv3.StateRequest{ID: id})
	}
	if err != nil {
		return err
	}
	return output.JSON(state)
}

func shimShutdownAction(ctx context.Context, cmd *cli.Command, c shimConn) (err error) {
	if cmd.Int("api-version") == 2 {
		_, err = taskv2.NewTTRPCTaskClient(c.Client).Shutdown(ctx, &taskv2.ShutdownRequest{})
	} else {
		_, err = taskv3.NewTTRPCTaskClient(c.Client).Shutdown(ctx, &taskv3.ShutdownRequest{})
	}
	if errors.Is(err, ttrpc.ErrClosed) { // it ended before it answered
		return nil
	}
	return err
}

// shimExecAction starts a process that a file describes (an OCI process in JSON)
// and, with --attach, joins its FIFOs with our streams until its output ends.
func shimExecAction(ctx context.Context, cmd *cli.Command, c shimConn) error {
	execID, taskID, path := cmd.Args().First(), cmd.String("task-id"), cmd.String("spec")
	if taskID == "" {
		taskID = c.id
	}
	switch {
	case execID == "":
		return invalid("exec id must be provided")
	case taskID == "":
		return invalid("name the task with --task-id")
	case path == "":
		return invalid("--spec must name a file with the process in JSON, such as {\"args\": [\"sh\"], \"cwd\": \"/\"}")
	}
	process, err := shimProcess(cmd, path)
	if err != nil {
		return err
	}
	tty := cmd.Bool("tty")
	pipes := &procio.Pipes{Stdin: cmd.String("stdin"), Stdout: cmd.String("stdout"), Stderr: cmd.String("stderr"), Terminal: tty}
	if err := pipes.Make(); err != nil {
		return err
	}
	tasks := taskv3.NewTTRPCTaskClient(c.Client)
	pio := &processIO{pipes: pipes}
	defer pio.close(false)
	if cmd.Bool("attach") {
		err = pio.attach(func() {
			tasks.CloseIO(context.WithoutCancel(ctx), &taskv3.CloseIORequest{ID: taskID, ExecID: execID, Stdin: true})
		})
	} else {
		pio.copier, err = procio.Hold(pipes)
	}
	if err != nil {
		return err
	}
	if _, err := tasks.Exec(ctx, &taskv3.ExecProcessRequest{
		ID: taskID, ExecID: execID, Spec: &anypb.Any{TypeUrl: spec.ProcessTypeURL, Value: process},
		Stdin: pipes.Stdin, Stdout: pipes.Stdout, Stderr: pipes.Stderr, Terminal: tty,
	}); err != nil {
		return err
	}
	resp, err := tasks.Start(ctx, &taskv3.StartRequest{ID: taskID, ExecID: execID})
	if err != nil {
		return err
	}
	output.Line("exec running with pid %d", resp.Pid)
	if !cmd.Bool("attach") {
		return nil
	}
	pio.copier.Started()
	if pio.con != nil {
		if size, err := pio.con.Size(); err == nil {
			tasks.ResizePty(ctx, &taskv3.ResizePtyRequest{ID: taskID, ExecID: execID, Width: uint32(size.Width), Height: uint32(size.Height)})
		}
	}
	exited, err := tasks.Wait(ctx, &taskv3.WaitRequest{ID: taskID, ExecID: execID})
	if err != nil {
		return err
	}
	_, err = tasks.Delete(ctx, &taskv3.DeleteRequest{ID: taskID, ExecID: execID})
	pio.copier.Drain(drainTime)
	if err != nil {
		return err
	}
	return exitWith(exited.ExitStatus)
}

// shimProcess is the process of --spec with what the other flags change.
func shimProcess(cmd *cli.Command, path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--spec: %w", err)
	}
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("%s is not a process of the OCI runtime spec in JSON: %w", path, err)
	}
	if len(p.Args) == 0 {
		return nil, invalid("%s names no command: \"args\" is empty", path)
	}
	p.Env = spec.MergeEnv(p.Env, cmd.StringSlice("env"))
	if cwd := cmd.String("cwd"); cwd != "" {
		p.Cwd = cwd
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	p.Terminal = p.Terminal || cmd.Bool("tty")
	return json.Marshal(&p)
}

// shimProfiles asks the debug server of a shim.
func shimProfiles(cmd *cli.Command) (*http.Transport, string, error) {
	id := cmd.String("id")
	if id == "" {
		return nil, "", invalid("name the shim with --id")
	}
	socket := shimSocket(cmd.String("address"), cmd.String("namespace"), id, "debug")
	return unixTransport(socket), "the shim's debug socket " + socket + " (shims of containerd have one when its log level is debug; Berth's have none)", nil
}
