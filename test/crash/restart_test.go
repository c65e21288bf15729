package crash

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRestart: a daemon that is killed and started again finds all its containers
// as they were.
func TestRestart(t *testing.T) {
	n := 30
	if testing.Short() {
		n = 8
	}
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("c%d", i)
	}
	w := running(t, ids...)
	before, shims := w.tasksMust(), w.shims()
	if len(before) != n || len(shims) != n {
		t.Fatalf("%d tasks and %d shims run, not %d", len(before), len(shims), n)
	}
	// The best of some: others use the machine, too.
	best := time.Hour
	for range 3 {
		w.kill()
		began := time.Now()
		w.start()
		best = min(best, time.Since(began))
		if got := w.tasksMust(); !maps.Equal(got, before) {
			t.Fatalf("the tasks were\n%v\nand are\n%v", before, got)
		}
		if got := w.shims(); !maps.Equal(got, shims) {
			t.Fatalf("the shims were\n%v\nand are\n%v", shims, got)
		}
	}
	t.Logf("the API answered after %v", best)
	if best > time.Second {
		t.Errorf("the API answered only after %v", best)
	}
	// What ends while no daemon runs is told by the next.
	w.kill()
	if err := syscall.Kill(before["c0"].pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shims["c1"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.start()
	if err := w.awaitStatus("c1", ""); err != nil {
		t.Error(err)
	}
	if err := w.awaitStatus("c0", "STOPPED"); err != nil {
		t.Error(err)
	}
	if err := w.deleted(137, "c0"); err != nil {
		t.Error(err)
	}
	if err := w.exits(5, "tasks", "exec", "--exec-id", "e", "--fifo-dir", w.dir+"/fifo", "c2", "sh", "-c", "exit 5"); err != nil {
		t.Error(err)
	}
	if err := w.clear(); err != nil {
		t.Error(err)
	}
}

// TestDamage: whatever happens to the database, the daemon starts, running
// containers are kept, and what was lost is told by name.
func TestDamage(t *testing.T) {
	flip := func(seed uint64, n int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(seed, 0))
			for range n {
				// Within what is in use: the file is longer.
				data[r.IntN(min(len(data), 128<<10))] ^= 1 << r.IntN(8)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(size int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		damage func(*testing.T, string)
		total  bool // nothing of the file can be read
	}{
		{"emptied", truncate(0), true},
		{"cut", truncate(20000), false},
		{"cut in the header", truncate(100), true},
		{"zeroed", func(t *testing.T, path string) {
			if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"removed", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a bit", flip(1, 1), false},
		{"ten bits", flip(2, 10), false},
		{"many bits", flip(3, 3000), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if testing.Short() && test.name != "emptied" && test.name != "many bits" {
				t.Skip("short")
			}
			t.Parallel()
			w := running(t, "one", "two")
			before := w.tasksMust()
			w.kill()
			known := len(w.log())
			test.damage(t, w.root("io.containerd.metadata.v1.bolt", "meta.db"))
			w.start()
			if got := w.tasksMust(); !maps.Equal(got, before) {
				t.Errorf("the tasks were\n%v\nand are\n%v", before, got)
			}
			if test.total {
				log := w.log()[known:]
				if !strings.Contains(log, "damaged") {
					t.Error("the log does not tell of the damage")
				}
				err := w.poll(func() error {
					for id := range before {
						if !strings.Contains(w.log()[known:], "id="+id) {
							return fmt.Errorf("the log does not name the lost container %s", id)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				// The files of what runs are not taken for garbage.
				w.must("leases", "create", "--id", "gc")
				w.must("leases", "rm", "--sync", "gc")
				for _, task := range before {
					if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/passwd", task.pid)); err != nil {
						t.Errorf("a file of a container that runs: %v", err)
					}
				}
			}
			// A daemon that knows nothing of them ends them all the same.
			for id := range before {
				w.ctr("tasks", "rm", "-f", id)
			}
			if err := settle(w.bundles); err != nil {
				t.Error(err)
			}
			if !test.total {
				// A bit may have made another of any name or number: nothing more can
				// be said of what else works.
				w.stop()
				if err := os.RemoveAll(w.root()); err != nil {
					t.Error(err)
				}
				return
			}
			if err := w.importImage(); err != nil {
				t.Error(err)
			}
			if err := w.runOnce(); err != nil {
				t.Error(err)
			}
			if err := w.clear(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (m *machine) bundles() []string {
	found, _ := filepath.Glob(m.state("io.containerd.runtime.v2.task", m.namespace, "*"))
	return found
}
