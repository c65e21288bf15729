package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Tables that move with the versions.
const (
	pluginCRI        = "io.containerd.grpc.v1.cri"
	pluginCRIImages  = "io.containerd.cri.v1.images"
	pluginCRIRuntime = "io.containerd.cri.v1.runtime"
	pluginTask       = "io.containerd.runtime.v2.task"
	pluginShims      = "io.containerd.shim.v1.manager"
	pluginGRPC       = "io.containerd.server.v1.grpc"
	pluginTCP        = "io.containerd.server.v1.grpc-tcp"
	pluginTTRPC      = "io.containerd.server.v1.ttrpc"
	pluginDebug      = "io.containerd.server.v1.debug"
	pluginMetrics    = "io.containerd.server.v1.metrics"
	pluginHistogram  = "io.containerd.metrics.v1.grpc-prometheus"
)

// shortNames are what plugins were called in version 1.
func shortNames() map[string]string {
	return map[string]string{
		"cri":       pluginCRI,
		"cgroups":   "io.containerd.monitor.v1.cgroups",
		"linux":     "io.containerd.runtime.v1.linux",
		"scheduler": "io.containerd.gc.v1.scheduler",
		"bolt":      "io.containerd.metadata.v1.bolt",
		"task":      pluginTask,
		"opt":       "io.containerd.internal.v1.opt",
		"restart":   "io.containerd.internal.v1.restart",
		"tracing":   "io.containerd.internal.v1.tracing",
		"otlp":      "io.containerd.tracing.processor.v1.otlp",
		"aufs":      "io.containerd.snapshotter.v1.aufs",
		"btrfs":     "io.containerd.snapshotter.v1.btrfs",
		"devmapper": "io.containerd.snapshotter.v1.devmapper",
		"native":    "io.containerd.snapshotter.v1.native",
		"overlayfs": "io.containerd.snapshotter.v1.overlayfs",
		"zfs":       "io.containerd.snapshotter.v1.zfs",
	}
}

// renamed are plugins whose names have changed: old → now. The lists of
// disabled and required plugins take both.
func renamed() map[string]string {
	return map[string]string{
		"io.containerd.monitor.v1.cgroups":  "io.containerd.monitor.task.v1.cgroups",
		"io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
	}
}

// longName is the name since version 2 of a plugin of version 1.
func longName(short string) string {
	switch long, ok := shortNames()[short]; {
	case ok:
		return long
	case strings.Contains(short, "."):
		return short
	case strings.HasSuffix(short, "-service"):
		return "io.containerd.service.v1." + short
	case short == "windows" || short == "windows-lcow":
		return "io.containerd.snapshotter.v1." + short
	default:
		return "io.containerd.grpc.v1." + short
	}
}

// migrate brings the tree of one file from its version to the newest. What is
// in its new place already wins over what is in the old.
func migrate(root *node, version int) []Warning {
	m := migration{root: root, version: version}
	if p := root.table["plugins"]; p == nil {
		root.table["plugins"] = newTable(root.place)
	} else if p.table == nil {
		return nil // decoding refuses it
	}
	m.plugins = root.table["plugins"].table
	if version < 2 {
		m.lengthen()
	} else {
		m.reportShort()
	}
	if version < Version {
		m.movePlugins()
	}
	m.moveServers()
	return m.warnings
}

type migration struct {
	root     *node
	plugins  map[string]*node
	version  int
	warnings []Warning
}

func (m *migration) lengthen() {
	for _, name := range slices.Sorted(maps.Keys(m.plugins)) {
		if long := longName(name); long != name {
			if m.plugins[long] == nil {
				m.plugins[long] = m.plugins[name]
			}
			delete(m.plugins, name)
		}
	}
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		if n := m.root.at(list); n != nil {
			for _, e := range n.list {
				if s, ok := e.value.(string); ok {
					e.value = longName(s)
				}
			}
		}
	}
}

// reportShort warns of tables that had an effect in version 1 only.
func (m *migration) reportShort() {
	for short, long := range shortNames() {
		if n := m.plugins[short]; n != nil {
			m.warnings = append(m.warnings, n.warning("[plugins.%s] is ignored: since version 2 its name is '%s'", short, long))
			delete(m.plugins, short)
		}
	}
}

