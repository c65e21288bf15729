package main

import (
	"strings"
	"testing"
)

func TestDaemonFlags(t *testing.T) {
	for line, want := range map[string]daemonFlags{
		"":                               {},
		"-c /a.toml":                     {config: "/a.toml"},
		"--config=a.toml --root /r":      {config: "/dir/a.toml", root: "/r"},
		"-l debug --state s -root=/r":    {root: "/r", state: "/dir/s"},
		"--address /c.sock -c":           {},
		"config dump --config /x -state": {config: "/x"},
	} {
		if got := parseDaemonFlags(strings.Fields(line), "/dir"); got != want {
			t.Errorf("%q: %+v, want %+v", line, got, want)
		}
	}
}
