package task

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

func (m *testManager) dir() string { return filepath.Dir(m.opts.State) }

// run makes, starts, kills and deletes a task.
func (m *testManager) run(ctx context.Context, c object.Container) error {
	pid, err := m.Create(ctx, "ns", c, CreateOptions{})
	if err != nil {
		return err
	}
	if pid != 1000 {
		return fmt.Errorf("create: PID %d, want 1000", pid)
	}
	if p, err := m.State(ctx, "ns", c.ID, ""); err != nil || p.Status != object.TaskCreated {
		return fmt.Errorf("state after create: %v, %w", p.Status, err)
	}
	if _, err := m.Start(ctx, "ns", c.ID, ""); err != nil {
		return err
	}
	if _, err := m.Delete(ctx, "ns", c.ID, ""); !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("delete of a running task: %v, want FailedPrecondition", err)
	}
	if err := m.Kill(ctx, "ns", c.ID, "", 9, true); err != nil {
		return err
	}
	if e, err := m.Wait(ctx, "ns", c.ID, ""); err != nil || e.Status != 137 || e.PID != 1000 {
		return fmt.Errorf("wait: %+v, %w", e, err)
	}
	if e, err := m.Delete(ctx, "ns", c.ID, ""); err != nil || e.Status != 137 {
		return fmt.Errorf("delete: %+v, %w", e, err)
	}
	return nil
}

// Every way in which a shim can tell where it is, and every protocol.
func TestLife(t *testing.T) {
	foreign, own := fakeBinary(t, foreignShim), fakeBinary(t, ownShim)
	for _, c := range []object.Container{
		fake("proto", foreign),
		fake("json", foreign, "bootstrap", "json"),
		fake("line", foreign, "bootstrap", "line", "task", "v2"),
		fake("v2", foreign, "task", "v2"),
		fake("grpc", foreign, "grpc", "yes"),
		fake("liar", foreign, "pid", "lie"),
		fake("own", own),
	} {
		t.Run(c.ID, func(t *testing.T) {
			m, seen := newManager(t)
			ctx := within(t, 10*time.Second)
			for range 3 { // the same name again, at once
				if err := m.run(ctx, c); err != nil {
					t.Fatal(err)
				}
			}
			m.quiet(t)
			if len(seen()) != 0 {
				t.Errorf("events of a clean life are the shim's, but the manager published %v", seen())
			}
			if strings.Contains(notes(m.dir()), "delete") {
				t.Errorf("delete command after a clean life: %s", notes(m.dir()))
			}
			m.wantEmpty(t)
		})
	}
}

// A shim says it speaks version 3, and then knows version 2 only.
func TestDowngrade(t *testing.T) {
	m, _ := newManager(t)
	c := fake("old", fakeBinary(t, foreignShim), "task", "v2", "bootstrap", "json3")
	ctx := within(t, 10*time.Second)
	if err := m.run(ctx, c); err != nil {
		t.Fatal(err)
	}
	m.quiet(t)
	m.wantNoShims(t)
}

