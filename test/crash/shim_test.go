package crash

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// running starts a daemon with the small image and containers that stay.
func running(t *testing.T, ids ...string) *workload {
	t.Helper()
	m := newMachine(t)
	m.start()
	w := newWorkload(m, "")
	if err := w.importImage(); err != nil {
		t.Fatal(err)
	}
	turns := make(chan struct{}, 4)
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if err := w.detached(imported, id, "sleep", "1000"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return w
}

// tasksMust is tasks for a test that cannot go on without them.
func (m *machine) tasksMust() map[string]task {
	m.t.Helper()
	tasks, err := m.tasks()
	if err != nil {
		m.t.Fatal(err)
	}
	return tasks
}

func (m *machine) shim(id string) int {
	m.t.Helper()
	pid := m.shims()[id]
	if pid == 0 {
		m.t.Fatalf("the shim of %s is not to be found", id)
	}
	return pid
}

// events is what ctr events prints, line by line.
type events struct {
	mu    sync.Mutex
	lines []string
}

// watchEvents returns when events arrive.
func (m *machine) watchEvents() *events {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "ctr"), "-a", m.address(), "events")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	e := &events{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			e.mu.Lock()
			e.lines = append(e.lines, s.Text())
			e.mu.Unlock()
		}
	}()
	m.t.Cleanup(func() { cmd.Process.Kill(); <-ended; cmd.Wait() })
	n := 0
	err = m.poll(func() error {
		n++
		m.must("namespaces", "label", m.namespace, fmt.Sprintf("probe=%d", n))
		if len(e.about("/namespaces/update")) == 0 {
			return fmt.Errorf("no event arrives")
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

// about lists the events that have all the words.
func (e *events) about(words ...string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []string
next:
	for _, line := range e.lines {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// TestShimKilled: the container of a shim that is killed ends, that is told, once,
// and nothing is left of it.
func TestShimKilled(t *testing.T) {
	t.Parallel()
	w := running(t, "other")
	e := w.watchEvents()
	attached := make(chan error, 1)
	go func() {
		attached <- w.exits(137, "run", "--rm", "--fifo-dir", w.dir+"/fifo", imported, "victim", "sleep", "1000")
	}()
	if err := w.awaitStatus("victim", "RUNNING"); err != nil {
		t.Fatal(err)
	}
	before := w.tasksMust()
	if err := syscall.Kill(w.shim("victim"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil {
		t.Error(err)
	}
	if err := w.awaitStatus("victim", ""); err != nil {
		t.Fatal(err)
	}
	if alive(before["victim"].pid) {
		t.Errorf("the container's process %d is still there", before["victim"].pid)
	}
	err := w.poll(func() error {
		if len(e.about("/tasks/delete", `"victim"`)) == 0 {
			return fmt.Errorf("no delete is published")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if exits := e.about("/tasks/exit", `"victim"`); len(exits) != 1 || !strings.Contains(exits[0], `"exit_status":137`) {
		t.Errorf("events of the exit: %q", exits)
	}
	if after := w.tasksMust()["other"]; after != before["other"] {
		t.Errorf("the other container was %+v and is %+v", before["other"], after)
	}
	if err := w.clear(); err != nil {
		t.Error(err)
	}
}

// alive tells whether a process runs; a dead one may still wait for its parent.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

// TestShimWedged: a shim that does not answer holds up its own task only, also
// over a restart.
func TestShimWedged(t *testing.T) {
	t.Parallel()
	w := running(t, "wedged", "other")
	shim := w.shim("wedged")
	before := w.tasksMust()
	if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(shim, syscall.SIGCONT)
	stuck := make(chan error, 1)
	go func() { // one call is stuck there all the while
		_, _, err := w.ctr("--timeout", "3s", "tasks", "kill", "wedged")
		stuck <- err
	}()
	for _, phase := range []string{"wedged", "restarted"} {
		began := time.Now()
		tasks := w.tasksMust()
		if tasks["other"] != before["other"] {
			t.Errorf("%s: the other container was %+v and is %+v", phase, before["other"], tasks["other"])
		}
		if got := tasks["wedged"]; got.status != "UNKNOWN" {
			t.Errorf("%s: the wedged container is listed as %+v", phase, got)
		}
		if err := w.runOnce(); err != nil {
			t.Errorf("%s: %v", phase, err)
		}
		if err := w.exits(5, "tasks", "exec", "--exec-id", phase, "--fifo-dir", w.dir+"/fifo", "other", "sh", "-c", "exit 5"); err != nil {
			t.Errorf("%s: %v", phase, err)
		}
		if took := time.Since(began); took > patience {
			t.Errorf("%s: that took %v", phase, took)
		}
		if phase == "wedged" {
			if err := <-stuck; err == nil {
				t.Error("a wedged shim has answered")
			}
			w.kill()
			// The kernel wakes a stopped process whose parent has died.
			if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			w.start()
		}
	}
	if err := syscall.Kill(shim, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	err := w.poll(func() error {
		if got := w.tasksMust()["wedged"]; got.pid != before["wedged"].pid || got.status == "UNKNOWN" {
			return fmt.Errorf("after it woke up the container is %+v, it was %+v", got, before["wedged"])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := w.clear(); err != nil {
		t.Error(err)
	}
}

func (w *workload) runOnce() error {
	return w.exits(7, "run", "--rm", "--fifo-dir", w.dir+"/fifo", imported, "once", "sh", "-c", "exit 7")
}

// TestEarlierBoot: after a reboot whoever listens at the socket of a bundle is
// somebody else, and is not dialled.
func TestEarlierBoot(t *testing.T) {
	t.Parallel()
	for _, rebooted := range []bool{true, false} {
		m := newMachine(t)
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		if rebooted {
			boot = []byte("00000000-0000-4000-8000-000000000000\n")
		}
		bundle := m.state("io.containerd.runtime.v2.task", m.namespace, "old")
		socket := filepath.Join(m.dir, "x.sock")
		bootstrap, _ := json.Marshal(map[string]any{"version": 3, "protocol": "ttrpc", "address": "unix://" + socket})
		for path, data := range map[string][]byte{
			filepath.Join(bundle, "bootstrap.json"):       bootstrap,
			filepath.Join(bundle, "config.json"):          []byte("{}"),
			filepath.Join(bundle, "..", "..", ".boot-id"): boot,
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		dialled := make(chan struct{}, 100)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					close(dialled)
					return
				}
				conn.Close()
				dialled <- struct{}{}
			}
		}()
		m.start()
		if !rebooted { // otherwise the test would prove nothing
			select {
			case <-dialled:
			case <-time.After(patience):
				t.Error("a socket of this boot is not dialled")
			}
			l.Close()
		}
		err = m.poll(func() error {
			if _, err := os.Stat(bundle); err == nil {
				return fmt.Errorf("the bundle is still there")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		l.Close()
		if _, was := <-dialled; rebooted && was {
			t.Error("a socket of an earlier boot was dialled")
		}
		m.stop()
	}
}
