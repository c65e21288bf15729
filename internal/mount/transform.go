package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
)

const (
	mkdirOption = internalPrefix + "mkdir."
	mkfsOption  = internalPrefix + "mkfs."
)

// transformer carries transformations out. It writes below roots only.
type transformer struct{ roots []string }

func (t transformer) apply(ctx context.Context, m live.Mount, chain []string, active []live.ActiveMount) (live.Mount, error) {
	m.Options = slices.Clone(m.Options)
	for _, name := range chain {
		var err error
		switch name {
		case "format":
			err = formatMount(&m, active)
		case "mkdir":
			err = t.mkdir(&m)
		case "mkfs":
			err = t.mkfs(ctx, &m)
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		m.Type = strings.TrimPrefix(m.Type, name+"/")
	}
	return m, nil
}

func formatMount(m *live.Mount, active []live.ActiveMount) error {
	fields := []*string{&m.Source, &m.Target}
	for i := range m.Options {
		fields = append(fields, &m.Options[i])
	}
	for _, f := range fields {
		s, err := expand(*f, active)
		if err != nil {
			return err
		}
		*f = s
	}
	return nil
}

// expand replaces what is in double braces.
func expand(s string, active []live.ActiveMount) (string, error) {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "{{")
		out.WriteString(before)
		if !ok {
			return out.String(), nil
		}
		expr, after, ok := strings.Cut(rest, "}}")
		if !ok {
			return "", fmt.Errorf("%q: braces are not closed: %w", s, errdefs.ErrInvalidArgument)
		}
		value, err := evaluate(strings.Fields(expr), active)
		if err != nil {
			return "", fmt.Errorf("{{%s}}: %w", expr, err)
		}
		out.WriteString(value)
		s = after
	}
}

func evaluate(words []string, active []live.ActiveMount) (string, error) {
	numbers := make([]int, 0, 2)
	for _, w := range words[min(1, len(words)):] {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 || n >= len(active) {
			return "", fmt.Errorf("%q is not the number of one of the %d mounts before: %w", w, len(active), errdefs.ErrInvalidArgument)
		}
		numbers = append(numbers, n)
	}
	one := len(numbers) == 1
	switch {
	case one && words[0] == "mount":
		return active[numbers[0]].MountPoint, nil
	case one && words[0] == "source":
		return active[numbers[0]].Source, nil
	case one && words[0] == "target":
		return active[numbers[0]].Target, nil
	case len(numbers) == 2 && words[0] == "overlay":
		return between(active, numbers[0], numbers[1]), nil
	}
	return "", fmt.Errorf("want mount N, source N, target N or overlay N M: %w", errdefs.ErrInvalidArgument)
}

// between joins mount points as overlay's lower directories, in either direction.
func between(active []live.ActiveMount, from, to int) string {
	step := 1
	if from > to {
		step = -1
	}
	var points []string
	for i := from; ; i += step {
		points = append(points, active[i].MountPoint)
		if i == to {
			return strings.Join(points, ":")
		}
	}
}

// beneath opens the innermost root that path is in.
func (t transformer) beneath(path string) (root *os.Root, rest string, err error) {
	best := ""
	for _, r := range t.roots {
		if rel, err := filepath.Rel(r, path); err == nil && filepath.IsLocal(rel) && len(r) > len(best) {
			best, rest = r, rel
		}
	}
	if best == "" {
		return nil, "", fmt.Errorf("%s is in none of the directories %q: %w", path, t.roots, errdefs.ErrNotImplemented)
	}
	root, err = os.OpenRoot(best)
	return root, rest, err
}

func (t transformer) mkdir(m *live.Mount) error {
	var rest []string
	for _, o := range m.Options {
		spec, ok := strings.CutPrefix(o, mkdirOption)
		if !ok {
			rest = append(rest, o)
			continue
		}
		d, err := parseMkdir(spec)
		if err == nil {
			err = t.makeDir(d)
		}
		if err != nil {
			return fmt.Errorf("option %q: %w", o, err)
		}
	}
	m.Options = rest
	return nil
}

type newDir struct {
	path     string
	mode     fs.FileMode
	hasMode  bool
	uid, gid int // -1: as they are
}

// parseMkdir reads path=<path>[:<mode>[:<uid>:<gid>]].
func parseMkdir(spec string) (newDir, error) {
	d := newDir{mode: 0o700, uid: -1, gid: -1}
	value, ok := strings.CutPrefix(spec, "path=")
	parts := strings.Split(value, ":")
	bad := func(what string) (newDir, error) {
		return d, fmt.Errorf("%s (want path=<path>[:<mode>[:<uid>:<gid>]]): %w", what, errdefs.ErrInvalidArgument)
	}
	if !ok || len(parts) == 3 || len(parts) > 4 || !filepath.IsAbs(parts[0]) {
		return bad("malformed")
	}
	d.path = filepath.Clean(parts[0])
	if len(parts) >= 2 {
		mode, err := strconv.ParseUint(parts[1], 8, 32)
		if err != nil || mode > 0o777 {
			return bad("mode " + parts[1])
		}
		d.mode, d.hasMode = fs.FileMode(mode), true
	}
	if len(parts) == 4 {
		uid, err1 := strconv.ParseUint(parts[2], 10, 31)
		gid, err2 := strconv.ParseUint(parts[3], 10, 31)
		if err1 != nil || err2 != nil {
			return bad("owner " + parts[2] + ":" + parts[3])
		}
		d.uid, d.gid = int(uid), int(gid)
	}
	return d, nil
}

// makeDir makes the directory, or gives an existing one what is asked for.
//
// Differs from containerd: there an existing directory of another mode, and
// any other owner, is an error.
func (t transformer) makeDir(d newDir) error {
	root, path, err := t.beneath(d.path)
	if err != nil {
		return err
	}
	defer root.Close()
	err = root.Mkdir(path, d.mode)
	if errors.Is(err, fs.ErrExist) {
		if st, serr := root.Stat(path); serr != nil || !st.IsDir() {
			return errors.Join(err, serr)
		}
		err = nil
		if !d.hasMode && d.uid < 0 {
			return nil
		}
	}
	if err == nil {
		err = root.Chmod(path, d.mode)
	}
	if err == nil && d.uid >= 0 {
		err = root.Chown(path, d.uid, d.gid)
	}
	return err
}