func TestCreateFailsWithoutTrace(t *testing.T) {
	foreign, own := fakeBinary(t, foreignShim), fakeBinary(t, ownShim)
	for _, tt := range []struct {
		name string
		c    object.Container
		kind func(error) bool
		says string
	}{
		{"start fails", fake("c", foreign, "start", "fail"), nil, "start fails as told"},
		{"start hangs", fake("c", foreign, "start", "hang"), errdefs.IsDeadlineExceeded, ""},
		{"start fails late", fake("c", foreign, "start", "die"), nil, "died after"},
		{"garbage", fake("c", foreign, "bootstrap", "garbage"), errdefs.IsInvalidArgument, ""},
		{"future version", fake("c", foreign, "bootstrap", "future"), errdefs.IsNotImplemented, "version 9"},
		{"create fails", fake("c", foreign, "create", "fail"), errdefs.IsFailedPrecondition, "create fails as told"},
		{"create hangs", fake("c", foreign, "create", "hang"), errdefs.IsDeadlineExceeded, ""},
		{"create late", fake("c", foreign, "create", "late"), errdefs.IsDeadlineExceeded, ""},
		{"create dies", fake("c", foreign, "create", "die"), errdefs.IsNotFound, "has died"},
		{"create dies over gRPC", fake("c", foreign, "create", "die", "grpc", "yes"), errdefs.IsNotFound, "has died"},
		{"own: create fails", fake("c", own, "create", "fail"), errdefs.IsFailedPrecondition, "create fails as told"},
		{"own: create hangs", fake("c", own, "create", "hang"), errdefs.IsDeadlineExceeded, ""},
		{"own: create dies", fake("c", own, "create", "die"), errdefs.IsNotFound, "has died"},
		{"own: refuses", fake("c", own, "serve", "refuse"), nil, "does not want to"},
		{"own: dies at once", fake("c", own, "serve", "die"), nil, "does not take the task"},
		{"no such runtime", fake("c", "io.containerd.nothing.v9"), errdefs.IsNotFound, "containerd-shim-nothing-v9"},
		{"no such path", fake("c", "/nonexistent/shim"), errdefs.IsNotFound, ""},
		{"relative path", fake("c", "./shim"), errdefs.IsInvalidArgument, ""},
		{"bad ID", fake("../c", foreign), errdefs.IsInvalidArgument, ""},
		{"bad spec", object.Container{ID: "c", Runtime: object.Runtime{Name: foreign}, Spec: &object.Any{Value: []byte("{")}}, errdefs.IsInvalidArgument, "not valid JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, seen := newManager(t)
			ctx := within(t, 20*time.Second)
			brief := ctx
			if strings.HasSuffix(tt.name, "hangs") || strings.HasSuffix(tt.name, "create late") {
				var cancel func()
				brief, cancel = context.WithTimeout(ctx, time.Second/2)
				defer cancel()
			}
			_, err := m.Create(brief, "ns", tt.c, CreateOptions{})
			if err == nil {
				t.Fatal("no error")
			}
			if tt.kind != nil && !tt.kind(err) {
				t.Errorf("error %v is of the wrong kind", err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			// What failed does not stand in the way of what follows.
			if tt.c.ID == "c" {
				if err := m.run(ctx, fake("c", foreign)); err != nil {
					t.Errorf("after the failure: %v", err)
				}
			}
			m.quiet(t)
			if len(seen()) != 0 {
				t.Errorf("published %v for a task that never was", seen())
			}
			m.wantEmpty(t)
			m.wantNoShims(t)
		})
	}
}

// wantNoShims checks that no process works in the manager's directories.
func (m *testManager) wantNoShims(t testing.TB) {
	t.Helper()
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if err == nil && strings.HasPrefix(cwd, m.dir()+"/") {
			line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			t.Errorf("process %s is left: %q", e.Name(), line)
		}
	}
}

