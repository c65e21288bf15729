package compat

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
)

// help is what the help text of one command of a ctr says.
type help struct {
	commands map[string][]string // name → aliases
	flags    map[string]string   // spelling with its dashes → what follows it
}

var helpLine = regexp.MustCompile(`^   (\S.*?)(  .*)?$`)

// ask reads the help of a command line. A program that does not know the command
// shows another one's, so that the name is checked.
func ask(t *testing.T, program string, words []string) (help, error) {
	t.Helper()
	out, err := exec.Command(program, append(slices.Clone(words), "--help")...).CombinedOutput()
	if err != nil {
		return help{}, fmt.Errorf("%w: %s", err, out)
	}
	h := help{commands: map[string][]string{}, flags: map[string]string{}}
	section, named := "", false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if line != "" && line[0] != ' ' && strings.HasSuffix(line, ":") {
			section = line
			continue
		}
		m := helpLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		switch section {
		case "NAME:":
			name, _, _ := strings.Cut(m[1], " - ")
			named = named || strings.TrimSpace(name) == strings.Join(append([]string{"ctr"}, words...), " ")
		case "COMMANDS:":
			names := strings.Split(m[1], ", ")
			h.commands[names[0]] = names[1:]
		case "OPTIONS:", "GLOBAL OPTIONS:":
			if section == "GLOBAL OPTIONS:" && len(words) > 0 {
				continue // those of ctr itself
			}
			for _, part := range strings.Split(m[1], ", ") {
				if strings.HasPrefix(part, "-") {
					spelling, value, _ := strings.Cut(part, " ")
					h.flags[spelling] = value
				}
			}
		}
	}
	if !named {
		return h, fmt.Errorf("the help is another command's:\n%s", out)
	}
	return h, nil
}

// Every command of containerd's ctr, hidden ones too, with its aliases and flags
// is a command of ours: first as its source has them, then as its help shows them.
func TestCtrCommandsAndFlags(t *testing.T) {
	ours, theirs := filepath.Join(oursBin, "ctr"), filepath.Join(peerBin, "ctr")
	commands, flags := 0, 0
	var walk func(cmd *cli.Command, words []string)
	walk = func(cmd *cli.Command, words []string) {
		commands++
		line := "ctr " + strings.Join(words, " ")
		have, err := ask(t, ours, words)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			return
		}
		for _, f := range cmd.Flags {
			for _, name := range f.Names() {
				flags++
				spelling := "--" + name
				if len(name) == 1 {
					spelling = "-" + name
				}
				value, ok := have.flags[spelling]
				_, isBool := f.(*cli.BoolFlag)
				if v, is := f.(cli.VisibleFlag); is && !v.IsVisible() && isBool {
					// A hidden switch is known if the command line is not refused.
					if out, err := exec.Command(ours, append(slices.Clone(words), spelling, "--help")...).CombinedOutput(); err != nil {
						t.Errorf("%s %s: %v: %s", line, spelling, err, out)
					}
				} else if !ok {
					t.Errorf("%s %s is missing", line, spelling)
				} else if len(name) > 1 && isBool != (value == "") {
					t.Errorf("%s %s: ours takes %q, theirs is a switch: %v", line, spelling, value, isBool)
				}
			}
		}
		if shown, err := ask(t, theirs, words); err == nil {
			for spelling := range shown.flags {
				if _, ok := have.flags[spelling]; !ok {
					t.Errorf("%s %s is in their help and not in ours", line, spelling)
				}
			}
			for name, aliases := range shown.commands {
				if missing := slices.DeleteFunc(slices.Clone(aliases), func(a string) bool { return slices.Contains(have.commands[name], a) }); len(missing) > 0 {
					t.Errorf("%s %s lacks the aliases %q", line, name, missing)
				}
			}
		} else if !cmd.Hidden {
			t.Errorf("their help of %s: %v", line, err)
		}
		for _, sub := range cmd.Commands {
			if sub.Name == "help" {
				continue
			}
			if _, ok := have.commands[sub.Name]; !ok && !sub.Hidden {
				t.Errorf("%s has no command %s", line, sub.Name)
				continue
			}
			walk(sub, append(slices.Clone(words), sub.Name))
		}
	}
	walk(app.New(), nil)
	if commands < 100 || flags < 400 {
		t.Errorf("only %d commands and %d flags were found", commands, flags)
	}
	t.Logf("%d commands, %d flags", commands, flags)
}
