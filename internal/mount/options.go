package mount

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// options is what the option strings of a mount mean.
type options struct {
	flags       int   // for mount(2), propagation left out
	propagation []int // one mount(2) each, after the mount itself
	data        []string
	loop        bool
	directIO    bool
	shared      bool // the loop device is one that others write to
	uidmap      string
	gidmap      string
}

const internalPrefix = "X-containerd."

func parse(m live.Mount) (options, error) {
	var o options
	if m.Type == "bind" {
		o.flags = unix.MS_BIND
	}
	for _, word := range m.Options {
		if set, clear, ok := flag(word); ok {
			o.flags = o.flags&^clear | set
			continue
		}
		if p, ok := propagationFlag(word); ok {
			o.propagation = append(o.propagation, p)
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		switch {
		case word == "loop":
			o.loop = true
		case key == "uidmap":
			o.uidmap = value
		case key == "gidmap":
			o.gidmap = value
		case strings.HasPrefix(word, internalPrefix):
			return o, fmt.Errorf("mount option %q asks for a preparation step that this daemon does not do: %w", word, errdefs.ErrNotImplemented)
		default:
			o.data = append(o.data, word)
		}
	}
	if o.loop {
		n := len(o.data)
		o.data = slices.DeleteFunc(o.data, func(s string) bool { return s == "direct-io" })
		o.directIO = len(o.data) != n
	}
	if (o.uidmap == "") != (o.gidmap == "") {
		return o, fmt.Errorf("uidmap %q and gidmap %q: an idmapped mount needs both: %w", o.uidmap, o.gidmap, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

// flag tells which bits an fstab word sets and clears.
func flag(word string) (set, clear int, ok bool) {
	switch word {
	case "defaults":
	case "bind":
		set = unix.MS_BIND
	case "rbind":
		set = unix.MS_BIND | unix.MS_REC
	case "remount":
		set = unix.MS_REMOUNT
	case "ro":
		set = unix.MS_RDONLY
	case "rw":
		clear = unix.MS_RDONLY
	case "nosuid":
		set = unix.MS_NOSUID
	case "suid":
		clear = unix.MS_NOSUID
	case "nodev":
		set = unix.MS_NODEV
	case "dev":
		clear = unix.MS_NODEV
	case "noexec":
		set = unix.MS_NOEXEC
	case "exec":
		clear = unix.MS_NOEXEC
	case "sync":
		set = unix.MS_SYNCHRONOUS
	case "async":
		clear = unix.MS_SYNCHRONOUS
	case "dirsync":
		set = unix.MS_DIRSYNC
	case "mand":
		set = unix.MS_MANDLOCK
	case "nomand":
		clear = unix.MS_MANDLOCK
	case "noatime":
		set = unix.MS_NOATIME
	case "atime":
		clear = unix.MS_NOATIME
	case "nodiratime":
		set = unix.MS_NODIRATIME
	case "diratime":
		clear = unix.MS_NODIRATIME
	case "relatime":
		set = unix.MS_RELATIME
	case "norelatime":
		clear = unix.MS_RELATIME
	case "strictatime":
		set = unix.MS_STRICTATIME
	case "nostrictatime":
		clear = unix.MS_STRICTATIME
	default:
		return 0, 0, false
	}
	return set, clear, true
}

func propagationFlag(word string) (int, bool) {
	name, recursive := strings.CutPrefix(word, "r")
	rec := 0
	if recursive {
		rec = unix.MS_REC
	}
	switch name {
	case "shared":
		return unix.MS_SHARED | rec, true
	case "private":
		return unix.MS_PRIVATE | rec, true
	case "slave":
		return unix.MS_SLAVE | rec, true
	case "unbindable":
		return unix.MS_UNBINDABLE | rec, true
	}
	return 0, false
}

// relativeTo makes the directories of an overlay's options relative to the one
// that all lower directories are in, and joins the options. dir is empty when
// there is none.
func relativeTo(data []string) (dir, joined string) {
	i := slices.IndexFunc(data, func(o string) bool { return strings.HasPrefix(o, "lowerdir=") })
	if i < 0 {
		return "", ""
	}
	lowers := splitLower(strings.TrimPrefix(data[i], "lowerdir="))
	dir = parent(lowers)
	if dir == "" {
		return "", ""
	}
	out := slices.Clone(data)
	for j, l := range lowers {
		lowers[j] = l[len(dir):]
	}
	out[i] = "lowerdir=" + strings.Join(lowers, ":")
	for j, o := range out {
		for _, key := range []string{"upperdir=", "workdir="} {
			if rest, ok := strings.CutPrefix(o, key+dir); ok && rest != "" {
				out[j] = key + rest
			}
		}
	}
	return unescape(dir), strings.Join(out, ",")
}

// splitLower splits at colons that no backslash precedes, and leaves escapes.
func splitLower(s string) []string {
	var out []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ':':
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parent is the deepest absolute directory that all paths are strictly below,
// with a slash at its end; empty when that is only the root, or none.
func parent(paths []string) string {
	if len(paths) == 0 || !path.IsAbs(paths[0]) {
		return ""
	}
	dir := path.Dir(paths[0])
	for _, p := range paths[1:] {
		for dir != "/" && dir != "." && !strings.HasPrefix(p, dir+"/") {
			dir = path.Dir(dir)
		}
	}
	if dir == "/" || dir == "." {
		return ""
	}
	return dir + "/"
}

// ReadOnly returns the mounts changed so that nothing can be written through
// them: the upper directory of an overlay becomes its first lower one, all
// others get ro. Ownership mappings are dropped: the view is the disk's. Mounts
// that only prepare a later one stay as they are.
func ReadOnly(mounts []live.Mount) []live.Mount {
	out := slices.Clone(mounts)
	last := 0 // of those that are made of others
	for i, m := range out {
		if strings.HasPrefix(m.Type, "format/") {
			last = i
		}
	}
	for i, m := range out {
		if i < last {
			continue
		}
		if _, base := splitType(m.Type); base == "overlay" {
			out[i].Options = readOnlyOverlay(m.Options)
			continue
		}
		opts := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "rw" || o == "ro" || isMapping(o) })
		out[i].Options = append(opts, "ro")
	}
	return out
}

func readOnlyOverlay(opts []string) []string {
	upper := ""
	out := make([]string, 0, len(opts))
	for _, o := range opts {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		} else if !strings.HasPrefix(o, "workdir=") && !isMapping(o) && !isVolatile(o) {
			out = append(out, o)
		}
	}
	for i, o := range out {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok && upper != "" {
			out[i] = "lowerdir=" + upper + ":" + lower
		}
	}
	return out
}

func isMapping(o string) bool {
	return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=")
}

// isVolatile: such an overlay may be mounted once only, so a temporary mount
// must leave the option out.
func isVolatile(o string) bool { return o == "volatile" || o == "fsync=volatile" }
