package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// idleKey is a key, or a whole table, that containerd acts on and this daemon
// does not, with what to do instead.
type idleKey struct {
	path   []string
	advice string
}

const noCRI = "this daemon does not serve CRI"

func idleKeys() []idleKey {
	const (
		noStore = "there is no such snapshotter here; use overlayfs, native, or one behind proxy_plugins"
		tasks   = "io.containerd.service.v1.tasks-service"
	)
	return []idleKey{
		{[]string{"plugin_dir"}, "plugins are no shared libraries since containerd 2.0; use proxy_plugins"},
		{[]string{"timeouts", TimeoutDeferCleanup}, noCRI},
		{[]string{"plugins", pluginCRI}, noCRI},
		{[]string{"plugins", pluginCRIImages}, noCRI},
		{[]string{"plugins", pluginCRIRuntime}, noCRI},
		{[]string{"plugins", "io.containerd.nri.v1.nri"}, noCRI},
		{[]string{"plugins", tasks, "blockio_config_file"}, noCRI},
		{[]string{"plugins", tasks, "rdt_config_file"}, noCRI},
		{[]string{"plugins", "io.containerd.snapshotter.v1.devmapper"}, noStore},
		{[]string{"plugins", "io.containerd.snapshotter.v1.zfs"}, noStore},
	}
}

// idle warns of what a file asks for in vain: of idle keys whose values are not
// the defaults, and of timeouts that nobody knows.
func (c *Config) idle(all *node) []Warning {
	var warnings []Warning
	fallback := Default()
	for _, k := range idleKeys() {
		n := all.at(k.path...)
		if n == nil || n.isZero() || c.Disabled(pluginCRI) && k.advice == noCRI {
			continue
		}
		usual := shown(fallback, k.path)
		if usual == none && n.saysNothing() {
			continue
		}
		if shown(c, k.path) != usual {
			warnings = append(warnings, n.warning("%s has no effect: %s", keyName(k.path), k.advice))
		}
	}
	known := fallback.Timeouts
	for _, name := range slices.Sorted(maps.Keys(c.Timeouts)) {
		if _, ok := known[name]; !ok {
			if n := all.at("timeouts", name); n != nil {
				warnings = append(warnings, n.warning("unknown timeout %q is ignored%s", name, didYouMean(name, maps.Keys(known))))
			}
		}
	}
	return warnings
}

// saysNothing tells whether there are only zero values below n: older versions
// of containerd write such tables for plugins that nobody uses.
func (n *node) saysNothing() bool {
	for _, child := range n.table {
		if !child.saysNothing() {
			return false
		}
	}
	return n.table != nil || n.isZero()
}

// none is what shown says of a table that is not there.
const none = "<nil>"

// shown is the value of a key as text, in which an empty list and none are one.
func shown(c *Config, path []string) string {
	v := reflect.ValueOf(c).Elem()
	for _, key := range path {
		switch v.Kind() {
		case reflect.Struct:
			v = fieldsOf(v)[key]
		case reflect.Map:
			v = v.MapIndex(reflect.ValueOf(key))
		}
	}
	return fmt.Sprintf("%+v", v)
}