func (m *migration) movePlugins() {
	for old, now := range renamed() {
		if n := m.plugins[old]; n != nil {
			m.plugins[now] = n
			delete(m.plugins, old)
		}
	}
	if n := m.plugins[pluginTask].at("sched_core"); n != nil {
		delete(m.plugins[pluginTask].table, "sched_core")
		if n.value == true && m.plugins[pluginShims].at("env") == nil {
			m.table(pluginShims, n.place)["env"] = &node{place: n.place, list: []*node{{place: n.place, value: "SCHED_CORE=1"}}}
		}
	}
	if cri := m.plugins[pluginCRI]; cri != nil && cri.table != nil {
		m.splitCRI(cri)
	}
}

// table returns the table of a plugin, which is made when there is none.
func (m *migration) table(plugin string, at place) map[string]*node {
	if n := m.plugins[plugin]; n != nil && n.table != nil {
		return n.table
	}
	n := newTable(at)
	m.plugins[plugin] = n
	return n.table
}

func (m *migration) legacy(table string) map[string]*node {
	if n := m.root.at(table); n != nil {
		return n.table
	}
	return nil
}

// moveServers moves the tables of sockets, which have been plugins' since
// version 4. A file of version 4 that has them means them: it is warned of.
//
// Differs from containerd: it ignores them in version 4 without a word.
func (m *migration) moveServers() {
	grpc, ttrpc, debug, metrics := m.legacy("grpc"), m.legacy("ttrpc"), m.legacy("debug"), m.legacy("metrics")
	socket := []string{"address", "uid", "gid"}
	limits := []string{"max_recv_message_size", "max_send_message_size"}

	hadTTRPC := m.plugins[pluginTTRPC] != nil
	m.move("grpc", grpc, pluginGRPC, append(socket, limits...), "")
	if isSet(grpc["tcp_address"]) {
		m.move("grpc", grpc, pluginTCP, append([]string{"tcp_address", "tcp_tls_ca", "tcp_tls_cert", "tcp_tls_key", "tcp_tls_common_name"}, limits...), "tcp_")
	}
	m.move("ttrpc", ttrpc, pluginTTRPC, socket, "")
	if isSet(grpc["address"]) && !hadTTRPC {
		m.besideGRPC(grpc)
	}
	if isSet(debug["address"]) {
		m.move("debug", debug, pluginDebug, socket, "")
	}
	m.move("metrics", metrics, pluginMetrics, []string{"address"}, "")
	m.move("metrics", metrics, pluginHistogram, []string{"grpc_histogram"}, "")

	for _, table := range []struct {
		name string
		keys []string
	}{
		{"grpc", append([]string{"tcp_address", "tcp_tls_ca", "tcp_tls_cert", "tcp_tls_key", "tcp_tls_common_name"}, append(socket, limits...)...)},
		{"ttrpc", socket},
		{"debug", socket},
		{"metrics", []string{"address", "grpc_histogram"}},
	} {
		m.drop(table.name, table.keys)
	}
}

func isSet(n *node) bool { return n != nil && !n.isZero() }

// move copies the keys that say something to a plugin that has no table yet.
func (m *migration) move(table string, from map[string]*node, plugin string, keys []string, prefix string) {
	if m.plugins[plugin] != nil {
		return
	}
	moved := newTable(m.root.place)
	for _, key := range keys {
		n := from[key]
		// Without an address a zero owner means nothing.
		if n == nil || n.isZero() && !(isSet(from["address"]) && (key == "uid" || key == "gid")) {
			continue
		}
		if m.version >= Version && len(moved.table) == 0 {
			m.warnings = append(m.warnings, n.warning("[%s] belongs to versions before 4; in version %d it is [plugins.'%s']", table, m.version, plugin))
		}
		moved.place = n.place
		moved.table[strings.TrimPrefix(key, prefix)] = n
	}
	if len(moved.table) > 0 {
		m.plugins[plugin] = moved
	}
}

// besideGRPC places the ttrpc socket beside the gRPC socket, as files before
// version 4 have it.
func (m *migration) besideGRPC(grpc map[string]*node) {
	address, ok := grpc["address"].value.(string)
	to := m.table(pluginTTRPC, grpc["address"].place)
	if !ok || to["address"] != nil {
		return
	}
	to["address"] = &node{place: grpc["address"].place, value: address + ".ttrpc"}
	for _, owner := range []string{"uid", "gid"} {
		if !isSet(to[owner]) && grpc[owner] != nil {
			to[owner] = grpc[owner]
		}
	}
}

