package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSoak runs many execs in one container, and looks for what the shim keeps of
// them: files, threads, zombies, memory. BERTH_SOAK_EXECS says how many there are;
// 10000 take some four minutes.
func TestSoak(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 30
	}
	if v := os.Getenv("BERTH_SOAK_EXECS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatalf("BERTH_SOAK_EXECS: %v", err)
		}
	}
	w := newWorld(t, []string{"sleep", "100000"}, nil)
	w.create(nil)
	w.start()
	pid := w.cmd.Process.Pid
	one := func(i int) {
		id := fmt.Sprintf("e%d", i)
		if err := w.exec(id, nil, "true"); err != nil {
			t.Fatal(err)
		}
		w.wait(id)
		w.delete(id)
	}
	// What is there once is there after some.
	for i := range min(100, n) {
		one(i)
	}
	files, before := entries(t, pid, "fd"), settled(t, pid, 0)
	for i := range n {
		if i > 0 && i%1000 == 0 {
			t.Logf("after %d execs: %d KiB", i, settled(t, pid, 0))
		}
		one(1000 + i)
	}
	enough := before + 1024
	after := settled(t, pid, enough)
	t.Logf("%d execs: memory %d KiB before, %d after; files %d before, %d after; threads %d",
		n, before, after, files, entries(t, pid, "fd"), entries(t, pid, "task"))
	// The garbage collector's own records grow until some thousand execs have been.
	// After 10,000 no 100 bytes of each could hide there.
	if after > enough {
		t.Errorf("memory: %d KiB after %d execs, %d before", after, n, before)
	}
	if now := entries(t, pid, "fd"); now > files+3 {
		t.Errorf("%d files are open after %d execs, %d before", now, n, files)
	}
	if threads := entries(t, pid, "task"); threads > 24 {
		t.Errorf("%d threads", threads)
	}
	// Only the container's init is left of the children.
	if c := children(t, pid); len(c) != 1 {
		t.Errorf("children %v", c)
	}
	w.end()
}

// settled is what a shim has of memory that is its own, in KiB, once it has given
// back what it does not need, or as soon as that is no more than enough.
func settled(t testing.TB, pid, enough int) (kib int) {
	least := memory(t, pid, "Anonymous:")
	for range 12 {
		if least <= enough {
			break
		}
		<-time.After(250 * time.Millisecond)
		least = min(least, memory(t, pid, "Anonymous:"))
	}
	return least
}

// entries counts those of a directory of a process.
func entries(t testing.TB, pid int, what string) int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, what))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// children of a process, zombies included.
func children(t testing.TB, pid int) (pids []string) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		// A thread may be gone: its children are another's then.
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, th.Name()))
		pids = append(pids, strings.Fields(string(raw))...)
	}
	return pids
}
