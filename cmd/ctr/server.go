package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/spec"
	"berth/internal/version"

	_ "github.com/containerd/containerd/api/events" // the types that events carry
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/platforms"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Aliases: []string{"event"}, Usage: "Display containerd events", ArgsUsage: "[<filter>, ...]",
		Description: "Prints what happens until it is interrupted. Any of the filters is enough.",
		Flags:       []cli.Flag{formatFlag()},
		Action:      withSession(eventsAction),
	}
}

// eventView is an event as --format shows it.
type eventView struct {
	Time      time.Time
	Namespace string
	Topic     string
	Event     any
}

// eventsAction prints what happens until it is interrupted.
func eventsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	stream, err := eventsapi.NewEventsClient(s).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: cmd.Args().Slice()})
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		v := eventView{e.Timestamp.AsTime(), e.Namespace, e.Topic, decodeAny(e.Event)}
		if format := cmd.String("format"); format != "" && format != "table" {
			if err := output.Row(format, v); err != nil {
				return err
			}
			continue
		}
		body, err := json.Marshal(v.Event)
		if err != nil {
			output.Warn("event %s: %v", e.Topic, err)
			continue
		}
		fmt.Println(v.Time, v.Namespace, v.Topic, string(body))
	}
}

// decodeAny is the message in a, or a itself when its type is not known.
func decodeAny(a *anypb.Any) any {
	if a == nil {
		return nil
	}
	name := a.TypeUrl[strings.LastIndexByte(a.TypeUrl, '/')+1:]
	if mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name)); err == nil {
		m := mt.New().Interface()
		if proto.Unmarshal(a.Value, m) == nil {
			return m
		}
	}
	return output.ViewAny(a)
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "Print the client and server versions",
		Flags: []cli.Flag{formatFlag()}, Action: versionAction,
	}
}

// versionView is what --format shows.
type versionView struct {
	Client clientVersion
	Server serverVersion
}

type clientVersion struct{ Version, Revision, GoVersion string }

type serverVersion struct{ Version, Revision, UUID string }

func versionAction(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 0 {
		return invalid("extra arguments: %s", strings.Join(cmd.Args().Slice(), " "))
	}
	v := versionView{Client: clientVersion{version.Version, version.Revision(), runtime.Version()}}
	format := cmd.String("format")
	plain := format == "" || format == "table"
	if plain { // before the daemon is asked, which may not be there
		output.Line("Client:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n", v.Client.Version, v.Client.Revision, v.Client.GoVersion)
	}
	ctx, s, end, err := connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer end()
	var g errgroup.Group
	g.Go(func() error {
		resp, err := versionapi.NewVersionClient(s).Version(ctx, &emptypb.Empty{})
		v.Server.Version, v.Server.Revision = resp.GetVersion(), resp.GetRevision()
		return err
	})
	g.Go(func() error {
		resp, err := introspectionapi.NewIntrospectionClient(s).Server(ctx, &emptypb.Empty{})
		v.Server.UUID = resp.GetUUID()
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if !plain {
		return output.One(format, v)
	}
	output.Line("Server:\n  Version:  %s\n  Revision: %s\n  UUID: %s", v.Server.Version, v.Server.Revision, v.Server.UUID)
	if v.Server.Version != v.Client.Version {
		fmt.Fprintln(os.Stderr, "WARNING: version mismatch")
	}
	if v.Server.Revision != v.Client.Revision {
		fmt.Fprintln(os.Stderr, "WARNING: revision mismatch")
	}
	return nil
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name: "info", Usage: "Print the server info", Flags: []cli.Flag{formatFlag()},
		Action: withSession(func(ctx context.Context, cmd *cli.Command, s *session) error {
			resp, err := introspectionapi.NewIntrospectionClient(s).Server(ctx, &emptypb.Empty{})
			if err != nil {
				return err
			}
			return output.One(cmd.String("format"), map[string]any{"server": resp})
		}),
	}
}

func deprecationsCommand() *cli.Command {
	return &cli.Command{
		Name: "deprecations", Usage: "Show what the daemon warns of",
		Commands: []*cli.Command{{
			Name: "list", Usage: "Print warnings for deprecations",
			Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Usage: "output format to use (Examples: 'default', 'json')"}},
			Action: withSession(deprecationsAction),
		}},
	}
}

