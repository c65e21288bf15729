package compat

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// configOf runs a config command of a daemon and decodes what it prints.
func configOf(t *testing.T, bin string, args ...string) map[string]any {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(filepath.Join(bin, "containerd"), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", bin, args, err, &stderr)
	}
	var m map[string]any
	if err := toml.Unmarshal(out, &m); err != nil {
		t.Fatalf("%s %v: %v", bin, args, err)
	}
	return m
}

// configDiffs lists the keys of which two configurations think differently.
func configDiffs(theirs, ours any, key string) []string {
	a, isA := theirs.(map[string]any)
	b, isB := ours.(map[string]any)
	if !isA || !isB {
		if fmt.Sprintf("%#v", theirs) != fmt.Sprintf("%#v", ours) {
			return []string{fmt.Sprintf("%s: %v there, %v here", key, theirs, ours)}
		}
		return nil
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, configDiffs(a[k], b[k], strings.TrimPrefix(key+"/"+k, "/"))...)
	}
	return out
}

// configOnPurpose are keys whose values differ, as docs/differences.md says.
var configOnPurpose = []string{
	"plugins/io.containerd.transfer.v1.local/max_concurrent_downloads: 3 there, 0 here",
	"plugins/io.containerd.transfer.v1.local/max_concurrent_unpacks: 1 there, 0 here",
	"timeouts/io.containerd.timeout.shim.cleanup: 5s there, 10s here",
}

func compareConfigs(t *testing.T, theirs, ours map[string]any, known ...string) {
	t.Helper()
	for _, d := range configDiffs(theirs, ours, "") {
		if !slices.Contains(configOnPurpose, d) && !slices.Contains(known, d) {
			t.Error(d)
		}
	}
}

// TestDefaultConfig: the same keys with the same values, and their daemon
// takes our file for its own.
func TestDefaultConfig(t *testing.T) {
	compareConfigs(t, configOf(t, peerBin, "config", "default"), configOf(t, oursBin, "config", "default"))
	out, err := exec.Command(filepath.Join(oursBin, "containerd"), "config", "default").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(peerBin, "containerd"), "-c", file, "config", "dump")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if _, err := cmd.Output(); err != nil || stderr.Len() > 0 {
		t.Errorf("their daemon says of our file: %v\n%s", err, &stderr)
	}
}

// TestMigrate: files of every version mean the same to both.
func TestMigrate(t *testing.T) {
	known := map[string][]string{
		"v4-misplaced.toml": {
			"grpc: map[address:/tmp/misplaced.sock] there, <nil> here",
			"metrics: map[address:127.0.0.1:1] there, <nil> here",
			"plugins/io.containerd.server.v1.grpc/address: /run/containerd/containerd.sock there, /tmp/misplaced.sock here",
			"plugins/io.containerd.server.v1.metrics/address:  there, 127.0.0.1:1 here",
			"plugins/io.containerd.server.v1.ttrpc/address: /run/containerd/containerd.sock.ttrpc there, /tmp/misplaced.sock.ttrpc here",
			"plugins/overlayfs: map[root_path:/x] there, <nil> here",
		},
		// A file of version 2 that gives the socket of ttrpc an owner moves it to nowhere.
		"owner.toml": {"plugins/io.containerd.server.v1.ttrpc/address:  there, /run/containerd/containerd.sock.ttrpc here"},
		// Of the socket's address only, in version 4.
		"v4.toml": {
			"plugins/io.containerd.server.v1.ttrpc/address: /run/containerd/containerd.sock.ttrpc there, /tmp/v4.sock.ttrpc here",
			"plugins/io.containerd.server.v1.ttrpc/gid: 0 there, 12 here",
		},
		// sched_core moves with the step to version 3, and is lost in the step to version 4.
		"v1-all.toml": {"plugins/io.containerd.shim.v1.manager/env: [] there, [SCHED_CORE=1] here"},
	}
	files, err := filepath.Glob("../../internal/config/testdata/*.toml")
	if err != nil {
		t.Fatal(err)
	}
	own, err := filepath.Glob("testdata/config/*.toml")
	if err != nil || len(own) < 4 || len(files) < 5 {
		t.Fatalf("found %d and %d files: %v", len(own), len(files), err)
	}
	for _, file := range append(files, own...) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			theirs, ours := configOf(t, peerBin, "-c", file, "config", "migrate"), configOf(t, oursBin, "-c", file, "config", "migrate")
			// What is disabled is not completed there.
			for _, plugin := range theirs["disabled_plugins"].([]any) {
				delete(theirs["plugins"].(map[string]any), plugin.(string))
				delete(ours["plugins"].(map[string]any), plugin.(string))
			}
			// A migrating daemon of theirs follows imports and lists what they import.
			delete(theirs, "imports")
			delete(ours, "imports")
			compareConfigs(t, theirs, ours, known[filepath.Base(file)]...)
		})
	}
}

// TestImports: files that import each other are laid over each other alike.
func TestImports(t *testing.T) {
	for _, file := range []string{"testdata/config/imports/main.toml", "testdata/config/imports/old.toml"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			compareConfigs(t, configOf(t, peerBin, "-c", file, "config", "dump"), configOf(t, oursBin, "-c", file, "config", "dump"),
				"proxy_plugins/s/exports/address: /b there, <nil> here") // they say so in the exports; here introspection does
		})
	}
}
