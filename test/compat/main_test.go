package compat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Directories with programs: ours, theirs, and mixtures of links to both.
var oursBin, peerBin, oldPeerBin, busybox string

// peerTags are what the peer is built with; see go.mod and oldpeer/go.mod for
// the versions.
const peerTags = "no_btrfs,no_zfs,no_devmapper,no_aufs,seccomp"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "compat:", err)
			return 1
		}
		before := namespaceDirs()
		defer func() { removeNamespaceDirs(before) }()
		return m.Run()
	}())
}

// runtimeState has a directory for each namespace with containers.
const runtimeState = "/run/containerd/runc/"

func namespaceDirs() map[string]bool {
	names := map[string]bool{}
	entries, _ := os.ReadDir(runtimeState) // not there before the first container
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names
}

// removeNamespaceDirs removes the directories and cgroups of namespaces that were
// not there before. Runtimes leave them when the last container goes; what is not
// empty stays, and is found.
func removeNamespaceDirs(before map[string]bool) {
	for name := range namespaceDirs() {
		if before[name] {
			continue
		}
		for _, parent := range []string{runtimeState, "/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
			dirs, _ := filepath.Glob(parent + name)
			for _, dir := range dirs {
				os.Remove(dir)
			}
		}
	}
}

func prepare() error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	run := func(dir, name string, arg ...string) error {
		cmd := exec.Command(name, arg...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		return nil
	}
	oursBin, peerBin = filepath.Join(top, "bin"), filepath.Join(top, "bin", "peer")
	if dir := os.Getenv("BERTH_BIN"); dir != "" {
		oursBin = dir
	} else if err := run(top, filepath.Join(top, "scripts/build"), oursBin); err != nil {
		return err
	}
	cache := filepath.Join(top, "bin", "test")
	if err := run(top, filepath.Join(top, "scripts/busybox"), cache); err != nil {
		return err
	}
	busybox = filepath.Join(cache, "busybox")
	oldPeerBin = filepath.Join(peerBin, "1.7")
	if dir := os.Getenv("PEER_BIN"); dir != "" { // with the old one's programs in 1.7
		peerBin, oldPeerBin = dir, filepath.Join(dir, "1.7")
		return nil
	}
	if err := os.MkdirAll(peerBin, 0o755); err != nil {
		return err
	}
	const version = "-X github.com/containerd/containerd/v2/version.Version=v2.4.2"
	for name, pkg := range map[string]string{
		"containerd":              "github.com/containerd/containerd/v2/cmd/containerd",
		"containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"ctr":                     "github.com/containerd/containerd/v2/cmd/ctr",
		"runc":                    "github.com/opencontainers/runc",
	} {
		if err := run(".", "go", "build", "-tags", peerTags, "-ldflags", version, "-o", filepath.Join(peerBin, name), pkg); err != nil {
			return err
		}
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2"} {
		if err := run("oldpeer", "go", "build", "-tags", peerTags, "-o", filepath.Join(oldPeerBin, name), "github.com/containerd/containerd/cmd/"+name); err != nil {
			return err
		}
	}
	return nil
}
