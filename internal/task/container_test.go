package task

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/task/shimproc"

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

// withShims runs a test with Berth's shim, and with containerd's and runc.
func withShims(t *testing.T, test func(t *testing.T, shim string)) {
	t.Run("ours", func(t *testing.T) { test(t, ourShim(t)) })
	t.Run("containerd", func(t *testing.T) { test(t, peerShim(t)) })
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
			"cgroupsPath": "/berth-task-test-" + id,
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

func TestContainerLife(t *testing.T) { withShims(t, inLife) }

func inLife(t *testing.T, shim string) {
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

func TestContainerRestart(t *testing.T) { withShims(t, inRestart) }

func inRestart(t *testing.T, shim string) {
	m, _ := newManager(t)
	ctx := within(t, 30*time.Second)
	signal := filepath.Join(m.dir(), "go")
	for id, script := range map[string]string{
		"stays":   "exec sleep 100",
		"ends":    "while [ ! -e " + signal + " ]; do sleep 0.01; done; exit 3",
		"orphan":  "exec sleep 100",
		"created": "exit 0",
	} {
		if _, err := m.Create(ctx, "ns", container(id, shim, script), CreateOptions{Rootfs: hostRoot()}); err != nil {
			t.Fatal(err)
		}
		if id == "created" {
			continue
		}
		if _, err := m.Start(ctx, "ns", id, ""); err != nil {
			t.Fatal(err)
		}
	}
	orphan := m.task("orphan")
	who, err := orphan.shim.learnProcess(ctx, orphan)
	if err != nil {
		t.Fatal(err)
	}
	ending, err := shimproc.Open(int(m.task("ends").pid))
	if err != nil {
		t.Fatal(err)
	}
	// The container keeps its shim from being alone in the bundle's cgroup: both
	// the shim's death and the container's end happen while no daemon is there.
	init, err := shimproc.Open(int(who.TaskPid))
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-ending.Exited
	if p, err := shimproc.Open(int(who.ShimPid)); err == nil {
		p.Kill()
		<-p.Exited
	}
	m, seen := m.reopen(t)
	if err := m.Recover(ctx, []string{"ns"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-init.Exited:
	case <-ctx.Done():
		t.Error("the container of the dead shim still runs")
	}
	if e, err := m.Wait(ctx, "ns", "ends", ""); err != nil || e.Status != 3 {
		t.Errorf("ended meanwhile: %+v, %v; want status 3", e, err)
	}
	if p, err := m.State(ctx, "ns", "stays", ""); err != nil || p.Status != object.TaskRunning {
		t.Errorf("stays: %+v, %v", p, err)
	}
	if p, err := m.State(ctx, "ns", "created", ""); err != nil || p.Status != object.TaskCreated {
		t.Errorf("created: %+v, %v", p, err)
	}
	if _, err := m.State(ctx, "ns", "orphan", ""); !errdefs.IsNotFound(err) {
		t.Errorf("orphan: %v, want NotFound", err)
	}
	if err := m.Kill(ctx, "ns", "stays", "", 9, false); err != nil {
		t.Error(err)
	}
	if e, err := m.Wait(ctx, "ns", "stays", ""); err != nil || e.Status != 137 {
		t.Errorf("killed: %+v, %v", e, err)
	}
	for _, id := range []string{"stays", "ends", "created"} {
		if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
			t.Error(err)
		}
	}
	m.quiet(t)
	exits := map[string]bool{}
	for _, e := range seen() {
		if e.Topic == "/tasks/exit" {
			exits[string(e.Body.Value)] = true
		}
	}
	// A shim that had not yet noticed the end when it was asked publishes it itself.
	if len(exits) != 2 && len(exits) != 1 {
		t.Errorf("%d exits published, want those of what ended meanwhile", len(exits))
	}
	m.wantEmpty(t)
}

func TestContainerExec(t *testing.T) { withShims(t, inExec) }

func inExec(t *testing.T, shim string) {
	m, _ := newManager(t)
	ctx := within(t, 20*time.Second)
	m.sleeping(ctx, t, shim)
	process, _ := json.Marshal(map[string]any{
		"user": map[string]any{"uid": 0, "gid": 0},
		"args": []string{"/bin/sh", "-c", "exit 5"},
		"env":  []string{"PATH=/usr/bin:/bin"}, "cwd": "/",
	})
	spec := object.Any{TypeURL: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: process}
	if err := m.Exec(ctx, "ns", "c", "e", ExecOptions{Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if err := m.Exec(ctx, "ns", "c", "e", ExecOptions{Spec: spec}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second exec: %v, want AlreadyExists", err)
	}
	if err := m.Exec(ctx, "ns", "c", "../e", ExecOptions{Spec: spec}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad exec ID: %v, want InvalidArgument", err)
	}
	if pid, err := m.Start(ctx, "ns", "c", "e"); err != nil || pid == 0 {
		t.Fatalf("start: %d, %v", pid, err)
	}
	if e, err := m.Wait(ctx, "ns", "c", "e"); err != nil || e.Status != 5 {
		t.Errorf("wait: %+v, %v", e, err)
	}
	if e, err := m.Delete(ctx, "ns", "c", "e"); err != nil || e.Status != 5 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	if pids, err := m.Pids(ctx, "ns", "c"); err != nil || len(pids) != 1 {
		t.Errorf("pids: %v, %v", pids, err)
	}
	if s, _, err := m.Stats(ctx, "ns", "c"); err != nil || s.TypeURL == "" {
		t.Errorf("stats: %v, %v", s.TypeURL, err)
	}
	if err := m.Pause(ctx, "ns", "c"); err != nil {
		t.Error(err)
	}
	if p, err := m.State(ctx, "ns", "c", ""); err != nil || p.Status != object.TaskPaused {
		t.Errorf("paused: %v, %v", p.Status, err)
	}
	if err := m.Resume(ctx, "ns", "c"); err != nil {
		t.Error(err)
	}
	if err := m.Kill(ctx, "ns", "c", "", 9, true); err != nil {
		t.Error(err)
	}
	if _, err := m.Wait(ctx, "ns", "c", ""); err != nil {
		t.Error(err)
	}
	if _, err := m.Delete(ctx, "ns", "c", ""); err != nil {
		t.Error(err)
	}
	m.quiet(t)
	m.wantEmpty(t)
}

// sleeping starts the container c, which does nothing.
func (m *testManager) sleeping(ctx context.Context, t *testing.T, shim string) {
	t.Helper()
	if _, err := m.Create(ctx, "ns", container("c", shim, "exec sleep 100"), CreateOptions{Rootfs: hostRoot()}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(ctx, "ns", "c", ""); err != nil {
		t.Fatal(err)
	}
}

// The shim of a running container is killed: the container goes with it.
func TestContainerShimKilled(t *testing.T) { withShims(t, inKilled) }

func inKilled(t *testing.T, shim string) {
	m, seen := newManager(t)
	ctx := within(t, 20*time.Second)
	m.sleeping(ctx, t, shim)
	c := m.task("c")
	who, err := c.shim.learnProcess(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	init, err := shimproc.Open(int(who.TaskPid))
	if err != nil {
		t.Fatal(err)
	}
	go c.shim.kill(c.bundle)
	e, err := m.Wait(ctx, "ns", "c", "")
	if err != nil || e.Status != 137 || e.PID != who.TaskPid {
		t.Errorf("wait: %+v, %v; want status 137 of PID %d", e, err, who.TaskPid)
	}
	if !init.HasExited() {
		<-init.Exited // the wait above must not be before the end by much
	}
	m.wantEmpty(t)
	if n := len(seen()); n != 2 {
		t.Errorf("%d events, want exit and delete", n)
	}
	// The name is free for another.
	m2, _ := m.reopen(t)
	if _, err := m2.Create(ctx, "ns", container("c", shim, "exit 0"), CreateOptions{Rootfs: hostRoot()}); err != nil {
		t.Fatal(err)
	}
	if _, err := m2.Delete(ctx, "ns", "c", ""); err != nil {
		t.Fatal(err)
	}
	m2.quiet(t)
	m2.wantEmpty(t)
}

// A command that is not there: the runtime's message arrives, and nothing stays.
func TestContainerNoCommand(t *testing.T) { withShims(t, inNoCommand) }

func inNoCommand(t *testing.T, shim string) {
	m, _ := newManager(t)
	ctx := within(t, 20*time.Second)
	c := container("c", shim, "")
	c.Spec.Value = []byte(strings.Replace(string(c.Spec.Value), "/bin/sh", "/no/such/command", 1))
	_, err := m.Create(ctx, "ns", c, CreateOptions{Rootfs: hostRoot()})
	if err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Fatalf("create: %v", err)
	}
	m.quiet(t)
	m.wantEmpty(t)
	m.wantNoShims(t)
}

func TestManyContainers(t *testing.T) { withShims(t, inMany) }

func inMany(t *testing.T, shim string) {
	m, seen := newManager(t)
	ctx := within(t, 60*time.Second)
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			id := fmt.Sprint("many", i)
			if _, err := m.Create(ctx, "ns", container(id, shim, fmt.Sprint("exit ", i)), CreateOptions{Rootfs: hostRoot()}); err != nil {
				t.Error(err)
				return
			}
			if _, err := m.Start(ctx, "ns", id, ""); err != nil {
				t.Error(err)
			}
			if e, err := m.Wait(ctx, "ns", id, ""); err != nil || e.Status != uint32(i) {
				t.Errorf("wait: %+v, %v; want status %d", e, err, i)
			}
			if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	m.quiet(t)
	if len(seen()) != 0 {
		t.Errorf("published %v", seen())
	}
	m.wantEmpty(t)
	m.wantNoShims(t)
}
