package task

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// reopen is a restart of the daemon: the first manager lets go, and another
// takes over its directories.
func (m *testManager) reopen(t testing.TB) (*testManager, func() []object.Event) {
	t.Helper()
	m.Close()
	return openManager(t, m.dir())
}

func TestRecover(t *testing.T) {
	for _, c := range []object.Container{
		fake("foreign", foreignShim),
		fake("line", foreignShim, "bootstrap", "line", "task", "v2"),
		fake("json3", foreignShim, "bootstrap", "json3", "task", "v2"),
		fake("grpc", foreignShim, "grpc", "yes"),
		fake("own", ownShim),
	} {
		t.Run(c.ID, func(t *testing.T) {
			t.Parallel()
			c.Runtime.Name = fakeBinary(t, c.Runtime.Name)
			m, _ := newManager(t)
			ctx := within(t, 10*time.Second)
			for _, id := range []string{"running", "ended", "died", "unsettled"} {
				c.ID = id
				if _, err := m.Create(ctx, "ns", c, CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Start(ctx, "ns", id, ""); err != nil {
					t.Fatal(err)
				}
			}
			died := m.task("died")
			if _, err := died.shim.learnProcess(ctx, died); err != nil {
				t.Fatal(err)
			}
			process := died.shim.process
			pid := process.PID
			if err := m.Kill(ctx, "ns", "ended", "", 15, false); err != nil {
				t.Fatal(err)
			}
			m.Close()
			p, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			p.Kill()
			waitGone(t, pid)
			// Its executable may have gone meanwhile.
			if err := os.Remove(c.Runtime.Name); err != nil {
				t.Fatal(err)
			}

			m, seen := m.reopen(t)
			early := make(chan error)
			go func() { // a call before Recover waits for its task
				_, err := m.State(ctx, "ns", "unsettled", "")
				early <- err
			}()
			if err := m.Recover(ctx, []string{"ns"}); err != nil {
				t.Fatal(err)
			}
			if err := <-early; err != nil {
				t.Errorf("early call: %v", err)
			}
			if p, err := m.State(ctx, "ns", "running", ""); err != nil || p.Status != object.TaskRunning || p.PID != 1000 {
				t.Errorf("running: %+v, %v", p, err)
			}
			if e, err := m.Wait(ctx, "ns", "ended", ""); err != nil || e.Status != 128+15 || e.PID != 1000 {
				t.Errorf("ended: %+v, %v", e, err)
			}
			if _, err := m.State(ctx, "ns", "died", ""); !errdefs.IsNotFound(err) {
				t.Errorf("died: %v, want NotFound", err)
			}
			if err := m.Kill(ctx, "ns", "running", "", 9, false); err != nil {
				t.Error(err)
			}
			m.Kill(ctx, "ns", "unsettled", "", 9, false)
			for _, id := range []string{"running", "ended", "unsettled"} {
				if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
					t.Error(err)
				}
			}
			m.quiet(t)
			m.wantEmpty(t)
			m.wantNoShims(t)
			exits := 0
			for _, e := range seen() {
				if e.Topic == "/tasks/exit" {
					exits++
				}
			}
			if exits != 2 {
				t.Errorf("%d exits published, want those of the task that ended and of the shim that died", exits)
			}
		})
	}
}

func (m *testManager) task(id string) *task {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tasks[key{"ns", id}]
}

func waitGone(t testing.TB, pid int) {
	t.Helper()
	p, err := shimproc.Open(pid)
	if err != nil {
		return
	}
	select {
	case <-p.Exited:
	case <-time.After(5 * time.Second):
		t.Fatalf("process %d does not end", pid)
	}
}

// What a crash leaves at each step of a create.
func TestRecoverHalfMade(t *testing.T) {
	m, _ := newManager(t)
	own := fakeBinary(t, ownShim)
	ctx := within(t, 15*time.Second)
	b := func(id string) bundle { return m.bundleOf(key{"ns", id}, false) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b("directories").create([]byte("{}"), 0))
	must(os.MkdirAll(b("bare").path, 0o700))
	must(os.MkdirAll(b("orphan-work").work, 0o700))
	must(os.MkdirAll(filepath.Join(filepath.Dir(b("x").path), ".deleted.0", "deep"), 0o700))
	must(b("torn").create([]byte("{}"), 0))
	must(os.WriteFile(b("torn").file(bootstrapFile), []byte(`{"ver`), 0o600))
	must(b("empty").create([]byte("{}"), 0))
	must(os.WriteFile(b("empty").file(bootstrapFile), nil, 0o600))
	// The shim was started, and the daemon ended before the call of Create.
	if _, err := m.Create(ctx, "ns", fake("leaked", own), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	must(callDelete(ctx, m, "leaked"))
	// The shim was started, and its address not yet written down.
	if _, err := m.Create(ctx, "ns", fake("unknown", fakeBinary(t, foreignShim)), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	must(callDelete(ctx, m, "unknown"))
	must(os.Remove(b("unknown").file(bootstrapFile)))

	m, seen := m.reopen(t)
	must(m.Recover(ctx, nil))
	if n := len(m.tasks); n != 0 {
		t.Errorf("%d tasks after recovery", n)
	}
	m.quiet(t)
	m.wantEmpty(t)
	m.wantNoShims(t)
	if len(seen()) != 0 {
		t.Errorf("published %v for tasks that never were", seen())
	}
}

// A Create that was under way when the daemon ended is undone, with what the shim
// has running for it.
func TestRecoverCreateUnderWay(t *testing.T) {
	for _, name := range []string{ownShim, foreignShim} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := newManager(t)
			ctx := within(t, 20*time.Second)
			created := make(chan error, 1)
			c := fake("c", fakeBinary(t, name), "create", "work")
			go func() {
				_, err := m.Create(ctx, "ns", c, CreateOptions{})
				created <- err
			}()
			for !strings.Contains(notes(m.dir()), "working") {
				if ctx.Err() != nil {
					t.Fatal("the shim does not get the Create")
				}
				time.Sleep(time.Millisecond) // deliberate: the other is a process of which only notes are known
			}
			m.Close()
			if err := <-created; err == nil {
				t.Fatal("it was created")
			}
			m, _ = m.reopen(t)
			if err := m.Recover(ctx, []string{"ns"}); err != nil {
				t.Fatal(err)
			}
			if n := len(m.tasks); n != 0 {
				t.Errorf("%d tasks after recovery", n)
			}
			m.quiet(t)
			m.wantEmpty(t)
			m.wantNoShims(t)
		})
	}
}

