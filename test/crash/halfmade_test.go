package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gate holds a program at a failpoint until it is opened.
type gate struct {
	path    string
	reached chan struct{} // closed when the program is there
	fifo    *os.File
}

// newGate makes a gate and the action that stops at it.
func (m *machine) newGate(failpoint string) (*gate, string) {
	m.t.Helper()
	g := &gate{path: filepath.Join(m.dir, "gate-"+failpoint), reached: make(chan struct{})}
	if err := syscall.Mkfifo(g.path, 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		os.Remove(g.path)
		g.open()
	})
	go func() {
		defer close(g.reached)
		g.fifo, _ = os.OpenFile(g.path, os.O_WRONLY, 0) // returns when the program opens it
	}()
	return g, failpoint + "=hold:" + g.path
}

// await returns when the program has arrived.
func (g *gate) await(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(patience):
		t.Fatalf("nobody arrives at %s", g.path)
	}
}

// open lets the program go on; those that come later do not stop.
func (g *gate) open() {
	os.Remove(g.path)
	select {
	case <-g.reached:
		g.fifo.Close()
	default:
		// Nobody came: end the goroutine that waits for somebody.
		if f, err := os.OpenFile(g.path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	}
}

// stages are the moments of a container's creation in the shim.
var stages = []string{"shim.serve.assigned", "shim.create.begun", "shim.create.mounted", "shim.create.made", "shim.create.published"}

// TestHalfMade: whatever a shim is at when the daemon dies, and however far the
// next daemon has come when the shim goes on, the task is either there or nothing
// of it is. No moment is left to chance: shims and daemons are held where it
// matters.
func TestHalfMade(t *testing.T) {
	// When the shim may go on.
	for _, when := range []struct {
		name  string
		at    string // of the next daemon; it goes on after the shim was let go
		first func(m *machine, shim *gate)
		then  func(m *machine, shim *gate)
	}{
		{name: "before the next daemon", first: func(m *machine, shim *gate) { shim.open() }},
		{name: "while the next daemon starts", at: "daemon.start.ready"},
		{name: "before the next daemon has asked", at: "task.recover.found"},
		{name: "after the next daemon has asked", at: "task.recover.connected"},
		{name: "before the next daemon deletes", at: "task.undo.withdrawn"},
		{name: "while the next daemon waits", then: func(m *machine, shim *gate) {
			m.await()
			m.tasks()
			shim.open()
		}},
		{name: "when the next daemon has given up to wait", then: func(m *machine, shim *gate) {
			err := m.poll(func() error {
				if _, err := os.Stat(m.bundle("c")); err == nil && !strings.Contains(m.log(), "shim does not answer, it is kept") {
					return fmt.Errorf("the next daemon still waits")
				}
				return nil
			})
			if err != nil {
				m.t.Error(err)
			}
			shim.open()
		}},
	} {
		for _, stage := range stages {
			if stage == "shim.serve.assigned" && (when.at == "task.recover.connected" || when.at == "task.undo.withdrawn") {
				continue // it is not asked before the shim answers
			}
			if testing.Short() && stage != "shim.create.mounted" {
				continue
			}
			t.Run(strings.ReplaceAll(when.name, " ", "-")+"/"+stage, func(t *testing.T) {
				t.Parallel()
				m := newMachine(t)
				m.start()
				w := newWorkload(m, "")
				if err := w.importImage(); err != nil {
					t.Fatal(err)
				}
				m.kill()
				shim, hold := m.newGate(stage)
				m.launch(hold)
				if err := m.await(); err != nil {
					t.Fatal(err)
				}
				ran := make(chan error, 1)
				go func() { ran <- w.detached(imported, "c", "sleep", "1000") }()
				shim.await(t)
				m.kill()
				if err := <-ran; err == nil {
					t.Fatal("ctr run has succeeded")
				}
				if when.first != nil {
					when.first(m, shim)
				}
				if when.at != "" {
					next, hold := m.newGate(when.at)
					m.launch(hold)
					next.await(t)
					shim.open()
					next.open()
				} else {
					m.launch("")
				}
				if when.then != nil {
					when.then(m, shim)
				}
				if err := m.await(); err != nil {
					t.Fatal(err)
				}
				wholeOrNothing(t, w)
			})
		}
	}
}

// wholeOrNothing waits until all tasks are settled: what is listed can be removed,
// and what is not listed has left nothing. Then the same can be done again.
func wholeOrNothing(t *testing.T, w *workload) {
	t.Helper()
	err := w.poll(func() error {
		tasks, err := w.tasks()
		if err == nil && tasks["c"].status == "UNKNOWN" {
			err = fmt.Errorf("the task is not settled")
		}
		if err == nil && tasks["c"].status == "" {
			if left := w.running(); len(left) > 0 {
				err = fmt.Errorf("without a task there is\n%s", strings.Join(left, "\n"))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.clear(); err != nil {
		t.Fatal(err)
	}
	if err := w.importImage(); err != nil {
		t.Fatal(err)
	}
	if err := w.detached(imported, "c", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := w.clear(); err != nil {
		t.Fatal(err)
	}
}

// TestAbandonedCreate: a client that does not wait for its container leaves none,
// however far the shim is.
func TestAbandonedCreate(t *testing.T) {
	for _, stage := range stages {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			shim, hold := m.newGate(stage)
			m.launch(hold)
			if err := m.await(); err != nil {
				t.Fatal(err)
			}
			w := newWorkload(m, "")
			if err := w.importImage(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := m.ctr("--timeout", "1500ms", "run", "-d", "--null-io", imported, "c", "sleep", "1000"); err == nil {
				t.Fatal("ctr run has succeeded")
			}
			shim.await(t)
			shim.open()
			wholeOrNothing(t, w)
		})
	}
}

func (m *machine) bundle(id string) string {
	return m.state("io.containerd.runtime.v2.task", m.namespace, id)
}
