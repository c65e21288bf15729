package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"

	"berth/internal/config"
)

const configUsage = `containerd config - show, bring up to date and check configurations

USAGE:
   containerd [--config FILE] config COMMAND

COMMANDS:
   default  print every key with its default and what it does
   dump     print what the daemon would run with: the file, what it imports, and flags, over the defaults
   migrate  print the file in the newest version (what it imports is left alone)
   check    say what is wrong with the file and what it imports: 0 nothing, 1 warnings only, 2 the daemon would refuse it

EXAMPLES:
   containerd config default > /etc/containerd/config.toml
   containerd -c new.toml config check && mv new.toml /etc/containerd/config.toml
`

// errWarned and errRefused are the exit statuses of config check; what is wrong
// has been printed.
var (
	errWarned  = exitStatus(1)
	errRefused = exitStatus(2)
)

// configCommand writes a configuration to stdout, or what is wrong with it.
func configCommand(f flags, args []string, stdout, stderr io.Writer) error {
	args, err := f.parse(newFlagSet(&f), args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return fmt.Errorf("config: %w; see containerd config --help", err)
	}
	if len(args) == 0 || args[0] == "help" || err != nil {
		_, err := io.WriteString(stdout, configUsage)
		return err
	}
	command := args[0]
	if len(args) > 1 {
		return fmt.Errorf("config %s takes no argument, not %q; a file is given with --config", command, args[1])
	}
	switch command {
	case "default":
		data, err := config.Default().Commented()
		if err != nil {
			return err
		}
		_, err = stdout.Write(data)
		return err
	case "dump":
		cfg, warnings, err := loadConfig(f)
		return printConfig(cfg, warnings, err, stdout, stderr)
	case "migrate":
		cfg, warnings, err := config.Migrate(f.config)
		if errors.Is(err, fs.ErrNotExist) && !f.configGiven {
			cfg, err = config.Default(), nil
		}
		return printConfig(cfg, warnings, err, stdout, stderr)
	case "check":
		return checkConfig(f, stdout)
	}
	return noCommandError(fmt.Sprintf("no command %q of config: there are default, dump, migrate and check; see containerd config --help", command))
}

func isHelp(arg string) bool { return arg == "--help" || arg == "-h" }

func printConfig(cfg *config.Config, warnings []config.Warning, err error, stdout, stderr io.Writer) error {
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(stderr, "containerd: warning:", w)
	}
	data, err := cfg.TOML()
	if err != nil {
		return err
	}
	_, err = stdout.Write(data)
	return err
}

// checkConfig reports all that is wrong, a line for each.
func checkConfig(f flags, stdout io.Writer) error {
	_, warnings, err := loadConfig(f)
	for _, w := range warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	for _, e := range flatten(err) {
		fmt.Fprintln(stdout, "error:", e)
	}
	switch {
	case err != nil:
		return errRefused
	case len(warnings) > 0:
		return errWarned
	}
	_, err = fmt.Fprintln(stdout, f.config+": nothing is wrong")
	return err
}

// flatten returns the errors that have been joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}
