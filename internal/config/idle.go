package config

import (
	"fmt"
	"maps"
	"slices"
)

// idleKeys are keys that containerd acts on and this daemon does not, with
// what to do instead. A key is warned of when a file gives it a value that is
// not the default.
func idleKeys() map[string]string {
	return map[string]string{
		"plugin_dir": "plugins are no shared libraries since containerd 2.0; use proxy_plugins",
	}
}

// idle warns of what a file asks for in vain.
func (c *Config) idle(all *node) []Warning {
	var warnings []Warning
	for key, advice := range idleKeys() {
		if n := all.at(key); n != nil && !n.isZero() {
			warnings = append(warnings, n.warning("%s has no effect: %s", keyName([]string{key}), advice))
		}
	}
	known := Default().Timeouts
	for _, name := range slices.Sorted(maps.Keys(c.Timeouts)) {
		if _, ok := known[name]; !ok {
			if n := all.at("timeouts", name); n != nil {
				warnings = append(warnings, n.warning("unknown timeout %q is ignored%s", name, didYouMean(name, maps.Keys(known))))
			}
		}
	}
	for _, k := range idlePluginKeys() {
		n := all.at("plugins", k.plugin, k.key)
		if k.key == "" {
			n = all.at("plugins", k.plugin)
		}
		if n == nil || n.isZero() || fmt.Sprint(n.plain()) == k.fallback {
			continue
		}
		what := keyName([]string{"plugins", k.plugin})
		if k.key != "" {
			what = keyName([]string{"plugins", k.plugin, k.key})
		}
		warnings = append(warnings, n.warning("%s has no effect: %s", what, k.advice))
	}
	return warnings
}

// idlePluginKeys are keys of plugins' tables without effect; an empty key means
// the whole table. fallback is a value that is not warned of.
func idlePluginKeys() []struct{ plugin, key, fallback, advice string } {
	const noRDT = "this daemon does not set classes of block IO and RDT"
	return []struct{ plugin, key, fallback, advice string }{
		{"io.containerd.service.v1.tasks-service", "blockio_config_file", "", noRDT},
		{"io.containerd.service.v1.tasks-service", "rdt_config_file", "", noRDT},
		{"io.containerd.snapshotter.v1.blockfile", "scratch_file", "", "there is no blockfile snapshotter; use overlayfs, native, or one behind proxy_plugins"},
		{"io.containerd.snapshotter.v1.devmapper", "", "", "there is no devmapper snapshotter; use overlayfs, native, or one behind proxy_plugins"},
		{"io.containerd.snapshotter.v1.zfs", "", "", "there is no zfs snapshotter; use overlayfs, native, or one behind proxy_plugins"},
	}
}