// drop removes what has been moved, and warns of what nobody knows.
func (m *migration) drop(table string, keys []string) {
	n := m.root.at(table)
	if n == nil || n.table == nil {
		return
	}
	for _, key := range keys {
		delete(n.table, key)
	}
	if table == "debug" {
		return // the rest of it stays
	}
	for _, key := range slices.Sorted(maps.Keys(n.table)) {
		m.warnings = append(m.warnings, n.table[key].warning("unknown key %q is ignored%s", keyName([]string{table, key}), didYouMean(key, slices.Values(keys))))
	}
	delete(m.root.table, table)
}

// splitCRI gives the table of CRI's older versions to the plugins that it has
// been since version 3: images, runtime, and the streaming server.
func (m *migration) splitCRI(cri *node) {
	server := []string{"disable_tcp_service", "stream_server_address", "stream_server_port", "stream_idle_timeout", "enable_tls_streaming", "x509_key_pair_streaming"}
	toImages := []string{"registry", "image_decryption", "max_concurrent_downloads", "image_pull_progress_timeout", "image_pull_with_sync_fs", "stats_collect_period"}

	images := m.table(pluginCRIImages, cri.place)
	runtime := m.table(pluginCRIRuntime, cri.place)
	if n := cri.table["sandbox_image"]; n != nil {
		pinned := images["pinned_images"]
		if pinned == nil || pinned.table == nil {
			pinned = newTable(n.place)
			images["pinned_images"] = pinned
		}
		pinned.table["sandbox"] = n
	}
	for _, key := range toImages {
		if n := cri.table[key]; n != nil {
			images[key] = n
		}
	}
	for key, n := range cri.table {
		moved := slices.Contains(server, key) || slices.Contains(toImages, key)
		if moved || key == "sandbox_image" || key == "enable_cdi" || key == "cni" || key == "containerd" {
			continue
		}
		setMissing(runtime, key, n)
	}
	if cni := cri.table["cni"]; cni != nil {
		moveCNI(runtime, cni)
	}
	if c := cri.table["containerd"]; c != nil && c.table != nil {
		moveRuntimes(images, runtime, c)
	}
	for key := range cri.table {
		if !slices.Contains(server, key) {
			delete(cri.table, key)
		}
	}
}

func setMissing(to map[string]*node, key string, n *node) {
	if to[key] == nil {
		to[key] = n
	}
}

// within returns the table of a key, which is made when there is none.
func within(to map[string]*node, key string, at place) map[string]*node {
	if n := to[key]; n != nil && n.table != nil {
		return n.table
	}
	to[key] = newTable(at)
	return to[key].table
}

func moveCNI(runtime map[string]*node, cni *node) {
	to := within(runtime, "cni", cni.place)
	for key, n := range cni.table {
		if key != "bin_dir" {
			setMissing(to, key, n)
		}
	}
	if dir := cni.table["bin_dir"]; dir != nil && to["bin_dirs"] == nil {
		to["bin_dirs"] = &node{place: dir.place, list: []*node{dir}}
	}
}

func moveRuntimes(images, runtime map[string]*node, c *node) {
	to := within(runtime, "containerd", c.place)
	for key, n := range c.table {
		switch key {
		case "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers":
			images[key] = n
		default:
			setMissing(to, key, n)
		}
	}
	runtimes := to["runtimes"]
	if runtimes == nil {
		return
	}
	for _, r := range runtimes.table {
		if mode := r.at("sandbox_mode"); mode != nil && r.table["sandboxer"] == nil {
			r.table["sandboxer"] = mode
			delete(r.table, "sandbox_mode")
		}
	}
}

// versionOf reads the version of a file; 0, for none, means 1.
func versionOf(root *node) (int, error) {
	n := root.table["version"]
	if n == nil {
		return 0, nil
	}
	v, ok := n.value.(int64)
	if !ok {
		return 0, fmt.Errorf("%s: %w", n.place, invalid("version", "a whole number expected, found %s", n.kind()))
	}
	if v < 0 || v > Version {
		return 0, fmt.Errorf("%s: %w", n.place, invalid("version", "expected containerd config version equal to or less than `%d`, got `%d`", Version, v))
	}
	return int(v), nil
}
