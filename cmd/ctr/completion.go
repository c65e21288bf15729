package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"berth/internal/spec"

	"github.com/urfave/cli/v3"
)

// completeCommand prints what the last of the words may be, a line each, with a
// tab and a description where there is one.
func completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, SkipFlagParsing: true, Usage: "Print what the last word may be",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			words := cmd.Args().Slice()
			if len(words) > 0 && words[0] == "--" {
				words = words[1:]
			}
			out := bufio.NewWriter(os.Stdout)
			defer out.Flush()
			for _, c := range complete(ctx, cmd.Root(), words) {
				fmt.Fprintln(out, c)
			}
			return nil
		},
	}
}

// operands are what the arguments of a command name: one source for each, the
// last for all that follow when each is set. A nil source is left to the shell: files.
type operands struct {
	sources []nameSource
	each    bool
}

// operandsOf is the table of what commands take, by their path.
func operandsOf() map[string]operands {
	one := func(sources ...nameSource) operands { return operands{sources: sources} }
	many := func(sources ...nameSource) operands { return operands{sources, true} }
	return map[string]operands{
		"run": one(imageNames), "install": one(imageNames), "logs": one(taskIDs), "top": many(taskIDs),

		"containers create": one(imageNames), "containers delete": many(containerIDs), "containers info": one(containerIDs),
		"containers label": one(containerIDs), "containers checkpoint": one(containerIDs), "containers restore": one(nil, imageNames),

		"content get": one(blobDigests), "content edit": one(blobDigests), "content delete": many(blobDigests),
		"content label": one(blobDigests), "content push-object": one(nil, blobDigests),

		"images check": many(imageNames), "images convert": one(imageNames), "images delete": many(imageNames), "images export": many(nil, imageNames),
		"images inspect": one(imageNames), "images label": one(imageNames), "images mount": one(imageNames), "images push": one(imageNames, imageNames),
		"images tag": one(imageNames), "images usage": one(imageNames),
		"images pull": one(imageNames), "images referrers": one(imageNames), "content fetch": one(imageNames), "content fetch-object": one(imageNames),

		"leases delete":     many(leaseIDs),
		"namespaces remove": many(namespaceNames), "namespaces label": one(namespaceNames),
		"sandboxes info": one(sandboxIDs), "sandboxes remove": many(sandboxIDs),

		"snapshots commit": one(nil, snapshotKeys), "snapshots delete": many(snapshotKeys), "snapshots diff": one(snapshotKeys, snapshotKeys),
		"snapshots info": one(snapshotKeys), "snapshots label": one(snapshotKeys), "snapshots mounts": one(nil, snapshotKeys),
		"snapshots prepare": one(nil, snapshotKeys), "snapshots view": one(nil, snapshotKeys), "snapshots usage": many(snapshotKeys),
		"snapshots unpack": one(blobDigests),

		"tasks attach": one(taskIDs), "tasks checkpoint": one(taskIDs), "tasks delete": many(taskIDs), "tasks exec": one(taskIDs),
		"tasks kill": one(taskIDs), "tasks metrics": one(taskIDs), "tasks pause": one(taskIDs), "tasks ps": one(taskIDs),
		"tasks resume": one(taskIDs), "tasks start": one(containerIDs),
	}
}

// flagValuesOf is the table of what flags take, by their name.
func flagValuesOf() map[string]nameSource {
	return map[string]nameSource{
		"namespace": namespaceNames, "snapshotter": snapshotterNames, "sandbox": sandboxIDs, "id": containerIDs, "task-id": taskIDs,
	}
}