func TestShimDeath(t *testing.T) {
	for name, binary := range map[string]string{"foreign": fakeBinary(t, foreignShim), "own": fakeBinary(t, ownShim)} {
		for _, del := range []string{"", "fail"} {
			t.Run(name+del, func(t *testing.T) {
				m, seen := newManager(t)
				ctx := within(t, 10*time.Second)
				if _, err := m.Create(ctx, "ns", fake("c", binary, "delete", del), CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Start(ctx, "ns", "c", ""); err != nil {
					t.Fatal(err)
				}
				exits := make(chan object.Exit)
				for range 2 {
					go func() {
						e, err := m.Wait(ctx, "ns", "c", "")
						if err != nil {
							t.Error(err)
						}
						exits <- e
					}()
				}
				m.mu.Lock()
				s := m.tasks[key{"ns", "c"}].shim
				m.mu.Unlock()
				_, err := s.learnProcess(ctx, m.tasks[key{"ns", "c"}])
				if err != nil {
					t.Fatal(err)
				}
				s.kill(bundle{})
				want := uint32(137)
				if del == "fail" {
					want = exitUnknown
				}
				for range 2 {
					if e := <-exits; e.Status != want || e.At.IsZero() || e.PID == 0 {
						t.Errorf("exit %+v, want status %d", e, want)
					}
				}
				if _, err := m.State(ctx, "ns", "c", ""); !errdefs.IsNotFound(err) {
					t.Errorf("state: %v, want NotFound", err)
				}
				var topics []string
				for _, e := range seen() {
					topics = append(topics, e.Topic)
				}
				if got := strings.Join(topics, " "); got != "/tasks/exit /tasks/delete" {
					t.Errorf("published %q", got)
				}
				m.wantEmpty(t)
				m.wantNoShims(t)
			})
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	for name, binary := range map[string]string{"foreign": fakeBinary(t, foreignShim), "own": fakeBinary(t, ownShim)} {
		t.Run(name, func(t *testing.T) {
			m, _ := newManager(t)
			ctx := within(t, 15*time.Second)
			files, routines := openFiles(), 0
			var group sync.WaitGroup
			for i := range 32 {
				group.Go(func() {
					if err := m.run(ctx, fake(fmt.Sprint("c", i), binary)); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			m.quiet(t)
			m.wantEmpty(t)
			m.wantNoShims(t)
			if n := openFiles(); n > files {
				t.Errorf("%d file descriptors are left of %d lives (%d before, %d after)", n-files, 32, files, n)
			}
			_ = routines
		})
	}
}

func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// One of two creates of the same name wins, whatever the order.
func TestCreateTwice(t *testing.T) {
	m, _ := newManager(t)
	ctx := within(t, 10*time.Second)
	own := fakeBinary(t, ownShim)
	var group sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		group.Go(func() { _, errs[i] = m.Create(ctx, "ns", fake("c", own), CreateOptions{}) })
	}
	group.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errdefs.IsAlreadyExists(err) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d creates won", won)
	}
	if _, err := m.Delete(ctx, "ns", "c", ""); err != nil {
		t.Error(err)
	}
	m.quiet(t)
	m.wantEmpty(t)
}

// A hanging shim is a matter of its own task.
func TestHangingShim(t *testing.T) {
	t.Parallel()
	m, _ := newManager(t)
	ctx := within(t, 15*time.Second)
	binary := fakeBinary(t, ownShim)
	if _, err := m.Create(ctx, "ns", fake("stuck", binary, "state", "hang", "shutdown", "hang"), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := m.run(ctx, fake("other", binary)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Create(ctx, "ns", fake("other", binary), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	list, err := m.List(ctx, "ns")
	if err != nil || len(list) != 2 {
		t.Fatalf("list: %v, %v", list, err)
	}
	if took := time.Since(began); took > stateTimeout+time.Second {
		t.Errorf("list took %v", took)
	}
	for _, p := range list {
		want := object.TaskCreated
		if p.ContainerID == "stuck" {
			want = object.TaskUnknown
		}
		if p.Status != want || p.PID != 1000 {
			t.Errorf("%s: %v with PID %d, want %v", p.ContainerID, p.Status, p.PID, want)
		}
	}
	for _, id := range []string{"stuck", "other"} {
		if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
			t.Error(err)
		}
	}
	m.quiet(t) // the one that does not shut down is killed
	m.wantEmpty(t)
	m.wantNoShims(t)
}

// Containers of a pod share the shim of its sandbox.
func TestPod(t *testing.T) {
	for name, binary := range map[string]string{"foreign": fakeBinary(t, foreignShim), "own": fakeBinary(t, ownShim)} {
		t.Run(name, func(t *testing.T) {
			m, seen := newManager(t)
			ctx := within(t, 10*time.Second)
			if _, err := m.Create(ctx, "ns", fake("pod", binary), CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			c := fake("c1", binary, "io.kubernetes.cri.sandbox-id", "pod")
			c.SandboxID = "pod"
			if _, err := m.Create(ctx, "ns", c, CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			// Known by the annotation, or by its address, alone.
			if _, err := m.Create(ctx, "ns", fake("c2", binary, "io.kubernetes.cri.sandbox-id", "pod"), CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			s := m.tasks[key{"ns", "pod"}].shim
			m.mu.Unlock()
			if _, err := m.Create(ctx, "ns", fake("c3", binary), CreateOptions{Address: "ttrpc+" + s.address, Version: 3}); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(notes(m.dir()), "start") + strings.Count(notes(m.dir()), "serve"); n != 1 {
				t.Errorf("%d shims for a pod: %s", n, notes(m.dir()))
			}
			if _, err := m.Delete(ctx, "ns", "c1", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := m.State(ctx, "ns", "c2", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := s.learnProcess(ctx, m.tasks[key{"ns", "pod"}]); err != nil {
				t.Fatal(err)
			}
			s.kill(bundle{})
			for _, id := range []string{"pod", "c2", "c3"} {
				if e, err := m.Wait(ctx, "ns", id, ""); err != nil && !errdefs.IsNotFound(err) || err == nil && e.Status != 137 {
					t.Errorf("%s: %+v, %v", id, e, err)
				}
			}
			m.quiet(t)
			m.wantEmpty(t)
			if n := len(seen()); n != 6 {
				t.Errorf("%d events, want an exit and a delete for each of 3", n)
			}
		})
	}
}
