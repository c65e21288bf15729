// Command containerd is the daemon. Its flags and subcommands are those of
// containerd 2.4.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"berth/internal/config"
	"berth/internal/version"
)

const usage = `containerd - the Berth container daemon

USAGE:
   containerd [flags]                 run the daemon in the foreground
   containerd [flags] config COMMAND  show configurations: default, dump, migrate, check
   containerd [flags] publish         publish an event, which is read from stdin
   containerd oci-hook COMMAND...     run a command as an OCI hook, its arguments filled in

FLAGS:
   -c, --config FILE       configuration (default ` + config.DefaultPath + `)
   -l, --log-level LEVEL   trace, debug, info, warn, error, fatal or panic
   -a, --address SOCKET    socket of the gRPC API
       --root DIR          directory of what lasts
       --state DIR         directory of what a reboot clears away
   -h, --help              show this help
   -v, --version           print the version

EXAMPLES:
   containerd --root /tmp/root --state /tmp/state --address /tmp/c.sock
   containerd config default > /etc/containerd/config.toml
`

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if status, ok := errors.AsType[exitStatus](err); ok {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
	}
	if _, ok := errors.AsType[noCommandError](err); ok {
		os.Exit(3) // as containerd does
	}
	if err != nil {
		os.Exit(1)
	}
}

// noCommandError says that there is no such command.
type noCommandError string

func (e noCommandError) Error() string { return string(e) }

// exitStatus ends the program after it has said all there is to say.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// flags of the command line; an empty one was not given.
type flags struct {
	config, logLevel, address, root, state string
	configGiven                            bool
}

// newFlagSet has the flags of the program, which may also follow a command.
func newFlagSet(f *flags) *flag.FlagSet {
	set := flag.NewFlagSet("containerd", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, s := range []struct {
		p     *string
		names string
		def   string
	}{
		{&f.config, "config c", cmp.Or(f.config, config.DefaultPath)},
		{&f.logLevel, "log-level l", f.logLevel},
		{&f.address, "address a", f.address},
		{&f.root, "root", f.root},
		{&f.state, "state", f.state},
	} {
		for _, name := range strings.Fields(s.names) {
			set.StringVar(s.p, name, s.def, "")
		}
	}
	return set
}

// parse reads flags, in any place among the arguments that are left.
func (f *flags) parse(set *flag.FlagSet, args []string) (rest []string, err error) {
	for len(args) > 0 {
		if err := set.Parse(args); err != nil {
			return nil, err
		}
		if args = set.Args(); len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	set.Visit(func(fl *flag.Flag) { f.configGiven = f.configGiven || fl.Name == "config" || fl.Name == "c" })
	return rest, nil
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var f flags
	var help, showVersion bool
	set := newFlagSet(&f)
	for p, names := range map[*bool][]string{&help: {"help", "h"}, &showVersion: {"version", "v"}} {
		for _, name := range names {
			set.BoolVar(p, name, false, "")
		}
	}
	if err := set.Parse(args); err != nil {
		return fmt.Errorf("%w; see containerd --help", err)
	}
	set.Visit(func(fl *flag.Flag) { f.configGiven = f.configGiven || fl.Name == "config" || fl.Name == "c" })
	switch {
	case help:
		_, err := io.WriteString(stdout, usage)
		return err
	case showVersion:
		_, err := fmt.Fprintln(stdout, strings.TrimRight(strings.Join([]string{"containerd", version.Name, version.Version, version.Revision()}, " "), " "))
		return err
	}
	command, rest := set.Arg(0), set.Args()
	switch command {
	case "":
		return serve(ctx, f, stderr)
	case "config":
		return configCommand(f, rest[1:], stdout, stderr)
	case "publish":
		if wantsHelp(rest[1:]) {
			_, err := io.WriteString(stdout, publishUsage)
			return err
		}
		return publish(ctx, f, rest[1:], stdin)
	case "oci-hook":
		if wantsHelp(rest[1:]) {
			_, err := io.WriteString(stdout, hookUsage)
			return err
		}
		return ociHook(rest[1:], stdin)
	case "help", "h":
		_, err := io.WriteString(stdout, usage)
		return err
	}
	return noCommandError(fmt.Sprintf("no command %q; see containerd --help", command))
}

func wantsHelp(args []string) bool { return len(args) > 0 && (isHelp(args[0]) || args[0] == "help") }

// loadConfig reads the file, which may be missing unless it was asked for, and
// lays the flags over it.
func loadConfig(f flags) (*config.Config, []config.Warning, error) {
	cfg, warnings, err := config.Load(f.config)
	if errors.Is(err, os.ErrNotExist) && !f.configGiven {
		cfg, err = config.Default(), nil
	}
	if err != nil {
		return nil, nil, err
	}
	if f.address != "" {
		cfg.SetAddress(f.address)
	}
	for to, flag := range map[*string]string{&cfg.Root: f.root, &cfg.State: f.state, &cfg.Debug.Level: f.logLevel} {
		if flag != "" {
			*to = flag
		}
	}
	return cfg, warnings, cfg.Check()
}
