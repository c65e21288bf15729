package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// bundleDir is where bundles are below the state directory.
const bundleDir = "io.containerd.runtime.v2.task"

// shim is a running shim process.
type shim struct {
	pid           int
	namespace, id string
	bundle        string
	deleted       bool // its bundle is gone
}

// checkLeftovers finds what containers that are gone have left: shims, bundles,
// mounts and cgroups.
func checkLeftovers(_ context.Context, e *exam) {
	shims := e.shims()
	left := len(e.results)
	held := map[string]bool{}
	for _, s := range shims {
		held[s.bundle] = true
		name := s.namespace + "/" + s.id
		switch {
		case s.deleted:
			e.add("shim", Warning, fmt.Sprintf("process %d runs for %s, whose bundle is gone", s.pid, name), fmt.Sprintf("kill %d; its container's processes end with it", s.pid))
		case e.Live != nil && !e.Live(s.namespace, s.id):
			e.add("shim", Warning, fmt.Sprintf("process %d runs for %s, of which the daemon does not know", s.pid, name), fmt.Sprintf("restart the daemon, which adopts it or ends it; or kill %d", s.pid))
		}
	}
	bundles, _ := filepath.Glob(filepath.Join(e.path(e.StateDir), bundleDir, "*", "*")) // of a constant pattern
	for _, bundle := range bundles {
		namespace, id := filepath.Base(filepath.Dir(bundle)), filepath.Base(bundle)
		if !held[bundle] && (e.Live == nil || !e.Live(namespace, id)) {
			e.add("bundle", Warning, bundle+" belongs to no running shim", "the daemon removes it when it starts")
		}
	}
	e.mounts(held)
	e.cgroups(shims)
	if len(e.results) == left {
		e.ok("leftovers", "none (running shims: %d)", len(shims))
	}
}

// shims finds those of this daemon by where they work: in a bundle below its state
// directory.
func (e *exam) shims() (out []shim) {
	entries, _ := os.ReadDir(e.path("proc"))
	state := filepath.Join(e.path(e.StateDir), bundleDir) + "/"
	for _, d := range entries {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(e.path("proc/" + d.Name() + "/cwd"))
		if err != nil || !strings.HasPrefix(cwd, state) {
			continue
		}
		bundle, deleted := strings.CutSuffix(cwd, " (deleted)")
		parts := strings.Split(strings.TrimPrefix(bundle, state), "/")
		command, _, _ := strings.Cut(e.text("proc/"+d.Name()+"/cmdline"), "\x00")
		if len(parts) != 2 || !strings.HasPrefix(filepath.Base(command), "containerd-shim") {
			continue
		}
		out = append(out, shim{pid, parts[0], parts[1], bundle, deleted})
	}
	slices.SortFunc(out, func(a, b shim) int { return a.pid - b.pid })
	return out
}

// mounts finds root file systems of bundles that no shim holds, and temporary
// mounts of the daemon.
func (e *exam) mounts(held map[string]bool) {
	state := filepath.Join(e.path(e.StateDir), bundleDir) + "/"
	// Those elsewhere are other programs', or other daemons'.
	temporaries := filepath.Join(e.path(e.DataDir), "tmpmounts") + "/"
	temporary := 0
	for line := range strings.Lines(e.text("proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape(f[4])
		switch {
		case strings.HasPrefix(point, state):
			parts := strings.SplitN(strings.TrimPrefix(point, state), "/", 3)
			if len(parts) < 2 || held[filepath.Join(state, parts[0], parts[1])] || e.Live != nil && e.Live(parts[0], parts[1]) {
				continue
			}
			e.add("mount", Warning, point+" is mounted for a container that does not run", "umount "+point+"; the daemon does so when it starts")
		case strings.HasPrefix(point, temporaries):
			temporary++
		}
	}
	if temporary > 0 {
		e.add("mount", Warning, fmt.Sprintf("temporary mounts: %d; they are stale unless an image is being unpacked now", temporary), "restart the daemon, which removes them")
	}
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	for _, c := range []string{" ", "\t", "\n", "\\"} {
		s = strings.ReplaceAll(s, fmt.Sprintf("\\%03o", c[0]), c)
	}
	return s
}

// cgroups finds those of containers of this daemon's namespaces that nobody has
// any more: without a process in them, and without a shim.
func (e *exam) cgroups(shims []shim) {
	if e.Live == nil {
		return // what is there cannot be told from what was
	}
	namespaces := map[string]bool{}
	for _, s := range shims {
		namespaces[s.namespace] = true
	}
	dirs, _ := os.ReadDir(filepath.Join(e.path(e.StateDir), bundleDir))
	for _, d := range dirs {
		namespaces[d.Name()] = true
	}
	stale := map[string]bool{}
	for namespace := range namespaces {
		for _, pattern := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/*/"} {
			found, _ := filepath.Glob(e.path(pattern+namespace) + "/*/cgroup.procs")
			for _, procs := range found {
				id := filepath.Base(filepath.Dir(procs))
				b, err := os.ReadFile(procs)
				if err == nil && len(b) == 0 && !e.Live(namespace, id) && !strings.Contains(id, ".slice") {
					stale[namespace+"/"+id] = true
				}
			}
		}
	}
	if len(stale) > 0 {
		e.add("cgroup", Info, fmt.Sprintf("%d empty cgroups are of containers that are gone, such as %s", len(stale), firstOf(stale)), "they cost little; rmdir removes them, or ctr namespaces rm --cgroup")
	}
}

func firstOf(set map[string]bool) string {
	first := ""
	for name := range set {
		if first == "" || name < first {
			first = name
		}
	}
	return first
}
