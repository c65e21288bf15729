package task

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/task/shimproc"
)

// awaitSpare waits until a spare is there.
func (m *testManager) awaitSpare(t testing.TB) *shimproc.Spare {
	t.Helper()
	for ctx := within(t, 5*time.Second); ctx.Err() == nil; {
		if sp := m.spares.Peek(); sp != nil {
			return sp
		}
		pause(ctx, time.Millisecond)
	}
	t.Fatal("no spare shim")
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

func TestSpare(t *testing.T) {
	m, _ := newManager(t)
	ctx := within(t, 15*time.Second)
	binary := fakeBinary(t, ownShim)
	if m.spares.Peek() != nil {
		t.Error("a spare before the first container")
	}
	if err := m.run(ctx, fake("c", binary)); err != nil {
		t.Fatal(err)
	}
	first := m.awaitSpare(t)
	if _, err := m.Create(ctx, "ns", fake("c", binary), CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if p := m.task("c").shim.process; p != first.Process {
		t.Errorf("the task is with process %d, not with the spare %d", p.PID, first.Process.PID)
	}
	if _, err := m.Delete(ctx, "ns", "c", ""); err != nil {
		t.Fatal(err)
	}
	// A spare that died, and one of a binary that was replaced, are not used.
	second := m.awaitSpare(t)
	second.Process.Kill()
	<-second.Process.Exited
	if err := m.run(ctx, fake("c", binary)); err != nil {
		t.Errorf("after the death of a spare: %v", err)
	}
	third := m.awaitSpare(t)
	if err := os.Chtimes(binary, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := m.run(ctx, fake("c", binary)); err != nil {
		t.Errorf("after a new binary: %v", err)
	}
	select {
	case <-third.Process.Exited:
	case <-ctx.Done():
		t.Error("the spare of the old binary lives on")
	}
	// Without the daemon the spare ends.
	last := m.awaitSpare(t)
	m.quiet(t)
	m.Close()
	if !last.Process.HasExited() {
		t.Error("the spare outlives the manager")
	}
	m.wantEmpty(t)
	m.wantNoShims(t)
}

// What a foreign shim logs gets into the daemon's log.
func TestShimLog(t *testing.T) {
	m, _ := newManager(t)
	var lines strings.Builder
	got := make(chan struct{}, 10)
	m.log = testLog(&lines, got)
	b := m.bundleOf(key{"ns", "c"}, false)
	if err := b.create([]byte("{}"), 0); err != nil {
		t.Fatal(err)
	}
	tt := m.newTask(key{"ns", "c"}, creating, false)
	f, err := m.openLog(tt)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(b.file(logFIFO), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.WriteString("level=error msg=one\nlevel=info ms")
	w.WriteString("g=two\n" + strings.Repeat("x", 10000) + "\n")
	w.Close()
	for range 5 { // two lines, and the long one in three pieces
		<-got
	}
	f.Close()
	m.Close()
	if s := lines.String(); !strings.Contains(s, "level=ERROR") || !strings.Contains(s, "msg=two") || strings.Count(s, "x") < 10000 {
		t.Errorf("logged %.300s", s)
	}
	if err := b.remove(nil); err != nil {
		t.Error(err)
	}
}
