package config

import "reflect"

// merge lays a file that is imported (or the first, over nothing) over what
// was read before it, by containerd's rules:
//
//   - imports, disabled_plugins, required_plugins: joined;
//   - timeouts, stream_processors, proxy_plugins: an entry replaces the whole
//     entry of its name;
//   - plugins: tables are merged key by key at any depth; any other value
//     replaces, a list and a zero value too;
//   - everything else: a value replaces unless it is zero ("", 0, false).
func merge(to, from *node) {
	for key, f := range from.table {
		t := to.table[key]
		if t == nil || t.kindOf() != f.kindOf() {
			if t == nil || !f.isZero() {
				to.table[key] = f
			}
			continue
		}
		switch key {
		case "imports", "disabled_plugins", "required_plugins":
			t.join(f)
		case "timeouts", "stream_processors", "proxy_plugins":
			for name, entry := range f.table {
				t.table[name] = entry
			}
		case "plugins":
			t.mergeDeep(f)
		default:
			if f.table == nil {
				if !f.isZero() {
					to.table[key] = f
				}
				continue
			}
			for name, value := range f.table {
				if t.table[name] == nil || !value.isZero() {
					t.table[name] = value
				}
			}
		}
	}
}

func (n *node) kindOf() int {
	switch {
	case n.table != nil:
		return 1
	case n.list != nil:
		return 2
	}
	return 0
}

func (n *node) mergeDeep(from *node) {
	for key, f := range from.table {
		if t := n.table[key]; t != nil && t.table != nil && f.table != nil {
			t.mergeDeep(f)
			continue
		}
		n.table[key] = f
	}
}

// join appends the elements of a list that are not in n yet.
func (n *node) join(from *node) {
	for _, f := range from.list {
		found := false
		for _, t := range n.list {
			found = found || reflect.DeepEqual(t.plain(), f.plain())
		}
		if !found {
			n.list = append(n.list, f)
		}
	}
}
