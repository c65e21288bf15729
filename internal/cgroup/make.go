package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// MakeAndJoin makes the group at path (below the mount), as far as it is
// missing, in the unified hierarchy or in every one of version 1, and moves a
// process into it.
func MakeAndJoin(path string, pid int) error {
	path = filepath.Join("/", path)
	roots := []string{Mount}
	if !Unified() {
		dirs, err := os.ReadDir(Mount)
		if err != nil {
			return err
		}
		roots = nil
		for _, d := range dirs {
			// Links are the controllers of a hierarchy that has several.
			if _, err := os.Stat(filepath.Join(Mount, d.Name(), "cgroup.procs")); err == nil && d.IsDir() && d.Name() != "unified" {
				roots = append(roots, filepath.Join(Mount, d.Name()))
			}
		}
	}
	for _, root := range roots {
		if err := makeGroup(root, path); err != nil {
			return fmt.Errorf("make cgroup %s: %w", filepath.Join(root, path), err)
		}
	}
	return Join(path, pid)
}

// makeGroup makes a group and those above it. A new cpuset of version 1 has no
// CPUs and no memory, and takes nobody until it has those of its parent.
func makeGroup(root, path string) error {
	dir := root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			inherited, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				continue // not a cpuset
			}
			own, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || strings.TrimSpace(string(own)) != "" || Unified() {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), inherited, 0); err != nil {
				return err
			}
		}
	}
	return nil
}
