package compat

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPairs runs every script with every mixture of our programs and theirs.
func TestPairs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	scripts := filepath.Join(t.TempDir(), "script.test")
	build := exec.Command("go", "test", "-c", "-o", scripts, "./test/script")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, pair := range []struct {
		name              string
		daemon, shim, ctr string
	}{
		{"their ctr, our daemon", oursBin, oursBin, peerBin},
		{"our ctr, their daemon", peerBin, peerBin, oursBin},
		{"their daemon, our shim", peerBin, oursBin, peerBin},
		{"our daemon, their shim", oursBin, peerBin, oursBin},
	} {
		t.Run(pair.name, func(t *testing.T) {
			t.Parallel() // they wait more than they compute
			dir := t.TempDir()
			link := func(from, name, to string) {
				if err := os.Symlink(filepath.Join(from, name), filepath.Join(dir, to)); err != nil {
					t.Fatal(err)
				}
			}
			// The daemon looks for its shim in its PATH, the directory's; a
			// wrapper would change its executable's name, a link does not.
			link(pair.daemon, "containerd", "containerd")
			link(pair.shim, "containerd-shim-runc-v2", "containerd-shim-runc-v2")
			link(pair.ctr, "ctr", "ctr")
			link(peerBin, "runc", "runc")
			cmd := exec.Command(scripts, "-test.timeout=10m", "-test.run=^(TestScripts|TestNothingLeft)$")
			cmd.Dir = "../script" // of the main module
			cmd.Env = append(os.Environ(), "BERTH_BIN="+dir, "BERTH_CTR="+filepath.Join(dir, "ctr"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
