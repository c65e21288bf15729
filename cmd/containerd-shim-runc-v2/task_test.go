package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// world is a shim with one container.
type world struct {
	*testShim
	t   testing.TB
	d   *daemon
	dir string
	id  string
}

func newWorld(t testing.TB, args []string, change func(*specs.Spec)) *world {
	needRoot(t)
	id := strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
	d := newDaemon(t)
	dir := bundle(t, id, args, change)
	w := &world{newSpare(t).assign(t, d, dir, id), t, d, dir, id}
	t.Cleanup(func() {
		w.close(t)
		w.nothingLeft()
	})
	return w
}

// nothingLeft of a container on the host.
func (w *world) nothingLeft() {
	w.t.Helper()
	if _, err := os.Stat("/run/containerd/runc/" + namespace + "/" + w.id); err == nil {
		w.t.Error("the runtime's state is left")
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroups + "/" + w.id); len(left) > 0 {
		w.t.Errorf("control groups are left: %v", left)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.dir) {
		w.t.Error("mounts are left")
	}
	if _, err := os.Stat(w.socket); err == nil {
		w.t.Error("the socket is left")
	}
}

func (w *world) create(req *task.CreateTaskRequest) uint32 {
	w.t.Helper()
	if req == nil {
		req = &task.CreateTaskRequest{}
	}
	req.ID, req.Bundle = w.id, w.dir
	resp, err := w.Create(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Pid
}

func (w *world) start() {
	w.t.Helper()
	if _, err := w.Start(w.t.Context(), &task.StartRequest{ID: w.id}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wait(execID string) uint32 {
	w.t.Helper()
	resp, err := w.Wait(w.t.Context(), &task.WaitRequest{ID: w.id, ExecID: execID})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.ExitStatus
}

func (w *world) delete(execID string) {
	w.t.Helper()
	if _, err := w.Delete(w.t.Context(), &task.DeleteRequest{ID: w.id, ExecID: execID}); err != nil {
		w.t.Fatal(err)
	}
}

// end kills and deletes the container.
func (w *world) end() {
	w.t.Helper()
	if _, err := w.Kill(w.t.Context(), &task.KillRequest{ID: w.id, Signal: 9, All: true}); err != nil {
		w.t.Fatal(err)
	}
	w.wait("")
	w.delete("")
}

func (w *world) status() tasktypes.Status {
	w.t.Helper()
	st, err := w.State(w.t.Context(), &task.StateRequest{ID: w.id})
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Status
}

func processSpec(t testing.TB, args ...string) *anypb.Any {
	raw, err := json.Marshal(specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: raw}
}

func (w *world) exec(execID string, io *task.ExecProcessRequest, args ...string) error {
	w.t.Helper()
	if io == nil {
		io = &task.ExecProcessRequest{}
	}
	io.ID, io.ExecID, io.Spec = w.id, execID, processSpec(w.t, args...)
	if _, err := w.Exec(w.t.Context(), io); err != nil {
		w.t.Fatal(err)
	}
	_, err := w.Start(w.t.Context(), &task.StartRequest{ID: w.id, ExecID: execID})
	return err
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%v, want %v", err, want)
	}
}

func mkfifo(t testing.TB, dir, name string) string {
	path := filepath.Join(dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// client reads a FIFO to its end.
func client(t testing.TB, path string) func() string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(path, os.O_WRONLY, 0) // until the shim has it open
	if err != nil {
		t.Fatal(err)
	}
	c := make(chan string, 1)
	go func() {
		defer f.Close()
		b, _ := io.ReadAll(f)
		c <- string(b)
	}()
	return func() string {
		hold.Close()
		select {
		case s := <-c:
			return s
		case <-time.After(10 * time.Second):
			t.Fatal("the output has no end")
			return ""
		}
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.start()
	out := mkfifo(t, w.dir, "out")
	read := client(t, out)
	if err := w.exec("one", &task.ExecProcessRequest{Stdout: out}, "sh", "-c", "echo hello; exit 5"); err != nil {
		t.Fatal(err)
	}
	if st := w.wait("one"); st != 5 {
		t.Errorf("status %d, want 5", st)
	}
	if got := read(); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	_, err := w.Exec(t.Context(), &task.ExecProcessRequest{ID: w.id, ExecID: "one", Spec: processSpec(t, "true")})
	wantCode(t, err, codes.AlreadyExists)
	w.delete("one")
	_, err = w.State(t.Context(), &task.StateRequest{ID: w.id, ExecID: "one"})
	wantCode(t, err, codes.NotFound)

	err = w.exec("two", nil, "nosuch")
	if err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("a command that does not exist: %v", err)
	}
	w.delete("two")

	if err := w.exec("three", nil, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Delete(t.Context(), &task.DeleteRequest{ID: w.id, ExecID: "three"})
	wantCode(t, err, codes.FailedPrecondition)
	pids, err := w.Pids(t.Context(), &task.PidsRequest{ID: w.id})
	if err != nil || len(pids.Processes) != 2 {
		t.Fatalf("%v, %v", pids, err)
	}
	if !slices.ContainsFunc(pids.Processes, func(p *tasktypes.ProcessInfo) bool {
		var d options.ProcessDetails
		return p.Info != nil && p.Info.TypeUrl == "containerd.runc.v1.ProcessDetails" && proto.Unmarshal(p.Info.Value, &d) == nil && d.ExecID == "three"
	}) {
		t.Errorf("no process has the exec's ID: %v", pids.Processes)
	}
	if _, err := w.Kill(t.Context(), &task.KillRequest{ID: w.id, ExecID: "three", Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if st := w.wait("three"); st != 143 {
		t.Errorf("status %d, want 143", st)
	}
	_, err = w.Kill(t.Context(), &task.KillRequest{ID: w.id, ExecID: "three", Signal: 15})
	wantCode(t, err, codes.NotFound)
	w.delete("three")
	w.end()
}

func TestTerminal(t *testing.T) {
	w := newWorld(t, []string{"sh", "-c", "read x; stty size; echo got $x"}, nil)
	in, out := mkfifo(t, w.dir, "in"), mkfifo(t, w.dir, "out")
	read := client(t, out)
	w.create(&task.CreateTaskRequest{Terminal: true, Stdin: in, Stdout: out})
	if _, err := w.ResizePty(t.Context(), &task.ResizePtyRequest{ID: w.id, Width: 132, Height: 43}); err != nil {
		t.Fatal(err)
	}
	w.start()
	f, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "typed\n")
	f.Close()
	if st := w.wait(""); st != 0 {
		t.Errorf("status %d", st)
	}
	if got := read(); !strings.Contains(got, "43 132") || !strings.Contains(got, "got typed") {
		t.Errorf("output %q", got)
	}
	w.delete("")
}

func TestInput(t *testing.T) {
	w := newWorld(t, []string{"cat"}, nil)
	in, out := mkfifo(t, w.dir, "in"), mkfifo(t, w.dir, "out")
	read := client(t, out)
	w.create(&task.CreateTaskRequest{Stdin: in, Stdout: out})
	w.start()
	f, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<15)
	io.WriteString(f, big)
	f.Close()
	if _, err := w.CloseIO(t.Context(), &task.CloseIORequest{ID: w.id, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	if st := w.wait(""); st != 0 {
		t.Errorf("status %d", st)
	}
	if got := read(); got != big {
		t.Errorf("%d bytes came back, want %d", len(got), len(big))
	}
	w.delete("")
}

func TestMissingCommand(t *testing.T) {
	w := newWorld(t, []string{"nosuch"}, nil)
	_, err := w.Create(t.Context(), &task.CreateTaskRequest{ID: w.id, Bundle: w.dir})
	if err == nil || !strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
		t.Errorf("%v", err)
	}
	_, err = w.State(t.Context(), &task.StateRequest{ID: w.id})
	wantCode(t, err, codes.NotFound)
}

func TestStates(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	ctx := t.Context()
	_, err := w.Start(ctx, &task.StartRequest{ID: w.id})
	wantCode(t, err, codes.NotFound)
	w.create(nil)
	_, err = w.Create(ctx, &task.CreateTaskRequest{ID: w.id, Bundle: w.dir})
	wantCode(t, err, codes.AlreadyExists)
	if st := w.status(); st != tasktypes.Status_CREATED {
		t.Errorf("status %v", st)
	}
	w.start()
	_, err = w.Start(ctx, &task.StartRequest{ID: w.id})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = w.Delete(ctx, &task.DeleteRequest{ID: w.id})
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "cannot delete a running process") {
		t.Error(err)
	}
	if _, err := w.Pause(ctx, &task.PauseRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	if st := w.status(); st != tasktypes.Status_PAUSED {
		t.Errorf("status %v", st)
	}
	_, err = w.Exec(ctx, &task.ExecProcessRequest{ID: w.id, ExecID: "x", Spec: processSpec(t, "true")})
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := w.Resume(ctx, &task.ResumeRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	resources, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}})
	if _, err := w.Update(ctx, &task.UpdateTaskRequest{ID: w.id, Resources: &anypb.Any{Value: resources}}); err != nil {
		t.Fatal(err)
	}
	stats, err := w.Stats(ctx, &task.StatsRequest{ID: w.id})
	if err != nil {
		t.Fatal(err)
	}
	if m := new(v1.Metrics); stats.Stats.TypeUrl == "io.containerd.cgroups.v1.Metrics" {
		// The threads of the init may be counted that has not yet executed the program.
		if err := proto.Unmarshal(stats.Stats.Value, m); err != nil || m.Memory.Usage.Limit != 64<<20 || m.Pids.Current == 0 {
			t.Errorf("%v, %v", m, err)
		}
	}
	// An exec is still possible after an update.
	if err := w.exec("after", nil, "true"); err != nil {
		t.Fatal(err)
	}
	w.wait("after")
	w.delete("after")
	_, err = w.Checkpoint(ctx, &task.CheckpointTaskRequest{ID: w.id, Path: t.TempDir()})
	if _, lerr := exec.LookPath("criu"); lerr != nil {
		wantCode(t, err, codes.Unimplemented)
	}
	// Killing wakes a paused container.
	if _, err := w.Pause(ctx, &task.PauseRequest{ID: w.id}); err != nil {
		t.Fatal(err)
	}
	w.end()
	want := "[/tasks/create /tasks/start /tasks/paused /tasks/resumed /tasks/exec-added /tasks/exec-started /tasks/exit /tasks/paused /tasks/exit /tasks/delete]"
	if got := fmt.Sprint(w.d.topics(t, 10)); got != want {
		t.Errorf("events %s,\nwant   %s", got, want)
	}
}

func ptr[T any](v T) *T { return &v }

func TestDeleteCreated(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	w.delete("")
}

func TestSharedPIDs(t *testing.T) {
	w := newWorld(t, []string{"sh", "-c", "sleep 1000 & sleep 1000 & exit 4"}, func(s *specs.Spec) {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == "pid" })
	})
	w.create(nil)
	w.start()
	if st := w.wait(""); st != 4 {
		t.Errorf("status %d", st)
	}
	w.delete("") // and nothing of it is left, the cgroup being empty
}

func TestOOM(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		t.Skip("no memory controller of version 1")
	}
	w := newWorld(t, []string{"tail", "/dev/zero"}, func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr[int64](16 << 20)}
	})
	w.create(nil)
	w.start()
	if st := w.wait(""); st != 137 {
		t.Errorf("status %d", st)
	}
	w.delete("")
	topics := w.d.topics(t, 5)
	if oom := slices.Index(topics, "/tasks/oom"); oom < 0 || oom > slices.Index(topics, "/tasks/exit") {
		t.Errorf("events %v: being out of memory must come before the exit", topics)
	}
}

