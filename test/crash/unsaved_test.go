package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestShimKilledBeforeState: a shim that is killed while the OCI runtime makes the
// container, its cgroups being there and its state not yet, leaves nothing, whether
// the daemon sees that or the next one finds it. A hook is where that moment can be
// had: it runs just then, as a child of the shim.
func TestShimKilledBeforeState(t *testing.T) {
	for _, with := range []string{"the shim alone", "the daemon as well"} {
		t.Run(strings.ReplaceAll(with, " ", "-"), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.start()
			first := ""
			if with == "the daemon as well" {
				first = fmt.Sprint(m.daemon.Process.Pid)
			}
			seen := filepath.Join(m.dir, "seen")
			config := m.specWithHook("c", fmt.Sprintf(
				`ls -d /sys/fs/cgroup/%[1]s/c /sys/fs/cgroup/*/%[1]s/c /run/containerd/runc/%[1]s/c/* >%[2]s 2>/dev/null; kill -9 %[3]s $PPID`,
				m.namespace, seen, first))
			_, _, died := m.ctr("run", "-d", "--null-io", "--config", config, "c")
			if died == nil {
				t.Fatal("ctr run has succeeded")
			}
			there, err := os.ReadFile(seen)
			if err != nil || !strings.Contains(string(there), "/sys/fs/cgroup/") || strings.Contains(string(there), "state.json") {
				t.Fatalf("it was not the moment between cgroups and state: %v, %v\n%s", died, err, there)
			}
			if first != "" {
				<-m.exited
				m.kill()
				m.start()
			}
			w := newWorkload(m, "")
			if err := w.awaitStatus("c", ""); err != nil {
				t.Fatal(err)
			}
			// Also while the daemon goes on, of which nobody asks anything.
			if err := settle(m.running); err != nil {
				t.Error(err)
			}
			if err := w.clear(); err != nil {
				t.Error(err)
			}
		})
	}
}

// specWithHook writes a config.json with a script that runs while the container is made.
func (m *machine) specWithHook(id, script string) (path string) {
	m.t.Helper()
	var spec map[string]any
	if err := json.Unmarshal([]byte(m.must("oci", "spec")), &spec); err != nil {
		m.t.Fatal(err)
	}
	root := filepath.Join(m.dir, "rootfs-"+id)
	spec["process"].(map[string]any)["args"] = []string{"true"} // it is not come to
	spec["root"] = map[string]any{"path": root}
	spec["hooks"] = map[string]any{"createRuntime": []any{map[string]any{"path": "/bin/sh", "args": []string{"sh", "-c", script}}}}
	spec["linux"].(map[string]any)["cgroupsPath"] = "/" + m.namespace + "/" + id
	raw, err := json.Marshal(spec)
	if err != nil {
		m.t.Fatal(err)
	}
	path = filepath.Join(m.dir, id+".json")
	if err := os.Mkdir(root, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}
