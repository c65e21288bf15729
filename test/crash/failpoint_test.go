package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// second lists the failpoints that are only reached after another crash: when
// what that left behind is cleared away.
var second = map[string]string{
	"task.recover.half-made-ended":  "task.create.bundle-made",
	"task.undo.withdrawn":           "task.create.assigned",
	"task.undo.deleted":             "task.create.assigned",
	"snapshot.cleanup.before-files": "snapshot.create.filled",
}

// TestFailpoints kills a program at every failpoint.
func TestFailpoints(t *testing.T) {
	hits := discover(t)
	t.Run("points", func(t *testing.T) {
		for i, name := range declared(t) {
			if testing.Short() && i%5 != 0 {
				continue
			}
			for _, n := range occasions(name, hits[name]) {
				t.Run(fmt.Sprintf("%s@%d", name, n), func(t *testing.T) {
					t.Parallel()
					dieAt(t, name, n)
				})
			}
		}
	})
}

// occasions chooses the hits at which to die: the first, one in the middle, and
// more of what happens most often.
func occasions(name string, hits int) []int {
	if testing.Short() || hits < 3 || strings.HasPrefix(name, "shim.") {
		return []int{1} // hits are counted per process, and a shim has few
	}
	at := []int{1}
	if hits >= 8 {
		at = append(at, hits/2+1)
	}
	if strings.HasPrefix(name, "meta.commit") {
		for n := 5; n < hits; n += max(5, hits/6) {
			at = append(at, n)
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// discover runs the workload once and counts the hits of each failpoint in the
// process that had most. A failpoint that is declared but not reached would prove nothing.
func discover(t *testing.T) map[string]int {
	m := newMachine(t)
	list := filepath.Join(m.dir, "list")
	w := newWorkload(m, "list="+list)
	m.launch(w.failpoints)
	if err := m.await(); err != nil {
		t.Fatal(err)
	}
	if err := w.run(); err != nil {
		t.Fatal(err)
	}
	if err := w.clear(); err != nil {
		t.Fatal(err)
	}
	m.stop()
	hits := map[string]int{}
	for _, name := range readList(t, list) {
		hits[name]++
	}
	for _, name := range declared(t) {
		if hits[name] == 0 && second[name] == "" {
			t.Errorf("failpoint %s is not reached by the workload", name)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return hits
}

func readList(t *testing.T, path string) []string {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

var hit = regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)

// declared finds the names of all failpoints in the source.
func declared(t *testing.T) []string {
	var names []string
	err := filepath.WalkDir("../../internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "failpoint" {
			return err
		}
		src, err := os.ReadFile(path)
		for _, found := range hit.FindAllSubmatch(src, -1) {
			names = append(names, string(found[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if len(names) < 40 {
		t.Fatalf("only %d failpoints are found", len(names))
	}
	return slices.Compact(names)
}

// dieAt kills at the n-th hit of a failpoint, wherever in the workload that comes.
func dieAt(t *testing.T, name string, n int) {
	m := newMachine(t)
	list := filepath.Join(m.dir, "list")
	if before := second[name]; before != "" {
		w := newWorkload(m, before+"=kill")
		m.launch(w.failpoints)
		if err := m.await(); err == nil {
			w.run()
		}
		m.kill()
	}
	failpoints := fmt.Sprintf("%s@%d=kill;list=%s", name, n, list)
	w := newWorkload(m, failpoints)
	m.launch(failpoints)
	err := m.await()
	if err == nil {
		err = w.run()
	}
	reached := 0
	for _, hit := range readList(t, list) {
		if hit == name {
			reached++
		}
	}
	switch {
	case reached < n && n > 1:
		t.Skipf("it was hit %d times only", reached)
	case reached < n:
		t.Fatalf("it was not hit: %v", err)
	}
	t.Logf("the workload ended with: %v", err)
	inShim := strings.HasPrefix(name, "shim.")
	if inShim && !m.dead() {
		// The daemon that saw it die clears up after it without a restart.
		if err := w.clearContainers(); err != nil {
			t.Fatal(err)
		}
	}
	m.kill()
	m.start()
	if err := w.check(inShim); err != nil {
		t.Fatal(err)
	}
	// Of what is there now, everything can be removed; then all is as new.
	if err := w.clearContainers(); err != nil {
		t.Fatal(err)
	}
	again := newWorkload(m, "")
	if err := again.run(); err != nil {
		t.Fatalf("the workload cannot be done again: %v", err)
	}
	if err := again.clear(); err != nil {
		t.Fatal(err)
	}
}

// TestErrors has a step fail instead of the program: the daemon goes on, what was
// begun is taken back, and the same can be done again.
func TestErrors(t *testing.T) {
	for i, at := range []string{
		"content.commit.before-rename", "content.commit.before-rename@5", "meta.commit.before@3", "meta.commit.before@20",
		"meta.commit.before@30", "meta.commit.before@36", "snapshot.create.filled", "snapshot.create.filled@4",
		"snapshot.commit.measured", "transfer.before-barrier", "task.create.created", "task.create.created@2", "shim.create.mounted",
	} {
		if testing.Short() && i%4 != 0 {
			continue
		}
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			w := newWorkload(m, at+"=error")
			m.launch(w.failpoints)
			if err := m.await(); err != nil {
				t.Fatal(err)
			}
			t.Logf("the workload ended with: %v", w.run())
			if m.dead() {
				t.Fatal("the daemon has died")
			}
			if err := w.check(false); err != nil {
				t.Error(err)
			}
			if err := w.clear(); err != nil {
				t.Error(err)
			}
			if strings.HasPrefix(at, "shim.") {
				return // each shim fails anew
			}
			// A daemon that the workload has started itself may fail once more.
			var err error
			for range 3 {
				again := newWorkload(m, "")
				err = again.run()
				if err := again.clear(); err != nil {
					t.Error(err)
				}
				if err == nil || !strings.Contains(err.Error(), "failpoint") {
					break
				}
			}
			if err != nil {
				t.Errorf("the workload cannot be done again: %v", err)
			}
		})
	}
}
