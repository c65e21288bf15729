package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/spec"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func sandboxesCommand() *cli.Command {
	return &cli.Command{
		Name: "sandboxes", Aliases: []string{"sandbox", "sb", "s"}, Usage: "Manage sandboxes",
		Commands: []*cli.Command{
			{
				Name: "run", Aliases: []string{"create", "c", "r"}, Usage: "Run a new sandbox", ArgsUsage: "[flags] <pod-config.json> <sandbox-id>",
				Description: "Makes and starts a sandbox of an OCI spec; its runtime must serve the sandbox API.",
				Flags:       []cli.Flag{&cli.StringFlag{Name: "runtime", Usage: "Runtime name", Value: defaultRuntime}},
				Action:      withSession(runSandboxAction),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List sandboxes", ArgsUsage: "[flags]",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "filters", Usage: "The list of filters to apply when querying sandboxes from the store"},
					quietFlag("Print only the sandbox id"), formatFlag(),
				},
				Action: withSession(listSandboxesAction),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "Remove sandboxes", ArgsUsage: "<id> [<id>, ...]",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "Ignore shutdown errors when removing sandbox"}},
				Action: withSession(removeSandboxesAction),
			},
			{
				Name: "info", Aliases: []string{"i"}, Usage: "Get info about a sandbox", ArgsUsage: "<sandbox id>",
				Flags: []cli.Flag{formatFlag()}, Action: withSession(sandboxInfoAction),
			},
		},
	}
}

// sandboxView is a sandbox as info and --format show it.
type sandboxView struct {
	ID         string
	Labels     map[string]string
	Runtime    runtimeView
	Spec       *output.Any
	Sandboxer  string
	CreatedAt  time.Time
	UpdatedAt  time.Time
	Extensions map[string]*output.Any
}

func viewSandbox(s *types.Sandbox) sandboxView {
	v := sandboxView{
		ID: s.SandboxID, Labels: s.Labels, Sandboxer: s.Sandboxer, Spec: output.ViewAny(s.Spec),
		Runtime:   runtimeView{Name: s.Runtime.GetName(), Options: output.ViewAny(s.Runtime.GetOptions())},
		CreatedAt: s.CreatedAt.AsTime(), UpdatedAt: s.UpdatedAt.AsTime(), Extensions: map[string]*output.Any{},
	}
	for key, ext := range s.Extensions {
		v.Extensions[key] = output.ViewAny(ext)
	}
	return v
}

func runSandboxAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "the configuration (an OCI spec in JSON)", "a sandbox id"); err != nil {
		return err
	}
	path, id := cmd.Args().First(), cmd.Args().Get(1)
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the sandbox's configuration: %w", err)
	}
	var oci specs.Spec
	if err := json.Unmarshal(b, &oci); err != nil {
		return fmt.Errorf("%s is not an OCI runtime spec in JSON: %w", path, err)
	}
	if b, err = json.Marshal(&oci); err != nil {
		return err
	}
	sandboxer, err := namespaceDefault(ctx, s, "sandboxer", "shim")
	if err != nil {
		return err
	}
	options, err := marshalAny(&emptypb.Empty{})
	if err != nil {
		return err
	}
	sandbox := &types.Sandbox{
		SandboxID: id, Sandboxer: sandboxer, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now(),
		Runtime: &types.Sandbox_Runtime{Name: cmd.String("runtime"), Options: options},
		Spec:    &anypb.Any{TypeUrl: spec.TypeURL, Value: b},
	}
	store, controller := sandboxapi.NewStoreClient(s), sandboxapi.NewControllerClient(s)
	if _, err := store.Create(ctx, &sandboxapi.StoreCreateRequest{Sandbox: sandbox}); err != nil {
		return err
	}
	_, err = controller.Create(ctx, &sandboxapi.ControllerCreateRequest{SandboxID: id, Sandboxer: sandboxer, Sandbox: sandbox})
	if err == nil {
		_, err = controller.Start(ctx, &sandboxapi.ControllerStartRequest{SandboxID: id, Sandboxer: sandboxer})
	}
	if err != nil {
		// Differs from containerd: what could not be started does not stay behind.
		ctx, cancel := afterwards(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("starting sandbox %s: %w", id, err), removeSandbox(ctx, s, sandbox, true))
	}
	output.Line("%s", id)
	return nil
}

func listSandboxes(ctx context.Context, s *session, filters ...string) ([]sandboxView, error) {
	resp, err := sandboxapi.NewStoreClient(s).List(ctx, &sandboxapi.StoreListRequest{Filters: filters})
	var rows []sandboxView
	for _, sb := range resp.GetList() {
		rows = append(rows, viewSandbox(sb))
	}
	return rows, err
}

func listSandboxesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	rows, err := listSandboxes(ctx, s, cmd.StringSlice("filters")...)
	if err != nil {
		return err
	}
	if cmd.Bool("quiet") {
		return output.Names(rows, func(sb sandboxView) string { return sb.ID })
	}
	return output.List(cmd.String("format"), rows, output.Narrow, "ID\tCREATED\tRUNTIME\t", func(v sandboxView) string {
		return fmt.Sprintf("%s\t%s\t%s\t", v.ID, v.CreatedAt, v.Runtime.Name)
	})
}

func getSandbox(ctx context.Context, s *session, id string) (*types.Sandbox, error) {
	resp, err := sandboxapi.NewStoreClient(s).Get(ctx, &sandboxapi.StoreGetRequest{SandboxID: id})
	return resp.GetSandbox(), err
}

func sandboxInfoAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "sandbox id"); err != nil {
		return err
	}
	sb, err := getSandbox(ctx, s, cmd.Args().First())
	if err != nil {
		return err
	}
	return output.One(cmd.String("format"), viewSandbox(sb))
}

func removeSandboxesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if !anyArgs(cmd, "sandbox id") {
		return nil
	}
	return forEach(cmd.Args().Slice(), "unable to remove sandbox", func(id string) error {
		sb, err := getSandbox(ctx, s, id)
		if err != nil {
			return err
		}
		return removeSandbox(ctx, s, sb, cmd.Bool("force"))
	})
}

// removeSandbox stops a sandbox, ends its shim, and deletes its record. With force
// it goes on when it cannot be stopped.
func removeSandbox(ctx context.Context, s *session, sb *types.Sandbox, force bool) error {
	controller := sandboxapi.NewControllerClient(s)
	_, err := controller.Stop(ctx, &sandboxapi.ControllerStopRequest{SandboxID: sb.SandboxID, Sandboxer: sb.Sandboxer})
	if ignoreNotFound(err) != nil && !force {
		return fmt.Errorf("stopping it: %w; --force removes it all the same", err)
	}
	if _, err := controller.Shutdown(ctx, &sandboxapi.ControllerShutdownRequest{SandboxID: sb.SandboxID, Sandboxer: sb.Sandboxer}); ignoreNotFound(err) != nil && !force {
		return fmt.Errorf("ending its shim: %w", err)
	}
	_, err = sandboxapi.NewStoreClient(s).Delete(ctx, &sandboxapi.StoreDeleteRequest{SandboxID: sb.SandboxID})
	return ignoreNotFound(err)
}
