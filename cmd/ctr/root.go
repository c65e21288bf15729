package main

import (
	"context"
	"fmt"
	"strings"

	"berth/internal/version"

	"github.com/urfave/cli/v3"
)

// rootCommand is ctr, with the one list of commands.
func rootCommand() *cli.Command {
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "Show help", HideDefault: true, Local: true}
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "Print the version", HideDefault: true, Local: true}
	cli.VersionPrinter = func(cmd *cli.Command) { fmt.Fprintln(cmd.Root().Writer, "ctr", version.Name, cmd.Version) }
	root := &cli.Command{
		Name:    "ctr",
		Usage:   "the command line of Berth, a container runtime daemon",
		Version: version.Version,
		Description: "ctr manages images, containers and tasks through the containerd API.\n\n" +
			"Examples:\n" +
			"  ctr images pull docker.io/library/alpine:latest\n" +
			"  ctr run --rm -t docker.io/library/alpine:latest shell sh\n" +
			"  ctr run -d docker.io/library/alpine:latest web httpd -f\n" +
			"  ctr tasks ls\n" +
			"  ctr tasks exec --exec-id e1 -t web sh\n" +
			"  ctr containers ls --format json",
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "Enable debug output in logs"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "Address for containerd's GRPC server", Value: defaultAddress, Sources: cli.EnvVars("CONTAINERD_ADDRESS")},
			&cli.DurationFlag{Name: "timeout", Usage: "Total timeout for ctr commands"},
			&cli.DurationFlag{Name: "connect-timeout", Usage: "Timeout for connecting to containerd"},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "Namespace to use with commands", Value: "default", Sources: cli.EnvVars("CONTAINERD_NAMESPACE")},
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // main does that
		Commands: []*cli.Command{
			pluginsCommand(),
			versionCommand(),
			containersCommand(),
			contentCommand(),
			eventsCommand(),
			imagesCommand(),
			leasesCommand(),
			namespacesCommand(),
			pprofCommand(),
			runCommand(),
			snapshotsCommand(),
			tasksCommand(),
			installCommand(),
			ociCommand(),
			sandboxesCommand(),
			infoCommand(),
			deprecationsCommand(),
			shimCommand(),
			topCommand(),
			dfCommand(),
			doctorCommand(),
			fsckCommand(),
			logsCommand(),
			completionCommand(),
			completeCommand(),
		},
	}
	prepare(root)
	return root
}

// prepare gives every command below c what all have in common.
func prepare(c *cli.Command) {
	c.DisableSliceFlagSeparator = true
	c.OnUsageError = usageError
	c.CommandNotFound = nil
	if len(c.Commands) > 0 && c.Action == nil {
		c.Action = groupAction
	}
	for _, sub := range c.Commands {
		prepare(sub)
	}
}

// groupAction runs when the word after a group is none of its commands.
func groupAction(ctx context.Context, cmd *cli.Command) error {
	if !cmd.Args().Present() {
		if cmd.Root() == cmd {
			return cli.ShowRootCommandHelp(cmd)
		}
		return cli.ShowSubcommandHelp(cmd)
	}
	word := cmd.Args().First()
	var names []string
	for _, sub := range cmd.Commands {
		if !sub.Hidden {
			names = append(names, sub.Names()...)
		}
	}
	// Compat: status 3.
	return withStatus{fmt.Errorf("%q is not a command of %s%s; see '%s --help'", word, cmd.FullName(), didYouMean(word, names), cmd.FullName()), 3}
}

func usageError(_ context.Context, cmd *cli.Command, err error, _ bool) error {
	msg := err.Error()
	if name, ok := strings.CutPrefix(msg, "flag provided but not defined: "); ok {
		word := strings.TrimLeft(name, "-")
		var names []string
		for c := cmd; c != nil; c = parentOf(c) {
			for _, f := range c.Flags {
				names = append(names, f.Names()...)
			}
		}
		msg = fmt.Sprintf("unknown flag %s%s", name, didYouMean(word, names))
	}
	return fmt.Errorf("%s; see '%s --help'", msg, cmd.FullName())
}

func parentOf(cmd *cli.Command) *cli.Command {
	line := cmd.Lineage()
	if len(line) < 2 {
		return nil
	}
	return line[1]
}
