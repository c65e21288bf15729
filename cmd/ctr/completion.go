package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/urfave/cli/v3"
)

// completionCommand prints scripts for shells. They ask the hidden command
// below, with the words of the line so far.
func completionCommand() *cli.Command {
	script := func(shell, text string) *cli.Command {
		return &cli.Command{Name: shell, Usage: "Print the completion script for " + shell, Action: func(context.Context, *cli.Command) error {
			fmt.Print(text)
			return nil
		}}
	}
	return &cli.Command{
		Name:  "completion",
		Usage: "Print a shell completion script",
		Description: "Examples:\n  source <(ctr completion bash)\n  source <(ctr completion zsh)\n" +
			"  ctr completion fish > ~/.config/fish/completions/ctr.fish",
		Commands: []*cli.Command{script("bash", bashScript), script("zsh", zshScript), script("fish", fishScript)},
	}
}

const bashScript = `# bash completion for ctr
_ctr() {
	local IFS=$'\n' cur
	COMPREPLY=()
	_get_comp_words_by_ref -n =: cur 2>/dev/null || cur=${COMP_WORDS[COMP_CWORD]}
	local line=${COMP_LINE:0:COMP_POINT}
	local -a words
	IFS=$' \t' read -r -a words <<<"$line"
	[[ $line == *[[:space:]] ]] && words+=("")
	COMPREPLY=($(ctr __complete -- "${words[@]:1}" 2>/dev/null | cut -f1))
	[[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
	declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$cur"
}
complete -o default -F _ctr ctr
`

const zshScript = `#compdef ctr
_ctr() {
	local -a found described
	local line
	found=("${(@f)$(ctr __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	for line in $found; do
		[[ -z $line ]] && continue
		described+=("${${line%%$'\t'*}//:/\\:}${${(M)line%$'\t'*}/$'\t'/:}")
	done
	(( $#described )) && _describe ctr described || _files
}
compdef _ctr ctr
`

const fishScript = `# fish completion for ctr
function __ctr_complete
	set -l words (commandline -opc) (commandline -ct)
	ctr __complete -- $words[2..-1] 2>/dev/null
end
complete -c ctr -f -a '(__ctr_complete)'
complete -c ctr -n 'test -z (__ctr_complete | head -1)' -F
`

// completeCommand prints what the last of the words may be, a line each, with a
// tab and a description where there is one.
func completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, SkipFlagParsing: true,
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

// position is where on the command line the cursor is.
type position struct {
	cmd   *cli.Command
	args  int               // arguments of cmd before the cursor
	flag  string            // the flag whose value the cursor is at, or empty
	flags map[string]string // global flags with a value
}

// locate walks the words before the last one.
func locate(root *cli.Command, words []string) position {
	p := position{cmd: root, flags: map[string]string{}}
	line := []*cli.Command{root}
	for i := 0; i < len(words)-1; i++ {
		word := words[i]
		if strings.HasPrefix(word, "-") && len(word) > 1 && p.args < stopAt(p.cmd) {
			name, value, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
			f := findFlag(line, name)
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
			continue
		}
		if sub := p.cmd.Command(word); p.args == 0 && sub != nil {
			p.cmd = sub
			line = append(line, sub)
			continue
		}
		p.args++
	}
	return p
}

// isGroup tells whether cmd has commands of its own, help aside.
func isGroup(cmd *cli.Command) bool {
	return slices.ContainsFunc(cmd.Commands, func(c *cli.Command) bool { return c.Name != "help" })
}