func TestLimitsOfHost(t *testing.T) {
	w := newWorld(t, []string{"true"}, func(s *specs.Spec) {
		s.Process.OOMScoreAdj = ptr(-999)
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 40, Soft: 1 << 40}}
	})
	w.create(nil)
	w.start()
	if st := w.wait(""); st != 0 {
		t.Errorf("status %d", st)
	}
	w.delete("")
}

// A daemon that was away gets the events of that time.
func TestDaemonAway(t *testing.T) {
	w := newWorld(t, []string{"sh", "-c", "exit 9"}, nil)
	os.Remove(w.d.address)
	w.create(nil)
	w.start()
	w.wait("")
	w.d.listen(t)
	w.delete("")
	want := "[/tasks/create /tasks/start /tasks/exit /tasks/delete]"
	if got := fmt.Sprint(w.d.topics(t, 4)); got != want {
		t.Errorf("events %s, want %s", got, want)
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t, []string{"sleep", "1000"}, nil)
	w.create(nil)
	for _, now := range []bool{false, true} {
		if _, err := w.Shutdown(t.Context(), &task.ShutdownRequest{ID: w.id, Now: now}); err != nil {
			t.Fatal(err)
		}
	}
	w.start() // a shim with a container stays
	c, err := w.Connect(t.Context(), &task.ConnectRequest{ID: w.id})
	if err != nil || int(c.ShimPid) != w.cmd.Process.Pid || c.TaskPid == 0 {
		t.Errorf("%v, %v", c, err)
	}
	w.end()
	if _, err := w.Shutdown(t.Context(), &task.ShutdownRequest{ID: w.id}); err != nil && status.Code(err) != codes.Unknown {
		t.Error(err)
	}
}

