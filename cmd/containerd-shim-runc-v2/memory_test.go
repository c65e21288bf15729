package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
)

// pss is a process's share of memory in KiB: what it has alone, and its part of what
// it has with others.
func pss(t testing.TB, pid int) (kib int) { return memory(t, pid, "Pss:") }

// memory reads one figure of smaps_rollup (proc_pid_smaps(5)), in KiB.
func memory(t testing.TB, pid int, figure string) (kib int) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), figure); ok {
			kib, _ = strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return kib
}

// TestMemory holds the shim to its budget: 3 MiB for each of many containers.
func TestMemory(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	ctx := t.Context()
	const n, budget = 30, 3 << 10
	var shims []*testShim
	for i := range n {
		id := fmt.Sprintf("memory-%d", i)
		dir := bundle(t, id, []string{"sleep", "1000"}, nil)
		s := newSpare(t).assign(t, d, dir, id)
		shims = append(shims, s)
		if _, err := s.Create(ctx, &task.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(ctx, &task.StartRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	// What a shim gives back once it is idle, it does after a second.
	var total int
	for deadline := time.Now().Add(8 * time.Second); ; <-time.After(200 * time.Millisecond) {
		total = 0
		for _, s := range shims {
			total += pss(t, s.cmd.Process.Pid)
		}
		if total/n <= budget || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("PSS of a shim: %d KiB", total/n)
	if total/n > budget {
		t.Errorf("a shim takes %d KiB, more than %d", total/n, budget)
	}
	for i, s := range shims {
		id := fmt.Sprintf("memory-%d", i)
		if _, err := s.Kill(ctx, &task.KillRequest{ID: id, Signal: 9}); err != nil {
			t.Error(err)
		}
		if _, err := s.Wait(ctx, &task.WaitRequest{ID: id}); err != nil {
			t.Error(err)
		}
		if _, err := s.Delete(ctx, &task.DeleteRequest{ID: id}); err != nil {
			t.Error(err)
		}
		s.close(t)
	}
}
