package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"berth/cmd/ctr/output"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
)

func runCommand() *cli.Command {
	two := 2
	return &cli.Command{
		Name:         "run",
		Usage:        "Run a container",
		ArgsUsage:    "[flags] Image|RootFS ID [COMMAND] [ARG...]",
		Description:  "Makes a container from an image, starts it, and waits for it; ctr exits with its status.",
		Flags:        append(runFlags(), createFlags()...),
		StopOnNthArg: &two,
		Action:       withSession(runAction),
	}
}

func runAction(ctx context.Context, cmd *cli.Command, s *session) (err error) {
	remove, detach := cmd.Bool("rm"), cmd.Bool("detach")
	if remove && detach {
		return invalid("--detach and --rm cannot be used together")
	}
	if cmd.IsSet("dump-config") && cmd.String("dump-config") == "" {
		return invalid("--dump-config needs a file name")
	}
	req, err := parseCreation(cmd, s.namespace)
	if err != nil {
		return err
	}
	var net *network
	if req.cni {
		if cmd.Bool("net-host") {
			return invalid("--cni and --net-host exclude each other")
		}
		if net, err = openNetwork(); err != nil {
			return err
		}
	}
	ctx, front, stop := interruptible(ctx)
	defer stop()
	c, err := createContainer(ctx, cmd, s, req)
	if err != nil {
		return interrupted(ctx, err)
	}
	ran := false
	defer func() {
		// Differs from containerd: a container whose process could not be started
		// does not stay behind, so that the same command can be tried again.
		if isLost(err) || !remove && (ran || err == nil) {
			return
		}
		if e := removeContainer(ctx, s, c.record, false); e != nil && err == nil {
			err = fmt.Errorf("removing the container: %w", e)
		}
	}()
	if path := cmd.String("dump-config"); path != "" {
		b, err := json.MarshalIndent(c.spec, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o666); err != nil {
			return fmt.Errorf("--dump-config: %w", err)
		}
	}
	if net != nil && !ownsNetwork(c.spec) {
		return invalid("--cni: the container's spec has no network namespace of its own")
	}
	c.network = net
	status, ran, err := runTask(ctx, cmd, s, front, c, detach)
	if err != nil {
		return interrupted(ctx, err)
	}
	return exitWith(status)
}

// interrupted is the interrupt that ended ctx, when one did.
func interrupted(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}

// runTask makes and starts the task of c. With detach it is left alone then;
// otherwise its end is waited for. started tells whether the process ran.
func runTask(ctx context.Context, cmd *cli.Command, s *session, front *foreground, c *created, detach bool) (status uint32, started bool, err error) {
	p := s.process(c.record.ID, "")
	terminal := c.spec.Process != nil && c.spec.Process.Terminal
	pio, err := openIO(ctx, cmd, p, terminal, !detach)
	if err != nil {
		return 0, false, err
	}
	pid, err := newTask(ctx, cmd, s, c, pio)
	if err != nil {
		pio.close(true)
		return 0, false, startError(err)
	}
	attached := false
	beforeStart := func() error {
		if err := writePID(cmd.String("pid-file"), pid); err != nil || c.network == nil {
			return err
		}
		err := c.network.attach(ctx, s, c.record.ID, pid)
		attached = err == nil
		return err
	}
	defer func() {
		if attached && !isLost(err) && (!detach || !started) {
			if e := c.network.detach(ctx, s, c.record.ID); e != nil {
				output.Warn("%v", e)
			}
		}
	}()
	if !detach {
		return runProcess(ctx, front, p, pio, beforeStart)
	}
	if err = beforeStart(); err == nil {
		err = p.start(ctx)
	}
	if err != nil {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		p.destroy(ctx)
		pio.close(true)
		return 0, false, startError(err)
	}
	pio.close(false)
	return 0, true, nil
}

// removeContainer deletes the record and, unless it is to be kept, the snapshot.
func removeContainer(ctx context.Context, s *session, c *containersapi.Container, keepSnapshot bool) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error {
		_, err := containersapi.NewContainersClient(s).Delete(ctx, &containersapi.DeleteContainerRequest{ID: c.ID})
		return err
	})
	if c.SnapshotKey != "" && !keepSnapshot {
		g.Go(func() error { return removeSnapshot(ctx, s, c.Snapshotter, c.SnapshotKey) })
	}
	return g.Wait()
}
