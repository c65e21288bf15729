package main

import (
	"fmt"
	"io"
	"strings"

	"berth/internal/config"
)

// configCommand writes a configuration to stdout.
func configCommand(f flags, args []string, stdout, stderr io.Writer) error {
	var cfg *config.Config
	switch command := strings.Join(args, " "); command {
	case "default":
		cfg = config.Default()
	case "dump":
		loaded, warnings, err := loadConfig(f)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(stderr, "containerd: warning:", w)
		}
		cfg = loaded
	case "migrate":
		migrated, warnings, err := config.Migrate(f.config)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(stderr, "containerd: warning:", w)
		}
		cfg = migrated
	default:
		return fmt.Errorf("no command %q of config: there are default (without any file), dump (file, imports and flags), migrate (the file alone, in the newest version)", command)
	}
	data, err := cfg.TOML()
	if err != nil {
		return err
	}
	_, err = stdout.Write(data)
	return err
}