// stopAt is the number of arguments after which words are no flags.
func stopAt(cmd *cli.Command) int {
	if cmd.StopOnNthArg != nil {
		return *cmd.StopOnNthArg
	}
	return 1 << 20
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

func complete(ctx context.Context, root *cli.Command, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	p := locate(root, words)
	var out []string
	add := func(word, about string) {
		if !strings.HasPrefix(word, last) {
			return
		}
		if about, _, _ = strings.Cut(about, "\n"); about != "" {
			word += "\t" + about
		}
		out = append(out, word)
	}
	switch {
	case p.flag != "":
		for _, v := range flagValues(ctx, root, p) {
			add(v, "")
		}
	case strings.HasPrefix(last, "-") && p.args < stopAt(p.cmd):
		flags := p.cmd.Flags
		if p.cmd == root {
			flags = root.Flags
		}
		for _, f := range flags {
			usage := ""
			if d, ok := f.(cli.DocGenerationFlag); ok {
				usage = d.GetUsage()
			}
			add("--"+f.Names()[0], usage)
		}
	case p.args == 0 && isGroup(p.cmd):
		for _, c := range p.cmd.Commands {
			if !c.Hidden && c.Name != "help" {
				add(c.Name, c.Usage)
			}
		}
	default:
		for _, v := range argValues(ctx, root, p) {
			add(v, "")
		}
	}
	return out
}

// completionTime bounds what the shell waits for the daemon.
const completionTime = 2 * time.Second

func askDaemon(ctx context.Context, root *cli.Command, p position, fn func(ctx context.Context, s *session) []string) []string {
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
	return fn(ctx, s)
}

func flagValues(ctx context.Context, root *cli.Command, p position) []string {
	switch p.flag {
	case "namespace":
		return askDaemon(ctx, root, p, namespaceNames)
	case "snapshotter":
		return []string{"overlayfs", "native"}
	case "format":
		return []string{"json", "table"}
	case "signal":
		return []string{"SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT"}
	}
	return nil
}

// argValues are what the first argument of commands may be, of what the daemon
// has. What it does not have a name for is left to the shell: files.
func argValues(ctx context.Context, root *cli.Command, p position) []string {
	sources := map[string]func(context.Context, *session) []string{
		"run": imageNames, "containers create": imageNames,
		"containers": containerIDs, "tasks start": containerIDs, "tasks": taskIDs,
		"images": imageNames, "namespaces": namespaceNames, "leases delete": leaseIDs,
		"snapshots": snapshotKeys, "content": blobDigests,
	}
	for _, none := range []string{"namespaces create", "images pull", "images import", "images unmount", "content ingest", "content active", "content fetch", "content fetch-object", "content fetch-blob"} {
		sources[none] = func(context.Context, *session) []string { return nil }
	}
	sources["images export"] = imageNames
	names := []string{}
	for _, c := range slices.Backward(p.cmd.Lineage()) {
		if c != root {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		names = pathTo(root, p.cmd)
	}
	source := sources[strings.Join(names, " ")]
	if source == nil && len(names) > 0 {
		source = sources[names[0]]
	}
	key := strings.Join(names, " ")
	switch {
	case source == nil:
		return nil
	case (key == "run" || key == "containers create" || key == "tasks exec" || key == "images mount") && p.args > 0:
		return nil
	case key == "images export" && p.args == 0:
		return nil
	}
	return askDaemon(ctx, root, p, source)
}

// pathTo names the commands from the root down to cmd.
func pathTo(root, cmd *cli.Command) []string {
	for _, c := range root.Commands {
		if c == cmd {
			return []string{c.Name}
		}
		if below := pathTo(c, cmd); below != nil {
			return append([]string{c.Name}, below...)
		}
	}
	return nil
}

func imageNames(ctx context.Context, s *session) (out []string) {
	resp, _ := imagesapi.NewImagesClient(s).List(ctx, &imagesapi.ListImagesRequest{})
	for _, i := range resp.GetImages() {
		out = append(out, i.Name)
	}
	return out
}

func containerIDs(ctx context.Context, s *session) (out []string) {
	list, _ := listContainers(ctx, s)
	for _, c := range list {
		out = append(out, c.ID)
	}
	return out
}

func taskIDs(ctx context.Context, s *session) (out []string) {
	resp, _ := tasksapi.NewTasksClient(s).List(ctx, &tasksapi.ListTasksRequest{})
	for _, t := range resp.GetTasks() {
		out = append(out, t.ID)
	}
	return out
}

func namespaceNames(ctx context.Context, s *session) (out []string) {
	resp, _ := namespacesapi.NewNamespacesClient(s).List(ctx, &namespacesapi.ListNamespacesRequest{})
	for _, n := range resp.GetNamespaces() {
		out = append(out, n.Name)
	}
	return out
}

func leaseIDs(ctx context.Context, s *session) (out []string) {
	resp, _ := leasesapi.NewLeasesClient(s).List(ctx, &leasesapi.ListRequest{})
	for _, l := range resp.GetLeases() {
		out = append(out, l.ID)
	}
	return out
}

func snapshotKeys(ctx context.Context, s *session) (out []string) {
	name, err := defaultSnapshotter(ctx, s)
	if err != nil {
		return nil
	}
	list, _ := newSnapshotter(s, name).list(ctx)
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

func blobDigests(ctx context.Context, s *session) (out []string) {
	s.walkBlobs(ctx, nil, func(b blobView) error {
		out = append(out, b.Digest)
		return nil
	})
	return out
}
