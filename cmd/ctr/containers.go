package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"berth/cmd/ctr/output"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func containersCommand() *cli.Command {
	two := 2
	return &cli.Command{
		Name:    "containers",
		Aliases: []string{"c", "container"},
		Usage:   "Manage containers",
		Commands: []*cli.Command{
			{
				Name:         "create",
				Usage:        "Create container",
				ArgsUsage:    "[flags] Image|RootFS CONTAINER [COMMAND] [ARG...]",
				Description:  "Makes a container without running anything; 'ctr tasks start' does that.",
				Flags:        createFlags(),
				StopOnNthArg: &two,
				Action:       withSession(createAction),
			},
			{
				Name:      "delete",
				Aliases:   []string{"del", "remove", "rm"},
				Usage:     "Delete one or more existing containers",
				ArgsUsage: "[flags] CONTAINER [CONTAINER, ...]",
				Flags:     []cli.Flag{&cli.BoolFlag{Name: "keep-snapshot", Usage: "Do not clean up snapshot with container"}},
				Action:    withSession(deleteContainersAction),
			},
			{
				Name:      "info",
				Usage:     "Get info about a container",
				ArgsUsage: "CONTAINER",
				Flags:     []cli.Flag{&cli.BoolFlag{Name: "spec", Usage: "Only display the spec"}, formatFlag()},
				Action:    withSession(containerInfoAction),
			},
			{
				Name:      "list",
				Aliases:   []string{"ls"},
				Usage:     "List containers",
				ArgsUsage: "[flags] [<filter>, ...]",
				Flags:     []cli.Flag{quietFlag("Print only the container id"), formatFlag()},
				Action:    withSession(listContainersAction),
			},
			{
				Name:        "label",
				Usage:       "Set and clear labels for a container",
				ArgsUsage:   "[flags] CONTAINER [<key>=<value>, ...]",
				Description: "set and clear labels for a container; an empty value clears the label",
				Action:      withSession(labelContainerAction),
			},
			{
				Name:      "checkpoint",
				Usage:     "Checkpoint a container",
				ArgsUsage: "CONTAINER REF",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "rw", Usage: "Include the rw layer in the checkpoint"},
					&cli.BoolFlag{Name: "image", Usage: "Include the image in the checkpoint"},
					&cli.BoolFlag{Name: "task", Usage: "Checkpoint container task"},
				},
				Action: undoing(withSession(checkpointContainerAction)),
			},
			{
				Name:      "restore",
				Usage:     "Restore a container from checkpoint",
				ArgsUsage: "CONTAINER REF",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "rw", Usage: "Restore the rw layer from the checkpoint"},
					&cli.BoolFlag{Name: "live", Usage: "Restore the runtime and memory data from the checkpoint"},
				},
				Action: withSession(restoreAction),
			},
		},
	}
}

func createAction(ctx context.Context, cmd *cli.Command, s *session) error {
	req, err := parseCreation(cmd, s.namespace)
	if err != nil {
		return err
	}
	_, err = createContainer(ctx, cmd, s, req)
	return err
}

func getContainer(ctx context.Context, s *session, id string) (*containersapi.Container, error) {
	resp, err := containersapi.NewContainersClient(s).Get(ctx, &containersapi.GetContainerRequest{ID: id})
	return resp.GetContainer(), err
}

// containerSpec decodes the spec of a record.
func containerSpec(c *containersapi.Container) (*specs.Spec, error) {
	var s specs.Spec
	if c.Spec == nil {
		return nil, fmt.Errorf("container %s has no spec: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	if err := json.Unmarshal(c.Spec.Value, &s); err != nil {
		return nil, fmt.Errorf("container %s has a spec of type %s, which is not an OCI runtime spec in JSON: %w", c.ID, c.Spec.TypeUrl, err)
	}
	return &s, nil
}

func deleteContainersAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if cmd.NArg() == 0 {
		return invalid("must specify at least one container to delete")
	}
	return forEach(cmd.Args().Slice(), "failed to delete container", func(id string) error {
		return deleteContainer(ctx, s, id, cmd.Bool("keep-snapshot"))
	})
}

func deleteContainer(ctx context.Context, s *session, id string, keepSnapshot bool) error {
	c, err := getContainer(ctx, s, id)
	if err != nil {
		return err
	}
	p := s.process(id, "")
	if state, err := p.state(ctx); err == nil {
		if state.Status != task.Status_STOPPED && state.Status != task.Status_CREATED {
			return fmt.Errorf("container %s has a task that is %s; stop it first, e.g. with 'ctr tasks kill -s SIGKILL %s': %w",
				id, strings.ToLower(state.Status.String()), id, errdefs.ErrFailedPrecondition)
		}
		if _, err := p.delete(ctx); ignoreNotFound(err) != nil {
			return err
		}
	}
	detachStopped(ctx, s, c)
	return removeContainer(ctx, s, c, keepSnapshot)
}

