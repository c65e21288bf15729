package crash

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// traces lists what containers, shims and daemons leave on the host when they do
// not clean up. When no daemon runs and every task, container, image and lease
// was removed, there must be none.
func (m *machine) traces() []string {
	left := m.running()
	for pid, cmdline := range m.processes() {
		left = append(left, fmt.Sprintf("process %d %q", pid, strings.ReplaceAll(cmdline, "\x00", " ")))
	}
	return append(left, m.stored()...)
}

// running lists the traces of containers: there must be none when there are no
// tasks, while the daemon still runs.
func (m *machine) running() []string {
	var left []string
	for _, mount := range m.mounts() {
		left = append(left, "mount "+mount)
	}
	for _, pattern := range []string{
		"/run/containerd/runc/" + m.namespace + "/*",
		m.state("s", "*"),
		m.state("io.containerd.runtime.v2.task", m.namespace, "*"),
		m.state("io.containerd.runtime.v2.task", m.namespace, ".*"),
		m.root("io.containerd.runtime.v2.task", m.namespace, "*"),
		m.root("io.containerd.runtime.v2.task", m.namespace, ".*"),
		m.root("tmpmounts", "*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			left = append(left, f)
		}
	}
	left = append(left, m.cgroups()...)
	for id, pid := range m.shims() {
		left = append(left, fmt.Sprintf("shim %d of %s", pid, id))
	}
	return left
}

// stored lists blobs, ingests and the files of snapshots.
func (m *machine) stored() []string {
	var left []string
	for _, pattern := range []string{
		m.root("io.containerd.content.v1.content", "blobs", "*", "*"),
		m.root("io.containerd.content.v1.content", "ingest", "*"),
		m.root("io.containerd.content.v1.content", "ingest", ".*"),
		m.root("io.containerd.snapshotter.v1.*", "snapshots", "*"),
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	return left
}

// rehash reads every blob and compares its digest with its name.
func (m *machine) rehash() error {
	blobs, _ := filepath.Glob(m.root("io.containerd.content.v1.content", "blobs", "sha256", "*"))
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // collected meanwhile; what an image needs is looked for elsewhere
		}
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != filepath.Base(path) {
			return fmt.Errorf("blob %s has %d bytes that hash to %x", filepath.Base(path), len(data), sum)
		}
	}
	return nil
}

// settle waits until list is empty: the kernel frees cgroups, and processes end, a
// moment after what caused it.
func settle(list func() []string) error {
	deadline := time.Now().Add(5 * time.Second)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		left := list()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		time.Sleep(wait) // deliberate: nothing tells of the end of what was left behind
	}
}

func (m *machine) mounts() []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], m.dir) {
			out = append(out, f[4])
		}
	}
	return out
}

func (m *machine) unmountAll() {
	mounts := m.mounts()
	for i := len(mounts) - 1; i >= 0; i-- {
		syscall.Unmount(mounts[i], syscall.MNT_DETACH)
	}
}

// cgroups lists those of containers.
func (m *machine) cgroups() []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + m.namespace + "/*/cgroup.procs", "/sys/fs/cgroup/" + m.namespace + "/*/cgroup.procs"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	return dirs
}

// contained lists the processes in the cgroups of the machine's namespace.
func (m *machine) contained() []int {
	var pids []int
	for _, dir := range m.cgroups() {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for line := range bytes.Lines(b) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// removeTraces removes what a failed test left outside of the directory, and the
// namespace's own cgroups, which stay, as containerd has it. It lists what stays.
func (m *machine) removeTraces() []string {
	os.RemoveAll("/run/containerd/runc/" + m.namespace)
	dirs, left := m.cgroups(), []string(nil)
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + m.namespace, "/sys/fs/cgroup/" + m.namespace} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		if os.Remove(dir) != nil {
			left = append(left, dir)
		}
	}
	return left
}
