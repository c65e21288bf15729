package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCDI(t *testing.T) {
	dir := t.TempDir()
	write := func(name, s string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func() Inventory {
		t.Helper()
		inv, err := OpenInventory(dir)
		if err != nil {
			t.Fatal(err)
		}
		return inv
	}
	if _, err := open().GPUs(0); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "nvidia-ctk") {
		t.Errorf("GPUs of an empty host: %v", err)
	}
	write("broken.json", "{")
	write("amd.json", `{"cdiVersion":"0.5.0","kind":"amd.com/gpu","devices":[{"name":"0","containerEdits":{"env":["AMD=0"]}}]}`)
	write("nv.json", `{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[
		{"name":"0","containerEdits":{"env":["GPU=0"],"deviceNodes":[{"path":"/dev/null"}],"mounts":[{"hostPath":"/usr/lib","containerPath":"/usr/local/nvidia","options":["ro","bind"]}]}},
		{"name":"1","containerEdits":{"env":["GPU1=1"]}}],"containerEdits":{"env":["ALL=yes"]}}`)
	inv := open()
	names, err := inv.GPUs(0, 1)
	if err != nil || !slices.Equal(names, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}) {
		t.Fatalf("%q, %v", names, err)
	}
	s, err := Build(Container{ID: "x", Namespace: "default", CDI: inv, CDIDevices: names})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []string{"GPU=0", "GPU1=1", "ALL=yes"} {
		if !slices.Contains(s.Process.Env, e) {
			t.Errorf("no %s in %q", e, s.Process.Env)
		}
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/null" || s.Mounts[len(s.Mounts)-1].Destination != "/usr/local/nvidia" {
		t.Errorf("devices %+v, mounts %+v", s.Linux.Devices, s.Mounts)
	}
	_, err = Build(Container{CDI: inv, CDIDevices: []string{"nvidia.com/gpu=7"}})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "nvidia.com/gpu=7; there are: amd.com/gpu=0, nvidia.com/gpu=0") {
		t.Errorf("unknown device: %v", err)
	}
}

func TestLoadApparmorNames(t *testing.T) {
	for _, name := range []string{"", "a b", "../x", "a{b", "a\nb"} {
		if err := LoadApparmor(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
