package task

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

// peerShim finds containerd's own shim and runc: on the PATH, or where
// BERTH_PEER_BIN says.
func peerShim(t testing.TB) string {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if dir := os.Getenv("BERTH_PEER_BIN"); dir != "" {
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	}
	path, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Skip("needs containerd's containerd-shim-runc-v2 on the PATH or in BERTH_PEER_BIN")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc on the PATH or in BERTH_PEER_BIN")
	}
	return path
}

// hostRoot is the host's root, read-only, as a container's root filesystem.
func hostRoot() []object.Mount {
	return []object.Mount{{Type: "bind", Source: "/", Options: []string{"bind", "ro"}}}
}

// container is a record whose init runs a shell script.
func container(id, runtime, script string) object.Container {
	spec := map[string]any{
		"ociVersion": "1.1.0",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0},
			"args": []string{"/bin/sh", "-c", script},
			"env":  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			"cwd":  "/",
		},
		"root": map[string]any{"path": "rootfs", "readonly": true},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": map[string]any{
			"cgroupsPath": "/berth-task-test/" + id,
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "mount"},
				map[string]any{"type": "ipc"}, map[string]any{"type": "uts"},
			},
		},
	}
	data, _ := json.Marshal(spec)
	return object.Container{
		ID:      id,
		Runtime: object.Runtime{Name: runtime},
		Spec:    &object.Any{TypeURL: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: data},
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestContainerdShimLife(t *testing.T) {
	shim := peerShim(t)
	m, seen := newManager(t)
	ctx := within(t, 20*time.Second)
	c := container("life", shim, "exit 7")
	pid, err := m.Create(ctx, "ns", c, CreateOptions{Rootfs: hostRoot()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.State(ctx, "ns", "life", "")
	if err != nil || p.Status != object.TaskCreated || p.PID != pid || pid == 0 {
		t.Fatalf("state %+v, %v; want CREATED with PID %d", p, err, pid)
	}
	if _, err := m.Create(ctx, "ns", c, CreateOptions{}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second create: %v, want AlreadyExists", err)
	}
	wait := make(chan object.Exit, 1)
	go func() {
		e, err := m.Wait(ctx, "ns", "life", "")
		if err != nil {
			t.Error(err)
		}
		wait <- e
	}()
	if got, err := m.Start(ctx, "ns", "life", ""); err != nil || got != pid {
		t.Fatalf("start: PID %d, %v; want %d", got, err, pid)
	}
	if e := <-wait; e.Status != 7 || e.PID != pid || e.At.IsZero() {
		t.Fatalf("exit %+v, want status 7 of PID %d", e, pid)
	}
	if e, err := m.Delete(ctx, "ns", "life", ""); err != nil || e.Status != 7 {
		t.Fatalf("delete: %+v, %v; want status 7", e, err)
	}
	if _, err := m.State(ctx, "ns", "life", ""); !errdefs.IsNotFound(err) {
		t.Fatalf("state after delete: %v, want NotFound", err)
	}
	m.quiet(t)
	if n := len(seen()); n != 0 {
		t.Fatalf("the manager published %d events of its own for a clean life: %v", n, seen())
	}
	m.wantEmpty(t)
}

// quiet waits until the shims that were told to end have done so.
func (m *testManager) quiet(t testing.TB) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		m.mu.Lock()
		var s *shim
		for _, s = range m.shims {
			break
		}
		n := len(m.shims)
		m.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-s.dead:
		case <-deadline:
			t.Fatalf("shim at %s does not end", s.address)
		}
	}
}

// wantEmpty checks that no bundle, socket or mount is left.
func (m *testManager) wantEmpty(t testing.TB) {
	t.Helper()
	m.Close()
	for _, dir := range []string{m.opts.State, m.opts.Root} {
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			rel, _ := filepath.Rel(filepath.Join(dir, tasksDir), path)
			if d.Type()&os.ModeSocket != 0 || strings.Count(rel, "/") == 1 && !strings.HasPrefix(rel, "..") {
				t.Errorf("left behind: %s", path)
			}
			return nil
		})
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), m.opts.State) {
		t.Errorf("mounts left behind under %s", m.opts.State)
	}
}
