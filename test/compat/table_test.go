package compat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// tableFile is what the tests below hold to reality: one section each. With
// COMPAT_UPDATE=1 in the environment they write it.
const tableFile = "../../docs/compatibility.md"

const tableHead = `# What of containerd is here

Every method of the API, every command and flag of ctr and every key of the configuration of containerd 2.4.2, as its
proto files, its ctr's help and its daemon's default configuration list them. The tests of test/compat make this table
and fail when it is not what they find; COMPAT_UPDATE=1 makes them write it.

- **same**: containerd's and Berth's answers to the same calls were equal; the flag is taken; the key has its effect.
- **better**: equal but for what is said, which is on purpose.
- **not yet**: with the reason.
`

// row of a table: what, verdict, note.
type row struct{ what, verdict, note string }

func (r row) String() string {
	return fmt.Sprintf("| %s | %s | %s |", r.what, r.verdict, strings.ReplaceAll(r.note, "|", "\\|"))
}

// checkTable compares a section with the rows that were found.
func checkTable(t *testing.T, section, column string, rows []row) {
	t.Helper()
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.what, b.what) })
	counts := map[string]int{}
	var b strings.Builder
	for _, r := range rows {
		verdict, _, _ := strings.Cut(r.verdict, ",")
		counts[verdict]++
	}
	fmt.Fprintf(&b, "## %s\n\n%d rows: %d same, %d better, %d not yet.\n\n| %s | verdict | |\n|---|---|---|\n", section, len(rows), counts["same"], counts["better"], counts["not yet"], column)
	for _, r := range rows {
		fmt.Fprintln(&b, r)
	}
	found := b.String()
	data, err := os.ReadFile(tableFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	head, sections := splitTable(string(data))
	if os.Getenv("COMPAT_UPDATE") == "1" {
		sections[section] = found
		out := tableHead
		for _, name := range []string{"API", "ctr", "Configuration"} {
			if s := sections[name]; s != "" {
				out += "\n" + strings.TrimRight(s, "\n") + "\n"
			}
		}
		if err := os.WriteFile(tableFile, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if strings.TrimSpace(head) != strings.TrimSpace(tableHead) {
		t.Errorf("the head of %s is not that of the tests", tableFile)
	}
	was, is := strings.Split(strings.TrimSpace(sections[section]), "\n"), strings.Split(strings.TrimSpace(found), "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("%s says: %s", tableFile, line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("found is: %s", line)
		}
	}
}

// splitTable cuts the file into what comes before the first section and the
// sections by name.
func splitTable(text string) (head string, sections map[string]string) {
	parts := strings.Split(text, "\n## ")
	sections = make(map[string]string)
	for _, p := range parts[1:] {
		name, _, _ := strings.Cut(p, "\n")
		sections[name] = "## " + p
	}
	return parts[0], sections
}

// apiRows judges the methods by what the script found.
func apiRows(t *testing.T, same, different map[string]bool, fatal map[string]bool) []row {
	var rows []row
	for name := range methods() {
		short := shortName(name)
		r := row{what: "`" + strings.TrimPrefix(name, "/") + "`", verdict: "same"}
		var notes []string
		for _, d := range deliberate {
			if d.method == short && !slices.Contains(notes, d.why) {
				notes = append(notes, d.why)
			}
		}
		if fatal[short] {
			notes = append(notes, "a request that lacks something is refused; it ends containerd")
		}
		switch {
		case different[short] || !same[short] && elsewhere[short] == "":
			t.Errorf("%s: no answer was the same, and there is no reason", short)
			continue
		case !same[short]:
			r.note = elsewhere[short]
		case len(notes) > 0:
			r.verdict, r.note = "better", strings.Join(notes, "; ")
		}
		rows = append(rows, r)
	}
	return append(rows, row{"`containerd.services.events.ttrpc.v1.Events/Forward`", "same", "by the tests of takeover: shims of either use it with the daemon of the other"})
}

// shortName is the last two names of a method.
func shortName(full string) string {
	return full[strings.LastIndexByte(full[:strings.LastIndexByte(full, '/')], '.')+1:]
}

// ctrBetter are commands and flags that do more than containerd's.
var ctrBetter = map[string]string{}

// ctrLater are commands and flags that are refused, with the reason.
var ctrLater = map[string]string{}

// TestCtrTable lists every command and flag of the real ctr.
func TestCtrTable(t *testing.T) {
	ours, theirs := filepath.Join(oursBin, "ctr"), filepath.Join(peerBin, "ctr")
	var rows []row
	judge := func(what string, known bool) {
		r := row{what: "`" + what + "`", verdict: "same"}
		switch {
		case ctrLater[what] != "":
			r.verdict = "not yet, because " + ctrLater[what]
		case !known:
			t.Errorf("%s is missing, and there is no reason", what)
			r.verdict = "not yet, because nobody has written it"
		case ctrBetter[what] != "":
			r.verdict, r.note = "better", ctrBetter[what]
		}
		rows = append(rows, r)
	}
	var walk func(words []string)
	walk = func(words []string) {
		line := strings.Join(append([]string{"ctr"}, words...), " ")
		shown, err := ask(t, theirs, words)
		if err != nil {
			t.Errorf("their %s: %v", line, err)
			return
		}
		have, err := ask(t, ours, words)
		judge(line, err == nil)
		for spelling := range shown.flags {
			if strings.HasPrefix(spelling, "--") && spelling != "--help" {
				_, ok := have.flags[spelling]
				judge(line+" "+spelling, ok)
			}
		}
		for name := range shown.commands {
			if name != "help" {
				walk(append(slices.Clone(words), name))
			}
		}
	}
	walk(nil)
	if len(rows) < 300 {
		t.Errorf("only %d rows", len(rows))
	}
	checkTable(t, "ctr", "command or flag", rows)
}

// keyBetter are keys that do more than containerd's.
var keyBetter = map[string]string{
	"debug.level": "SIGHUP reloads it",
	"plugins.'io.containerd.transfer.v1.local'.config_path":              "SIGHUP reloads it",
	"plugins.'io.containerd.transfer.v1.local'.max_concurrent_downloads": "0, the default, chooses by the number of cores",
	"plugins.'io.containerd.transfer.v1.local'.max_concurrent_unpacks":   "0, the default, chooses by the number of cores",
	"plugins.'io.containerd.server.v1.grpc-tcp'.tls_common_name":         "the name that clients' certificates must have; there it means something on Windows only",
	"timeouts.'io.containerd.timeout.shim.cleanup'":                      "10 s by default",
	"plugins.'io.containerd.monitor.container.v1.restart'.interval":      "the least time between two restarts of a container; nothing looks at intervals",
}

// TestConfigTable lists every key of the real daemon's default configuration, and
// what ours says of a file that has it with another value.
func TestConfigTable(t *testing.T) {
	out, err := exec.Command(filepath.Join(peerBin, "containerd"), "config", "default").Output()
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(out, &tree); err != nil {
		t.Fatal(err)
	}
	var rows []row
	file := filepath.Join(t.TempDir(), "config.toml")
	eachKey(tree, nil, func(path []string, value any) {
		name := keyName(path)
		if name == "version" {
			rows = append(rows, row{"`version`", "same", ""})
			return
		}
		one := map[string]any{"version": int64(4)}
		at := one
		for _, k := range path[:len(path)-1] {
			next := map[string]any{}
			at[k] = next
			at = next
		}
		at[path[len(path)-1]] = changed(value)
		data, err := toml.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		said, err := exec.Command(filepath.Join(oursBin, "containerd"), "-c", file, "config", "check").CombinedOutput()
		if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(err)
		}
		r := row{what: "`" + name + "`", verdict: "same"}
		if _, why, ok := strings.Cut(string(said), " has no effect: "); ok {
			why, _, _ = strings.Cut(why, "\n")
			r.verdict = "not yet, because " + why
		} else if strings.Contains(string(said), "unknown key") {
			t.Errorf("%s: %s", name, said)
			r.verdict = "not yet, because the daemon does not know it"
		} else if keyBetter[name] != "" {
			r.verdict, r.note = "better", keyBetter[name]
		}
		rows = append(rows, r)
	})
	if len(rows) < 100 {
		t.Errorf("only %d keys", len(rows))
	}
	checkTable(t, "Configuration", "key", rows)
}

// eachKey calls fn with the leaves of a tree.
func eachKey(tree map[string]any, path []string, fn func(path []string, value any)) {
	for k, v := range tree {
		p := append(slices.Clone(path), k)
		if sub, ok := v.(map[string]any); ok && len(sub) > 0 {
			eachKey(sub, p, fn)
			continue
		}
		fn(p, v)
	}
}

func keyName(path []string) string {
	var parts []string
	for _, k := range path {
		if strings.Contains(k, ".") {
			k = "'" + k + "'"
		}
		parts = append(parts, k)
	}
	return strings.Join(parts, ".")
}

// changed is another value of the same kind.
func changed(v any) any {
	switch v := v.(type) {
	case bool:
		return !v
	case int64:
		return v + 1
	case float64:
		return v + 0.01
	case string:
		if strings.HasSuffix(v, "s") && strings.ContainsAny(v, "0123456789") {
			return "7m0s"
		}
		return v + "x"
	case []any:
		if len(v) > 0 {
			return v[:0]
		}
		return []any{"x"}
	case map[string]any: // an empty table, known as such
	}
	return v
}