// callDelete has the shim forget a task, so that it is as if it had never been made.
func callDelete(ctx context.Context, m *testManager, id string) error {
	_, err := m.task(id).delete(ctx, "")
	return err
}

func TestRecoverAfterReboot(t *testing.T) {
	m, _ := newManager(t)
	ctx := within(t, 10*time.Second)
	if _, err := m.Create(ctx, "ns", fake("c", fakeBinary(t, ownShim)), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := m.task("c").shim
	p := s.process
	m.Close()
	if err := os.WriteFile(filepath.Join(m.opts.State, tasksDir, bootFile), []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, seen := m.reopen(t)
	if err := m.Recover(ctx, []string{"ns"}); err != nil {
		t.Fatal(err)
	}
	// The process at the old socket is somebody else's now: it was let be.
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID)); err != nil || len(line) == 0 {
		t.Errorf("process %d was touched", p.PID)
	}
	if len(seen()) != 2 {
		t.Errorf("published %v, want an exit and a delete", seen())
	}
	if strings.Contains(notes(m.dir()), "delete") {
		t.Errorf("delete command for a task of an earlier boot")
	}
	q, err := os.FindProcess(p.PID)
	if err == nil {
		q.Kill()
	}
	waitGone(t, p.PID)
	os.Remove(s.socketFile())
	m.wantEmpty(t)
}

// A shim that does not answer is neither killed nor waited for by others.
func TestRecoverWedged(t *testing.T) {
	t.Parallel()
	m, _ := newManager(t)
	ctx := within(t, 15*time.Second)
	own := fakeBinary(t, ownShim)
	for i := range 3 {
		if _, err := m.Create(ctx, "ns", fake(fmt.Sprint("well", i), own), CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Create(ctx, "ns", fake("wedged", own, "connect", "hang", "shutdown", "hang"), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m, _ = m.reopen(t)
	began := time.Now()
	done := make(chan error)
	go func() { done <- m.Recover(ctx, []string{"ns"}) }()
	for i := range 3 {
		if _, err := m.State(ctx, "ns", fmt.Sprint("well", i), ""); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the well shims were there after %v", took)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > loadTimeout+2*time.Second {
		t.Errorf("recovery took %v", took)
	}
	if p, err := m.State(ctx, "ns", "wedged", ""); err != nil || p.Status != object.TaskCreated {
		t.Errorf("wedged: %+v, %v", p, err)
	}
	for _, id := range []string{"well0", "well1", "well2", "wedged"} {
		if _, err := m.Delete(ctx, "ns", id, ""); err != nil {
			t.Error(err)
		}
	}
	m.quiet(t) // that of the wedged shim is killed, though its PID is not known
	m.wantEmpty(t)
	m.wantNoShims(t)
}

// fill makes bundles whose shims are served by this process, some of which
// never answer.
func (m *testManager) fill(t testing.TB, live, wedged int) {
	t.Helper()
	how := map[string]string{"pid": "lie"}
	for i := range live + wedged {
		k := key{"ns", fmt.Sprint("c", i)}
		b := m.bundleOf(k, false)
		if err := b.create([]byte("{}"), 0); err != nil {
			t.Fatal(err)
		}
		path := m.socketPath(k.namespace, k.id)
		if err := b.writeBootstrap(&bootapi.BootstrapResult{Version: 3, Address: "unix://" + path, Protocol: "ttrpc"}); err != nil {
			t.Fatal(err)
		}
		fd, err := shimconn.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), path)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if i < wedged {
			continue
		}
		server, err := ttrpc.NewServer()
		if err != nil {
			t.Fatal(err)
		}
		s := &fakeService{how: how, tasks: make(map[string]*fakeTask)}
		s.add(k.id, how)
		taskapi.RegisterTTRPCTaskService(server, s)
		go server.Serve(context.Background(), l)
		t.Cleanup(func() { server.Close() })
	}
}

func TestRecoverThousand(t *testing.T) {
	t.Parallel()
	m, _ := newManager(t)
	m.fill(t, 1000, 10)
	m, _ = m.reopen(t)
	began := time.Now()
	go m.Recover(t.Context(), []string{"ns"})
	if _, err := m.State(t.Context(), "ns", "c500", ""); err != nil {
		t.Error(err)
	}
	t.Logf("first answer after %v", time.Since(began))
	for _, task := range m.snapshotTasks() {
		<-task.settled
	}
	took := time.Since(began)
	t.Logf("all settled after %v", took)
	if took > 10*time.Second {
		t.Errorf("recovery took %v", took)
	}
	if n := len(m.snapshotTasks()); n != 1010 {
		t.Errorf("%d tasks are left, want 1010", n)
	}
}

func (m *testManager) snapshotTasks() []*task {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.tasks))
}

func BenchmarkRecover30(b *testing.B) {
	m, _ := newManager(b)
	m.fill(b, 30, 0)
	for b.Loop() {
		m, _ := m.reopen(b)
		if err := m.Recover(b.Context(), []string{"ns"}); err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}
