package main

import (
	"context"
	"fmt"
	"strings"

	"berth/cmd/ctr/output"
	"berth/internal/version"

	"github.com/urfave/cli/v3"
)

// rootCommand is ctr, with the one list of commands.
func rootCommand() *cli.Command {
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "Show help", HideDefault: true, Local: true}
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "Print the version", HideDefault: true, Local: true}
	cli.VersionPrinter = func(cmd *cli.Command) { fmt.Fprintln(cmd.Root().Writer, "ctr", version.Name, cmd.Version) }
	root := &cli.Command{
		Name:                      "ctr",
		Usage:                     "the command line of Berth, a container runtime daemon",
		Version:                   version.Version,
		Description:               "ctr manages images, containers and tasks through the containerd API.",
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "Enable debug output in logs"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "Address for containerd's GRPC server", Value: defaultAddress, Sources: cli.EnvVars("CONTAINERD_ADDRESS")},
			&cli.DurationFlag{Name: "timeout", Usage: "Total timeout for ctr commands"},
			&cli.DurationFlag{Name: "connect-timeout", Usage: "Timeout for connecting to containerd"},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: "Namespace to use with commands", Value: "default", Sources: cli.EnvVars("CONTAINERD_NAMESPACE")},
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // main does that
		// What is used every day first, then what is used when something is wrong, then
		// what few need.
		Commands: []*cli.Command{
			runCommand(),
			imagesCommand(),
			containersCommand(),
			tasksCommand(),
			logsCommand(),
			topCommand(),
			dfCommand(),
			eventsCommand(),

			doctorCommand(),
			fsckCommand(),
			infoCommand(),
			versionCommand(),
			pluginsCommand(),
			deprecationsCommand(),

			snapshotsCommand(),
			contentCommand(),
			leasesCommand(),
			namespacesCommand(),
			sandboxesCommand(),
			shimCommand(),
			ociCommand(),
			installCommand(),
			pprofCommand(),
			completionCommand(),
			completeCommand(),
		},
	}
	prepare(root, "", examplesOf())
	return root
}

// prepare gives c, whose path that is, and every command below it what all have in
// common.
func prepare(c *cli.Command, path string, examples map[string][]string) {
	describe(c, examples[path])
	// The library writes [options] itself.
	c.ArgsUsage = strings.TrimSpace(strings.TrimPrefix(c.ArgsUsage, "[flags]"))
	c.DisableSliceFlagSeparator = true
	c.OnUsageError = usageError
	c.CommandNotFound = nil
	if len(c.Commands) > 0 && c.Action == nil {
		c.Action = groupAction
	}
	if c.Action != nil && findFlag([]*cli.Command{c}, "format") != nil {
		c.Action = checkFormat(c.Action)
	}
	for _, sub := range c.Commands {
		prepare(sub, strings.TrimSpace(path+" "+sub.Name), examples)
	}
}

// checkFormat refuses a bad --format before anything is done or waited for.
func checkFormat(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if err := output.Check(cmd.String("format")); err != nil {
			return err
		}
		return action(ctx, cmd)
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
		if len(word) > 1 {
			name = "--" + word // the library drops a dash
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
