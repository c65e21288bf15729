// Package cgroup measures control groups and tells when one of them is out of
// memory, for version 1 (hybrid hosts included) and version 2. Making, limiting
// and removing groups is the OCI runtime's.
//
// Metrics are encoded as containerd's clients expect them: messages of type
// io.containerd.cgroups.v1.Metrics and io.containerd.cgroups.v2.Metrics. They are
// written field by field from tables (v1.go, v2.go), since the generated packages
// would cost each shim memory and each container's init time.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Mount is where control groups are mounted.
const Mount = "/sys/fs/cgroup"

// Group is the control group of a process, in all hierarchies.
type Group struct {
	// paths are directories by controller; version 2 has one, under "".
	paths map[string]string
}

// Unified tells whether the host has version 2 alone.
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(Mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Of returns the group that a process is in.
func Of(pid int) (Group, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return Group{}, err
	}
	return parse(string(raw), Unified(), func(dir string) bool {
		_, err := os.Stat(filepath.Join(Mount, dir))
		return err == nil
	})
}

// parse reads /proc/PID/cgroup (cgroups(7)): lines of hierarchy:controllers:path.
func parse(raw string, unified bool, mounted func(dir string) bool) (Group, error) {
	g := Group{paths: map[string]string{}}
	for line := range strings.Lines(raw) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return Group{}, fmt.Errorf("line %q of /proc/PID/cgroup is not hierarchy:controllers:path: %w", line, errdefs.ErrInvalidArgument)
		}
		controllers, path := parts[1], parts[2]
		if unified {
			if controllers == "" {
				g.paths[""] = filepath.Join(Mount, path)
			}
			continue
		}
		for _, c := range strings.Split(controllers, ",") {
			if c == "" {
				continue // the version 2 hierarchy of a hybrid host has no controllers
			}
			dir := strings.TrimPrefix(c, "name=")
			// Controllers that share a hierarchy have a link each, or not.
			if !mounted(dir) {
				dir = controllers
			}
			g.paths[c] = filepath.Join(Mount, dir, path)
		}
	}
	return g, nil
}

// unified tells whether the group is one of version 2.
func (g Group) unified() bool {
	_, ok := g.paths[""]
	return ok
}

// Join moves a process into the group at path (below the mount) in every hierarchy
// that has it.
func Join(path string, pid int) error {
	proc := strconv.AppendInt(nil, int64(pid), 10)
	if Unified() {
		return os.WriteFile(filepath.Join(Mount, path, "cgroup.procs"), proc, 0)
	}
	dirs, err := os.ReadDir(Mount)
	if err != nil {
		return err
	}
	found := false
	for _, d := range dirs {
		err := os.WriteFile(filepath.Join(Mount, d.Name(), path, "cgroup.procs"), proc, 0)
		if err == nil {
			found = true
		} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	if !found {
		return fmt.Errorf("cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return nil
}

// Metrics reads the group. A controller that the host does not have, or that is
// gone meanwhile, has no metrics.
func (g Group) Metrics() (typeURL string, value []byte, err error) {
	if len(g.paths) == 0 {
		return "", nil, fmt.Errorf("no control group: %w", errdefs.ErrNotFound)
	}
	if g.unified() {
		return "io.containerd.cgroups.v2.Metrics", g.metrics2(), nil
	}
	return "io.containerd.cgroups.v1.Metrics", g.metrics1(), nil
}

// number reads a file that holds one number, or "max", for which max is returned.
func number(dir, file string, max uint64) (uint64, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	return parseNumber(string(raw), max)
}

func parseNumber(s string, max uint64) (uint64, bool) {
	s = strings.TrimSpace(s)
	if s == "max" {
		return max, true
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil && strings.HasPrefix(s, "-") {
		return 0, true // a counter that went below 0 for a moment
	}
	return n, err == nil
}

// pairs reads a file of lines "key value".
func pairs(dir, file string) map[string]uint64 {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	defer f.Close()
	m := map[string]uint64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, ok := strings.Cut(s.Text(), " ")
		if n, valid := parseNumber(value, 0); ok && valid {
			m[key] = n
		}
	}
	return m
}

// fields reads the lines of a file, split at blanks.
func fields(dir, file string) [][]string {
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	var all [][]string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 0 {
			all = append(all, f)
		}
	}
	return all
}
