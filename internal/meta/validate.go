package meta

import (
	"fmt"
	"maps"
	"strings"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

const (
	// maxIdentifier is the longest namespace, container or sandbox ID, in bytes.
	maxIdentifier = 76
	// maxLabel bounds key and value of a label together, in bytes.
	maxLabel = 4096
	// maxName bounds names that are no identifiers (image names, snapshot keys,
	// references); bolt takes keys of up to 32768 bytes.
	maxName = 4096
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
}

// checkIdentifier holds names to containerd's rule: letters and digits, with
// single dots, dashes and underscores between them. Such a name is safe as a
// part of a path.
func checkIdentifier(kind, s string) error {
	if s == "" {
		return invalid("%s must not be empty", kind)
	}
	if len(s) > maxIdentifier {
		return invalid("%s %q has %d bytes, %d are allowed", kind, s, len(s), maxIdentifier)
	}
	inWord := false
	for i, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			inWord = true
		case inWord && i < len(s)-1 && strings.IndexByte("._-", c) >= 0:
			inWord = false
		default:
			return invalid("%s %q: %q is not allowed at position %d; use letters and digits with single '.', '-' or '_' between them", kind, s, c, i+1)
		}
	}
	return nil
}

// checkName is for names of free form that become bolt keys.
func checkName(kind, s string) error {
	if s == "" {
		return invalid("%s must not be empty", kind)
	}
	if len(s) > maxName {
		return invalid("%s %.64q… has %d bytes, %d are allowed", kind, s, len(s), maxName)
	}
	return nil
}

// checkLabels bounds labels. That each has a key is found when they are written.
func checkLabels(labels map[string]string) error {
	for k, v := range labels {
		if n := len(k) + len(v); n > maxLabel {
			return invalid("label %.64q takes %d bytes with its value, %d are allowed", k, n, maxLabel)
		}
	}
	return nil
}

// fieldMask applies field paths to one object: each path is offered to its
// fields, and one that none knows is an error.
type fieldMask struct {
	what  string
	paths []string
}

// entry is what a field path names of a map: all of it, or one key, which may be
// empty and may contain dots.
type entry struct {
	one bool
	key string
}

// apply calls set for every path. A path below one of the maps is split into
// the map's name and the entry.
func (m fieldMask) apply(set func(field string, e entry) bool) error {
	for _, path := range m.paths {
		field, key, one := strings.Cut(path, ".")
		if !set(field, entry{one, key}) {
			return invalid("field %q of %s cannot be updated", path, m.what)
		}
	}
	return nil
}

// merge returns the map that an update leaves: all of update, or one entry of
// it over current. The arguments are not changed.
//
// Compat: an entry that update lacks becomes an empty one.
func merge[V any](current, update map[string]V, e entry) map[string]V {
	if !e.one {
		return maps.Clone(update)
	}
	merged := maps.Clone(current)
	if merged == nil {
		merged = map[string]V{}
	}
	merged[e.key] = update[e.key]
	return merged
}

// mergeLabels is merge for labels, where an empty value removes.
func mergeLabels(current, update map[string]string, e entry) map[string]string {
	merged := merge(current, update, e)
	maps.DeleteFunc(merged, func(_, v string) bool { return v == "" })
	return merged
}

func withoutEmpty(labels map[string]string) map[string]string {
	return mergeLabels(nil, labels, entry{})
}

func checkRuntime(kind string, r object.Runtime) error {
	if r.Name == "" {
		return invalid("%s has no runtime name", kind)
	}
	return nil
}