// deprecationView is a warning of the daemon.
type deprecationView struct {
	ID             string    `json:"id"`
	Message        string    `json:"message"`
	LastOccurrence time.Time `json:"lastOccurrence"`
}

func deprecationsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	resp, err := introspectionapi.NewIntrospectionClient(s).Server(ctx, &emptypb.Empty{})
	if err != nil || len(resp.Deprecations) == 0 {
		return err
	}
	var rows []deprecationView
	for _, d := range resp.Deprecations {
		rows = append(rows, deprecationView{d.ID, d.Message, d.LastOccurrence.AsTime()})
	}
	format := cmd.String("format")
	if format == "default" {
		format = ""
	}
	return output.List(format, rows, output.Wide, "ID\tLAST OCCURRENCE\tMESSAGE\t", func(d deprecationView) string {
		return fmt.Sprintf("%s\t%s\t%s", d.ID, d.LastOccurrence.Format(time.RFC3339Nano), d.Message)
	})
}

func ociCommand() *cli.Command {
	return &cli.Command{
		Name: "oci", Usage: "OCI tools",
		Commands: []*cli.Command{{
			Name: "spec", Usage: "See the output of the default OCI spec",
			Flags: []cli.Flag{&cli.StringFlag{Name: "platform", Usage: "Platform of the spec to print (Examples: 'linux/arm64', 'windows/amd64')"}, formatFlag()},
			Action: func(_ context.Context, cmd *cli.Command) error {
				if name := cmd.String("platform"); name != "" {
					p, err := platforms.Parse(name)
					if err != nil {
						return invalid("--platform %s: %v", name, err)
					}
					if p.OS != "linux" {
						return fmt.Errorf("--platform %s: specs are generated for linux only", name)
					}
				}
				return output.One(cmd.String("format"), spec.Default(cmd.String("namespace"), "", spec.ThrottlePaths()))
			},
		}},
	}
}

func pluginsCommand() *cli.Command {
	return &cli.Command{
		Name: "plugins", Aliases: []string{"plugin"}, Usage: "Provides information about containerd plugins",
		Commands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "Lists containerd plugins",
				Flags: []cli.Flag{
					quietFlag("Print only the plugin ids"),
					&cli.BoolFlag{Name: "detailed", Aliases: []string{"d"}, Usage: "Print detailed information about each plugin"},
					formatFlag(),
				},
				Action: withSession(listPluginsAction),
			},
			{Name: "inspect-runtime", Usage: "Display runtime info", ArgsUsage: "[flags]", Flags: append(runtimeFlags(), formatFlag()), Action: withSession(inspectRuntimeAction)},
		},
	}
}

// pluginView is a plugin of the daemon as lists show it.
type pluginView struct {
	Type, ID     string
	Requires     []string          `json:",omitempty"`
	Platforms    []string          `json:",omitempty"`
	Exports      map[string]string `json:",omitempty"`
	Capabilities []string          `json:",omitempty"`
	Status       string
	Error        string `json:",omitempty"`
	code         codes.Code
}

