package spec

import "strings"

// MergeEnv sets changes in base and returns the result: a variable that is
// there keeps its place, a new one is appended, an entry without "=" removes the
// variable of that name from base.
func MergeEnv(base, changes []string) []string {
	at := make(map[string]int, len(base))
	out := make([]string, 0, len(base)+len(changes))
	for i, entry := range base {
		name, _, _ := strings.Cut(entry, "=")
		at[name] = i
		out = append(out, entry)
	}
	for _, entry := range changes {
		name, _, set := strings.Cut(entry, "=")
		i, known := at[name]
		switch {
		case set && known:
			out[i] = entry
		case set:
			// Compat: two changes of a variable that base does not have are both
			// kept, in order; the last one counts for the process.
			out = append(out, entry)
		case known:
			out[i] = ""
		}
	}
	kept := out[:0]
	for _, entry := range out {
		if entry != "" {
			kept = append(kept, entry)
		}
	}
	return kept
}
