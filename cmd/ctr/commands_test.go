package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

// surface lists what a command line can say, in the form of testdata/commands.txt.
func surface(cmd *cli.Command, path []string, out map[string]bool) {
	at := strings.Join(path, " ")
	for _, f := range cmd.Flags {
		var names []string
		for _, n := range f.Names() {
			if len(n) == 1 {
				names = append(names, "-"+n)
			} else {
				names = append(names, "--"+n)
			}
		}
		slices.Sort(names)
		out[fmt.Sprintf("flag %s: %s %s", at, strings.Join(names, " "), valueType(f))] = true
	}
	for _, sub := range cmd.Commands {
		names := append([]string{sub.Name}, sub.Aliases...)
		names[0] = strings.Join(append(slices.Clone(path), names[0]), " ")
		out["command "+strings.Join(names, ", ")] = true
		surface(sub, append(slices.Clone(path), sub.Name), out)
	}
}

func valueType(f cli.Flag) string {
	switch f.(type) {
	case *cli.BoolFlag:
		return "bool"
	case *cli.StringFlag, *cli.StringSliceFlag:
		return "string"
	case *cli.IntFlag, *cli.Int64Flag, *cli.IntSliceFlag:
		return "int"
	case *cli.UintFlag, *cli.Uint64Flag:
		return "uint"
	case *cli.Float64Flag:
		return "float"
	case *cli.DurationFlag:
		return "duration"
	}
	return fmt.Sprintf("%T", f)
}

// parseHelpFlag turns "--quiet, -q" and "--env string [ --env string ]" into the
// form of surface.
func parseHelpFlag(line string) string {
	at, flag, _ := strings.Cut(line, ": ")
	flag, _, _ = strings.Cut(flag, " [")
	value := "bool"
	var names []string
	for _, part := range strings.Split(flag, ", ") {
		name, v, ok := strings.Cut(part, " ")
		names = append(names, name)
		if ok {
			value = v
		}
	}
	if strings.Contains(value, ":") { // container-uid:host-uid:length
		value = "string"
	}
	slices.Sort(names)
	return fmt.Sprintf("%s: %s %s", at, strings.Join(names, " "), value)
}

// Scripts that were written for containerd's ctr find all that they use.
func TestEveryCommandAndFlagOfContainerds(t *testing.T) {
	have := map[string]bool{}
	surface(rootCommand(), nil, have)
	f, err := os.Open("testdata/commands.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		want := lines.Text()
		if strings.HasPrefix(want, "flag ") {
			want = parseHelpFlag(want)
		}
		if !have[want] {
			t.Errorf("missing: %s (%s)", want, lines.Text())
		}
	}
	if n < 400 {
		t.Errorf("the list has %d lines only", n)
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"images", "image", "i", "containers", "tasks", "run", "snapshots", "namespaces"}
	for _, tc := range []struct{ word, want string }{
		{"imgaes", "images"}, {"contianers", "containers"}, {"snap", "snapshots"}, {"rnu", "run"}, {"task", "tasks"},
		{"imagse", "images"}, {"xyzzy", ""}, {"z", ""}, {"deployments", ""},
	} {
		got := didYouMean(tc.word, names)
		if want := ""; tc.want != "" {
			want = fmt.Sprintf(", did you mean %q?", tc.want)
			if got != want {
				t.Errorf("%s: %q, want %q", tc.word, got, want)
			}
		} else if got != "" {
			t.Errorf("%s: %q, want nothing", tc.word, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "RTMIN+3": 37, "RTMAX-1": 63, "KILL": 9} {
		if sig, err := parseSignal(name); err != nil || int(sig) != want {
			t.Errorf("%s: %d, %v, want %d", name, sig, err, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "SIGFOO", "RTMIN+40", "RTMAX+1", "RTMIN+x"} {
		if sig, err := parseSignal(name); err == nil {
			t.Errorf("%q: %d, want an error", name, sig)
		}
	}
}

// Every command says what it does and shows a line to type, which is a line that
// its parser takes.
func TestHelpHasExamples(t *testing.T) {
	root, lines := rootCommand(), 0
	paths := map[string]bool{"": true}
	var walk func(cmd *cli.Command, path string)
	walk = func(cmd *cli.Command, path string) {
		if cmd.Hidden || cmd.Name == "help" {
			return
		}
		paths[path] = true
		if cmd.Usage == "" {
			t.Errorf("ctr %s does not say what it does", path)
		}
		if len(cmd.Commands) == 0 && !strings.Contains(cmd.Description, "Example") {
			t.Errorf("ctr %s has no example", path)
		}
		for line := range strings.Lines(cmd.Description) {
			if example, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "  ctr "); ok {
				lines++
				checkExample(t, root, example)
			} else if len(line) > textWidth+1 {
				t.Errorf("ctr %s: a line of its description is too long: %s", path, line)
			}
		}
		for _, sub := range cmd.Commands {
			walk(sub, strings.TrimSpace(path+" "+sub.Name))
		}
	}
	walk(root, "")
	for path := range examplesOf() {
		if !paths[path] {
			t.Errorf("examples for %q, which is no command", path)
		}
	}
	if lines < 100 {
		t.Errorf("only %d examples were found", lines)
	}
}

func checkExample(t *testing.T, root *cli.Command, example string) {
	t.Helper()
	words := strings.Fields(strings.NewReplacer("$(", " ", ")", " ").Replace(example))
	for i := range words {
		if words[i] == "|" || words[i] == "&&" || strings.HasPrefix(words[i], ">") {
			words = words[:i]
			break
		}
	}
	p := locate(root, append(words, ""))
	if isGroup(p.cmd()) && p.cmd() != root || p.cmd() == root {
		t.Errorf("ctr %s: there is no such command", example)
	}
	for i, word := range words {
		if strings.HasPrefix(word, "-") && len(word) > 1 && !locate(root, words[:i+1]).plain {
			name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
			if findFlag(p.line, name) == nil {
				t.Errorf("ctr %s: there is no flag %s", example, word)
			}
		}
	}
}
