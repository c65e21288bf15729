package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzMerge: two files laid over each other are never a panic, and what comes
// out can be written and read again.
func FuzzMerge(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.toml")
	var seeds [][]byte
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, data)
	}
	for i := range seeds {
		f.Add(seeds[i], seeds[(i+1)%len(seeds)])
	}
	f.Add([]byte("plugins = 1\nimports = 2\ndebug = []\n"), []byte("[plugins.a]\n[debug]\nlevel = [1]\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		all := newTable(place{"all", 1, 1})
		for _, data := range [][]byte{a, b} {
			root, _, err := parseFile("fuzz", data)
			if err != nil {
				return
			}
			merge(all, root)
		}
		c, _, err := fromTree(all, nil)
		if err != nil {
			return
		}
		dump, err := c.TOML()
		if err != nil {
			t.Fatal(err)
		}
		if again, _, err := Parse("dump", dump); err != nil || len(Changes(c, again)) > 0 {
			t.Fatalf("%v, %v\n%s", err, Changes(c, again), dump)
		}
	})
}

func TestChanges(t *testing.T) {
	a, b := Default(), Default()
	b.Debug.Level = "warn"
	b.DisabledPlugins = []string{"a.b"}
	b.Timeouts["x.y"] = 5
	b.ProxyPlugins = map[string]ProxyPlugin{"p": {Type: "snapshot", Address: "/x"}}
	if got, want := Changes(a, b), []string{"debug.level", "disabled_plugins", "proxy_plugins", "timeouts.'x.y'"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestPlaces(t *testing.T) {
	for name, tc := range map[string]struct{ file, warning string }{
		"dotted key":       {"debug.levle = 'x'", `f:1:7: unknown key "debug.levle"`},
		"inline table":     {"x = 1\ndebug = { level = 'info', formt = 'y' }", `f:2:27: unknown key "debug.formt"`},
		"list of tables":   {"version = 4\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'a'\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshoter = 'b'", `f:5:1: unknown key "plugins.'io.containerd.transfer.v1.local'.unpack_config.snapshoter" is ignored; did you mean snapshotter?`},
		"old name":         {"version = 2\n[plugins.cri]\nx = 1", `f:2:10: [plugins.cri] is ignored`},
		"legacy table":     {"version = 2\n[grpc]\nadress = 'x'", `f:3:1: unknown key "grpc.adress" is ignored; did you mean address?`},
		"plugin of a name": {"version = 2\n[plugins.'io.containerd.snapshotter.v1.overlay']\nx = 1", `did you mean 'io.containerd.snapshotter.v1.overlayfs'?`},
		"timeout":          {"[timeouts]\n'io.containerd.timeout.shim.lod' = '1s'", `f:2:1: unknown timeout`},
		"plugin_dir":       {"plugin_dir = '/x'", `f:1:1: plugin_dir has no effect`},
		"no CRI":           {"version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nenable_selinux = true", `f:2:10: plugins.'io.containerd.cri.v1.runtime' has no effect`},
		"old tracing":      {"version = 2\n[plugins.'io.containerd.tracing.processor.v1.otlp']\nendpoint = 'x'", `OTEL_EXPORTER_OTLP_ENDPOINT`},
	} {
		t.Run(name, func(t *testing.T) {
			_, warnings, err := Parse("f", []byte(tc.file))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(warnings, func(w Warning) bool { return strings.Contains(w.String(), tc.warning) }) {
				t.Errorf("%v, want %q", warnings, tc.warning)
			}
		})
	}
}

// TestUnusedTables: what older versions write by default, for snapshotters that
// nobody has asked for, is not warned of; what is asked for is.
func TestUnusedTables(t *testing.T) {
	for file, warned := range map[string]bool{
		"version = 2\n[plugins.'io.containerd.snapshotter.v1.devmapper']\nroot_path = ''\nasync_remove = false\n[plugins.'io.containerd.snapshotter.v1.zfs']\nroot_path = ''\n": false,
		"version = 2\n[plugins.'io.containerd.snapshotter.v1.devmapper']\nroot_path = ''\nasync_remove = true\n":                                                                true,
		"version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nenable_criu = false\n":                                                                                          true,
	} {
		if _, warnings, err := Parse("f", []byte(file)); err != nil || len(warnings) > 0 != warned {
			t.Errorf("%s: %v, %v", file, warnings, err)
		}
	}
}

// TestDefaultsAreNotWarnedOf: the file that config default writes is in order.
func TestDefaultsAreNotWarnedOf(t *testing.T) {
	data, err := Default().Commented()
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Parse("default", data)
	if err != nil || len(warnings) > 0 || len(Changes(c, Default())) > 0 {
		t.Errorf("%v, %v, %v", err, warnings, Changes(c, Default()))
	}
}

func TestRenamedInLists(t *testing.T) {
	c, _, err := Parse("f", []byte("version = 2\ndisabled_plugins = ['io.containerd.internal.v1.restart', 'io.containerd.monitor.v1.cgroups']\n"))
	if err != nil || !c.Disabled("io.containerd.monitor.container.v1.restart") || !c.Disabled("io.containerd.monitor.task.v1.cgroups") {
		t.Errorf("%v, %v", c, err)
	}
}

// BenchmarkLoad is the part of the daemon's start that reads a typical file.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, _, err := Load("testdata/v2-kubernetes.toml"); err != nil {
			b.Fatal(err)
		}
	}
}