func listPluginsAction(ctx context.Context, cmd *cli.Command, s *session) error {
	resp, err := introspectionapi.NewIntrospectionClient(s).Plugins(ctx, &introspectionapi.PluginsRequest{Filters: cmd.Args().Slice()})
	if err != nil {
		return err
	}
	var rows []pluginView
	for _, p := range resp.Plugins {
		v := pluginView{
			Type: p.Type, ID: p.ID, Requires: p.Requires, Platforms: platformNames(p.Platforms),
			Exports: p.Exports, Capabilities: p.Capabilities, Status: "ok",
		}
		if p.InitErr != nil {
			v.Status, v.Error, v.code = "error", p.InitErr.Message, codes.Code(p.InitErr.Code)
			if strings.Contains(v.Error, "skip plugin") {
				v.Status = "skip"
			}
		}
		rows = append(rows, v)
	}
	switch {
	case cmd.Bool("quiet"):
		return output.Names(rows, func(p pluginView) string { return p.ID })
	case cmd.Bool("detailed"):
		return printPlugins(rows)
	}
	return output.List(cmd.String("format"), rows, output.Wide, "TYPE\tID\tPLATFORMS\tSTATUS\t", func(p pluginView) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t", p.Type, p.ID, output.Dash(strings.Join(p.Platforms, ",")), p.Status)
	})
}

func platformNames(ps []*types.Platform) []string {
	var names []string
	for _, p := range ps {
		name := p.OS + "/" + p.Architecture
		if p.Variant != "" {
			name += "/" + p.Variant
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func printPlugins(rows []pluginView) error {
	w := output.Wide.Table(os.Stdout)
	for i, p := range rows {
		if i > 0 {
			fmt.Fprintln(w, "\t\t\t")
		}
		fmt.Fprintln(w, "Type:\t", p.Type)
		fmt.Fprintln(w, "ID:\t", p.ID)
		if len(p.Requires) > 0 {
			fmt.Fprintln(w, "Requires:\t")
			for _, r := range p.Requires {
				fmt.Fprintln(w, "\t", r)
			}
		}
		if len(p.Platforms) > 0 {
			fmt.Fprintln(w, "Platforms:\t", strings.Join(p.Platforms, ","))
		}
		if len(p.Exports) > 0 {
			fmt.Fprintln(w, "Exports:\t")
			for key, value := range p.Exports {
				fmt.Fprintln(w, "\t", key, "\t", value)
			}
		}
		if len(p.Capabilities) > 0 {
			fmt.Fprintln(w, "Capabilities:\t", strings.Join(p.Capabilities, ","))
		}
		if p.Error != "" {
			fmt.Fprintln(w, "Error:\t")
			fmt.Fprintln(w, "\t Code:\t", p.code)
			fmt.Fprintln(w, "\t Message:\t", p.Error)
		}
	}
	return w.Flush()
}

// runtimeInfoView is what a shim tells of itself.
type runtimeInfoView struct {
	Name        string
	Version     struct{ Version, Revision string }
	Options     any                `json:",omitempty"`
	Features    *features.Features `json:",omitempty"`
	Annotations map[string]string
}

func inspectRuntimeAction(ctx context.Context, cmd *cli.Command, s *session) error {
	rt, err := runtimeOf(cmd)
	if err != nil {
		return err
	}
	req, err := marshalAny(&types.RuntimeRequest{RuntimePath: rt.Name, Options: rt.Options})
	if err != nil {
		return err
	}
	resp, err := introspectionapi.NewIntrospectionClient(s).PluginInfo(ctx, &introspectionapi.PluginInfoRequest{Type: "io.containerd.runtime.v2", ID: "task", Options: req})
	if err != nil {
		return err
	}
	info, ok := decodeAny(resp.Extra).(*types.RuntimeInfo)
	if !ok {
		return fmt.Errorf("the daemon answered with %s, not with runtime info", resp.Extra.GetTypeUrl())
	}
	v := runtimeInfoView{Name: info.Name, Annotations: info.Annotations, Options: decodeAny(info.Options)}
	v.Version.Version, v.Version.Revision = info.Version.GetVersion(), info.Version.GetRevision()
	if f := info.Features; f != nil {
		v.Features = &features.Features{}
		if err := json.Unmarshal(f.Value, v.Features); err != nil {
			return fmt.Errorf("features of runtime %s: %w", info.Name, err)
		}
	}
	return output.One(cmd.String("format"), v)
}
