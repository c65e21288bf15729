package main

import (
	"time"

	"github.com/urfave/cli/v3"
)

// The commands here are listed, so that help and scripts find them, and say that
// they come later.

func installCommand() *cli.Command {
	return &cli.Command{
		Name: "install", Usage: "Install a new package", ArgsUsage: "<ref>", Description: "install a new package",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "libs", Aliases: []string{"l"}, Usage: "Install libs from the image"},
			&cli.BoolFlag{Name: "replace", Aliases: []string{"r"}, Usage: "Replace any binaries or libs in the opt directory"},
			&cli.StringFlag{Name: "path", Usage: "Set an optional install path other than the managed opt directory"},
		},
		Action: notYetAction("installing packages"),
	}
}

func sandboxesCommand() *cli.Command {
	later := notYetAction("managing sandboxes")
	return &cli.Command{
		Name: "sandboxes", Aliases: []string{"sandbox", "sb", "s"}, Usage: "Manage sandboxes",
		Commands: []*cli.Command{
			{
				Name: "run", Aliases: []string{"create", "c", "r"}, Usage: "Run a new sandbox", ArgsUsage: "[flags] <pod-config.json> <sandbox-id>",
				Flags: []cli.Flag{&cli.StringFlag{Name: "runtime", Usage: "Runtime name", Value: defaultRuntime}}, Action: later,
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List sandboxes",
				Flags: []cli.Flag{&cli.StringSliceFlag{Name: "filters", Usage: "The list of filters to apply when querying sandboxes from the store"}}, Action: later,
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "Remove sandboxes", ArgsUsage: "<id> [<id>, ...]",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "Ignore shutdown errors when removing sandbox"}}, Action: later,
			},
			{Name: "info", Aliases: []string{"i"}, Usage: "Get info about a sandbox", ArgsUsage: "<sandbox id>", Action: later},
		},
	}
}

func shimCommand() *cli.Command {
	later := notYetAction("talking to a shim directly")
	api := func() cli.Flag {
		return &cli.IntFlag{Name: "api-version", Usage: "shim API version {2,3}", Value: 3}
	}
	var profiles []*cli.Command
	for _, p := range []struct {
		name, usage string
		timed       bool
	}{
		{"block", "Goroutine blocking profile", false}, {"goroutines", "Print goroutine stack dump", false},
		{"heap", "Dump heap profile", false}, {"profile", "CPU profile", true},
		{"threadcreate", "Goroutine thread creating profile", false}, {"trace", "Collect execution trace", true},
	} {
		flags := []cli.Flag{&cli.UintFlag{Name: "debug", Usage: "Debug pprof args"}}
		if p.timed {
			flags = append(flags, &cli.DurationFlag{Name: "seconds", Aliases: []string{"s"}, Usage: "Duration for collection (seconds)", Value: 30 * time.Second})
		}
		profiles = append(profiles, &cli.Command{Name: p.name, Usage: p.usage, Flags: flags, Action: later})
	}
	return &cli.Command{
		Name: "shim", Usage: "Interact with a shim directly",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "id", Usage: "shim ID"},
			&cli.StringFlag{Name: "shim-address", Usage: "shim address (default: computed from shim ID)"},
		},
		Commands: []*cli.Command{
			{Name: "delete", Usage: "Delete a container with a task", Action: later},
			{
				Name: "exec", Usage: "Exec a new process in the task's container",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "stdin", Usage: "Specify the path to the stdin fifo"},
					&cli.StringFlag{Name: "stdout", Usage: "Specify the path to the stdout fifo"},
					&cli.StringFlag{Name: "stderr", Usage: "Specify the path to the stderr fifo"},
					&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "Enable tty support"},
					&cli.BoolFlag{Name: "attach", Aliases: []string{"a"}, Usage: "Stay attached to the container and open the fifos"},
					&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "Add environment vars"},
					&cli.StringFlag{Name: "cwd", Usage: "Current working directory"},
					&cli.StringFlag{Name: "spec", Usage: "Runtime spec"},
				},
				Action: later,
			},
			{Name: "start", Usage: "Start a container with a task", Action: later},
			{
				Name: "state", Usage: "Get the state of all main process of the task",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "task-id", Aliases: []string{"t"}, Usage: "task ID"}, api()},
				Action: later,
			},
			{Name: "shutdown", Usage: "Shutdown shim if there is no active container", Flags: []cli.Flag{api()}, Action: later},
			{Name: "pprof", Usage: "Provide golang pprof outputs for containerd-shim", Commands: profiles},
		},
	}
}
