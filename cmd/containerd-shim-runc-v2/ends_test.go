package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// sharesPIDs takes the PID namespace of its own from a container.
func sharesPIDs(s *specs.Spec) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == "pid" })
}

// within bounds the calls of one test: one that hangs is to fail.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// exits are the processes whose ends were told, in that order.
func (d *daemon) exits(t testing.TB) (ids []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Topic != "/tasks/exit" {
			continue
		}
		var exit eventtypes.TaskExit
		if err := proto.Unmarshal(e.Event.Value, &exit); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, exit.ID)
	}
	return ids
}

// A client that takes its FIFO away before the terminal of its exec is there
// costs that exec, and nothing else.
func TestExecTerminalWithoutClient(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.start()
	gone := filepath.Join(t.TempDir(), "gone")
	if err := w.exec("lost", &task.ExecProcessRequest{Terminal: true, Stdout: gone}, "sleep", "1000"); err == nil {
		t.Error("an exec without its output started")
	}
	if st := w.wait("lost"); st != 255 {
		t.Errorf("status %d, want 255", st)
	}
	pids, err := w.Pids(t.Context(), &task.PidsRequest{ID: w.id})
	if err != nil || len(pids.Processes) != 1 {
		t.Errorf("processes %v, %v: want the init alone", pids, err)
	}
	w.delete("lost")
	w.end()
	if got := w.d.exits(t); !slices.Equal(got, []string{w.id}) {
		t.Errorf("exits %v: want the init's alone", got)
	}
}

// A signal that cannot be ignored ends a paused container, whether it is for all
// of its processes or for the init.
func TestKillPausedInit(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.start()
	ctx := within(t, 20*time.Second)
	if _, err := w.Pause(ctx, &task.PauseRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Kill(ctx, &task.KillRequest{ID: w.id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wait(ctx, &task.WaitRequest{ID: w.id}); err != nil {
		w.Resume(t.Context(), &task.ResumeRequest{ID: w.id})
		t.Error(err)
	}
	w.wait("")
	w.delete("")
}

// An exec that was added before its container was paused is not started in it: it
// would be frozen half made.
func TestStartExecPaused(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.start()
	if _, err := w.Exec(t.Context(), &task.ExecProcessRequest{ID: w.id, ExecID: "x", Spec: processSpec(t, "true")}); err != nil {
		t.Fatal(err)
	}
	if err := w.exec("r", nil, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 20*time.Second)
	if _, err := w.Pause(ctx, &task.PauseRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	if st, err := w.State(ctx, &task.StateRequest{ID: w.id, ExecID: "r"}); err != nil || st.Status != tasktypes.Status_PAUSED {
		t.Errorf("an exec of a paused container is %v, %v", st, err)
	}
	_, err := w.Start(ctx, &task.StartRequest{ID: w.id, ExecID: "x"})
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := w.Resume(t.Context(), &task.ResumeRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), &task.StartRequest{ID: w.id, ExecID: "x"}); err != nil {
		t.Error(err)
	}
	w.wait("x")
	w.delete("x")
	w.end()
}

// The end of a container is told after the ends of all its execs.
func TestInitEndsLast(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){"own": nil, "shared": sharesPIDs} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []string{"sleep", "1000"}, change)
			w.create(nil)
			w.start()
			const execs = 10
			for i := range execs {
				if err := w.exec(fmt.Sprint("e", i), nil, "sleep", "1000"); err != nil {
					t.Fatal(err)
				}
			}
			w.end()
			w.d.topics(t, 2+2*execs+execs+2)
			if got := w.d.exits(t); len(got) != execs+1 || got[execs] != w.id {
				t.Errorf("exits %v: want %d, the init's last", got, execs+1)
			}
		})
	}
}

// Who waits for an exec that never starts is let go when it is deleted, or its
// container is.
func TestWaitForExecNeverStarted(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.start()
	ctx := within(t, 20*time.Second)
	waits := make(chan error)
	for _, id := range []string{"one", "two"} {
		if _, err := w.Exec(ctx, &task.ExecProcessRequest{ID: w.id, ExecID: id, Spec: processSpec(t, "true")}); err != nil {
			t.Fatal(err)
		}
		other := w.connect(t, w.socket)
		defer other.client.Close()
		go func() {
			_, err := other.Wait(ctx, &task.WaitRequest{ID: w.id, ExecID: id})
			waits <- err
		}()
		// The second call of a connection is begun after the first.
		if _, err := other.State(ctx, &task.StateRequest{ID: w.id}); err != nil {
			t.Fatal(err)
		}
	}
	w.delete("one")
	if err := <-waits; err != nil {
		t.Errorf("wait for a deleted exec: %v", err)
	}
	w.end()
	if err := <-waits; err != nil {
		t.Errorf("wait for an exec of a deleted container: %v", err)
	}
}
