package main

import (
	"fmt"
	"os"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v2"
)

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("containers are made by root")
	}
}

func TestLife(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	dir := bundle(t, "life", []string{"sh", "-c", "exit 3"}, nil)
	s := newSpare(t).assign(t, d, dir, "life")
	defer s.close(t)
	ctx := t.Context()
	created, err := s.Create(ctx, &task.CreateTaskRequest{ID: "life", Bundle: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx, &task.StartRequest{ID: "life"}); err != nil {
		t.Fatal(err)
	}
	end, err := s.Wait(ctx, &task.WaitRequest{ID: "life"})
	if err != nil || end.ExitStatus != 3 {
		t.Fatalf("exit status %d, %v; want 3", end.GetExitStatus(), err)
	}
	del, err := s.Delete(ctx, &task.DeleteRequest{ID: "life"})
	if err != nil || del.Pid != created.Pid || del.ExitStatus != 3 {
		t.Fatalf("delete: %v, %v", del, err)
	}
	want := "[/tasks/create /tasks/start /tasks/exit /tasks/delete]"
	if got := fmt.Sprint(d.topics(t, 4)); got != want {
		t.Errorf("events %s, want %s", got, want)
	}
}

func BenchmarkLife(b *testing.B) {
	needRoot(b)
	d := newDaemon(b)
	dir := bundle(b, "bench", []string{"true"}, nil)
	ctx := b.Context()
	next := newSpare(b)
	var times [4]float64
	var cpu float64
	for i := 0; b.Loop(); i++ {
		os.Remove(dir + "/s.sock")
		s := next.assign(b, d, dir, "bench")
		step := stopwatch()
		if _, err := s.Create(ctx, &task.CreateTaskRequest{ID: "bench", Bundle: dir}); err != nil {
			b.Fatal(err)
		}
		times[0] += step()
		if _, err := s.Start(ctx, &task.StartRequest{ID: "bench"}); err != nil {
			b.Fatal(err)
		}
		times[1] += step()
		if _, err := s.Wait(ctx, &task.WaitRequest{ID: "bench"}); err != nil {
			b.Fatal(err)
		}
		times[2] += step()
		if _, err := s.Delete(ctx, &task.DeleteRequest{ID: "bench"}); err != nil {
			b.Fatal(err)
		}
		times[3] += step()
		b.StopTimer()
		next = newSpare(b)
		s.close(b)
		// Of the shim and all that it waited for: the container's init, too.
		cpu += (s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime()).Seconds() * 1e3
		b.StartTimer()
	}
	next.control.Close()
	next.cmd.Wait()
	b.ReportMetric(cpu/float64(b.N), "cpu-ms/op")
	for i, name := range []string{"create", "start", "wait", "delete"} {
		b.ReportMetric(times[i]/float64(b.N), name+"-ms/op")
	}
}