// forEach does fn for every argument. Each failure is a line on stderr; the first
// one is returned.
func forEach(args []string, what string, fn func(string) error) (first error) {
	for _, arg := range args {
		err := fn(arg)
		switch {
		case err == nil:
		case len(args) == 1:
			return err
		case first == nil:
			first = fmt.Errorf("%s %s: %w", what, arg, err)
		default:
			output.Warn("%s %s: %v", what, arg, err)
		}
	}
	return first
}

// containerView is a record as info and --format show it.
type containerView struct {
	ID          string
	Labels      map[string]string
	Image       string
	Runtime     runtimeView
	SnapshotKey string
	Snapshotter string
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Extensions  map[string]*output.Any
	SandboxID   string
	Spec        any `json:",omitempty"`
}

type runtimeView struct {
	Name    string
	Options *output.Any
}

func viewContainer(c *containersapi.Container) containerView {
	v := containerView{
		ID: c.ID, Labels: c.Labels, Image: c.Image, SnapshotKey: c.SnapshotKey, Snapshotter: c.Snapshotter,
		Runtime:   runtimeView{Name: c.Runtime.GetName(), Options: output.ViewAny(c.Runtime.GetOptions())},
		CreatedAt: c.CreatedAt.AsTime(), UpdatedAt: c.UpdatedAt.AsTime(),
		Extensions: map[string]*output.Any{}, SandboxID: c.Sandbox,
	}
	for key, ext := range c.Extensions {
		v.Extensions[key] = output.ViewAny(ext)
	}
	v.Spec = viewSpec(c.Spec)
	return v
}

// viewSpec is the decoded OCI spec, or the raw bytes of another kind.
func viewSpec(a *anypb.Any) any {
	if a.GetValue() == nil {
		return nil
	}
	var s specs.Spec
	if err := json.Unmarshal(a.Value, &s); err != nil {
		return output.ViewAny(a)
	}
	return &s
}

func containerInfoAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	c, err := getContainer(ctx, s, cmd.Args().First())
	if err != nil {
		return err
	}
	if cmd.Bool("spec") {
		return output.One(cmd.String("format"), viewSpec(c.Spec))
	}
	return output.One(cmd.String("format"), viewContainer(c))
}

func listContainersAction(ctx context.Context, cmd *cli.Command, s *session) error {
	list, err := listContainers(ctx, s, cmd.Args().Slice()...)
	if err != nil {
		return err
	}
	if cmd.Bool("quiet") {
		return output.Names(list, func(c *containersapi.Container) string { return c.ID })
	}
	rows := make([]containerView, len(list))
	for i, c := range list {
		rows[i] = viewContainer(c)
	}
	return output.List(cmd.String("format"), rows, output.Wide, "CONTAINER\tIMAGE\tRUNTIME\t", func(c containerView) string {
		return fmt.Sprintf("%s\t%s\t%s\t", c.ID, output.Dash(c.Image), c.Runtime.Name)
	})
}

// listContainers asks for the records as a stream, which has no bound on its
// size; a daemon without that answers in one message.
func listContainers(ctx context.Context, s *session, filters ...string) ([]*containersapi.Container, error) {
	client, req := containersapi.NewContainersClient(s), &containersapi.ListContainersRequest{Filters: filters}
	stream, err := client.ListStream(ctx, req)
	if err != nil {
		return nil, err
	}
	var out []*containersapi.Container
	err = receive(stream.Recv, func(m *containersapi.ListContainerMessage) error {
		out = append(out, m.Container)
		return nil
	})
	if errdefs.IsNotImplemented(err) {
		resp, err := client.List(ctx, req)
		return resp.GetContainers(), err
	}
	return out, err
}

func labelContainerAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	id, labels := cmd.Args().First(), labelArgs(cmd.Args().Tail())
	paths := make([]string, 0, len(labels))
	for key := range labels {
		paths = append(paths, "labels."+key)
	}
	resp, err := containersapi.NewContainersClient(s).Update(ctx, &containersapi.UpdateContainerRequest{
		Container: &containersapi.Container{ID: id, Labels: labels, Runtime: &containersapi.Container_Runtime{}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
	})
	if err != nil {
		return err
	}
	output.Line("%s", output.Labels(resp.Container.Labels))
	return nil
}