// flagWordsOf is the table of flags that take the same words on every host.
func flagWordsOf() map[string][]string {
	return map[string][]string{
		"format":   {"table", "json", "{{"},
		"signal":   {"SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT"},
		"platform": {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/ppc64le", "linux/riscv64", "linux/s390x"},
		"cap-add":  spec.AllCapabilities(), "cap-drop": spec.AllCapabilities(),
		"log-uri": {"file:///", "binary:///"},
		"with-ns": {"network:", "pid:", "ipc:", "uts:", "mount:", "user:", "cgroup:"},
		"mount":   {"type=bind,src="},
	}
}

// position is where on the command line the cursor is.
type position struct {
	line  []*cli.Command // from the root down to the command
	args  int            // its arguments before the cursor
	flag  string         // the flag whose value the cursor is at, or empty
	plain bool           // no flag comes any more
	flags map[string]string
}

func (p position) cmd() *cli.Command { return p.line[len(p.line)-1] }

// path is that of the tables above.
func (p position) path() string {
	var names []string
	for _, c := range p.line[1:] {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

// locate walks the words before the last one.
func locate(root *cli.Command, words []string) position {
	p := position{line: []*cli.Command{root}, flags: map[string]string{}}
	for i := 0; i < len(words)-1; i++ {
		word := words[i]
		switch {
		case !p.plain && word == "--":
			p.plain = true
		case !p.plain && len(word) > 1 && word[0] == '-':
			name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
			f := findFlag(p.line, name)
			if f == nil || isBool(f) {
				continue
			}
			if !hasValue {
				if i++; i == len(words)-1 {
					p.flag = f.Names()[0]
					return p
				}
				value = words[i]
			}
			p.flags[f.Names()[0]] = value
		default:
			if sub := p.cmd().Command(word); p.args == 0 && !p.plain && sub != nil {
				p.line = append(p.line, sub)
				continue
			}
			p.args++
			if stop := p.cmd().StopOnNthArg; stop != nil && p.args >= *stop {
				p.plain = true
			}
		}
	}
	return p
}

// isGroup tells whether cmd has commands of its own, help aside.
func isGroup(cmd *cli.Command) bool {
	return slices.ContainsFunc(cmd.Commands, func(c *cli.Command) bool { return c.Name != "help" })
}

func findFlag(line []*cli.Command, name string) cli.Flag {
	for _, c := range slices.Backward(line) {
		for _, f := range c.Flags {
			if slices.Contains(f.Names(), name) {
				return f
			}
		}
	}
	return nil
}

func isBool(f cli.Flag) bool {
	_, ok := f.(*cli.BoolFlag)
	return ok
}

// complete lists what the last of the words may become.
func complete(ctx context.Context, root *cli.Command, words []string) (out []string) {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	p := locate(root, words)
	add := func(word, about string) {
		if !strings.HasPrefix(word, last) {
			return
		}
		if about, _, _ = strings.Cut(about, "\n"); about != "" {
			word += "\t" + about
		}
		out = append(out, word)
	}
	flag, _, assigned := strings.Cut(last, "=")
	switch {
	case p.flag != "":
		for _, v := range p.flagValues(ctx, root, p.flag) {
			add(v, "")
		}
	case !p.plain && strings.HasPrefix(last, "--") && assigned:
		if f := findFlag(p.line, strings.TrimLeft(flag, "-")); f != nil {
			for _, v := range p.flagValues(ctx, root, f.Names()[0]) {
				add(flag+"="+v, "")
			}
		}
	case !p.plain && strings.HasPrefix(last, "-"):
		for _, f := range p.cmd().Flags {
			usage := ""
			if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
				continue
			}
			if d, ok := f.(cli.DocGenerationFlag); ok {
				usage = strings.ReplaceAll(d.GetUsage(), "`", "")
			}
			add("--"+f.Names()[0], usage)
		}
	case p.args == 0 && isGroup(p.cmd()):
		for _, c := range p.cmd().Commands {
			if !c.Hidden && c.Name != "help" {
				add(c.Name, c.Usage)
			}
		}
	default:
		o := operandsOf()[p.path()]
		at := p.args
		if o.each {
			at = min(at, len(o.sources)-1)
		}
		if at < len(o.sources) {
			for _, v := range p.ask(ctx, root, o.sources[at]) {
				add(v, "")
			}
		}
	}
	return out
}

func (p position) flagValues(ctx context.Context, root *cli.Command, flag string) []string {
	if words, ok := flagWordsOf()[flag]; ok {
		return words
	}
	return p.ask(ctx, root, flagValuesOf()[flag])
}

// completionTime bounds what the shell waits for the daemon.
const completionTime = 2 * time.Second

// ask asks the daemon that the flags of the line name. When it is not there,
// nothing is completed.
func (p position) ask(ctx context.Context, root *cli.Command, source nameSource) []string {
	if source == nil {
		return nil
	}
	value := func(name string) string {
		if v := p.flags[name]; v != "" {
			return v
		}
		return root.String(name) // with its default and environment
	}
	conn, hangUp, err := dial(value("address"), completionTime, false)
	if err != nil {
		return nil
	}
	s := &session{ClientConn: conn, namespace: value("namespace")}
	defer hangUp()
	ctx, cancel := context.WithTimeout(withNamespace(ctx, s.namespace), completionTime)
	defer cancel()
	return source(ctx, s)
}