// A third program as the runtime: what it does is seen in the same way.
func TestExternalRuntime(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("there is no runc on the PATH")
	}
	opts, _ := proto.Marshal(&options.Options{BinaryName: runc})
	any := &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: opts}
	w := newWorld(t, []string{"sh", "-c", "echo out; exit 3"}, nil)
	out := mkfifo(t, w.dir, "out")
	read := client(t, out)
	w.create(&task.CreateTaskRequest{Options: any, Stdout: out})
	w.start()
	if st := w.wait(""); st != 3 {
		t.Errorf("status %d", st)
	}
	if got := read(); got != "out\n" {
		t.Errorf("output %q", got)
	}
	w.delete("")
}

func TestBadOptions(t *testing.T) {
	w := newWorld(t, []string{"true"}, nil)
	_, err := w.Create(t.Context(), &task.CreateTaskRequest{ID: w.id, Bundle: w.dir, Options: &anypb.Any{TypeUrl: "x.y.Options"}})
	wantCode(t, err, codes.InvalidArgument)
	opts, _ := proto.Marshal(&options.Options{BinaryName: "/nonexistent/runc"})
	_, err = w.Create(t.Context(), &task.CreateTaskRequest{ID: w.id, Bundle: w.dir, Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: opts}})
	wantCode(t, err, codes.NotFound)
}
