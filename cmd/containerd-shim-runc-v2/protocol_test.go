package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A spare ends with its daemon, and shows what it has become.
func TestSpare(t *testing.T) {
	s := newSpare(t)
	s.control.Close()
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("a spare whose daemon is gone: %v", err)
	}
	needRoot(t)
	d := newDaemon(t)
	w := newSpare(t).assign(t, d, t.TempDir(), "shown")
	got := commandLine(t, w.cmd.Process.Pid)
	if want := "containerd-shim-runc-v2 -namespace " + namespace + " -id shown -address /nowhere"; got != want {
		t.Errorf("command line %q, want %q", got, want)
	}
	// When memory runs out the daemon is to live longer.
	if own, its := oomScore(t, os.Getpid()), oomScore(t, w.cmd.Process.Pid); its != min(own+1, 1000) {
		t.Errorf("the daemon's oom_score_adj is %d, its shim's %d", own, its)
	}
	w.close(t) // it has no container, and so ends with its client
}

func oomScore(t *testing.T, pid int) (score int) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(raw), &score); err != nil {
		t.Fatal(err)
	}
	return score
}

// A shim whose containers are gone is a spare again, as good as new.
func TestSpareAgain(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	s := newSpare(t)
	ctx := t.Context()
	command := ""
	for command == "" { // until its exec is over
		command = commandLine(t, s.cmd.Process.Pid)
	}
	var files int
	for i := range 5 {
		id := fmt.Sprintf("again-%d", i)
		dir := bundle(t, id, []string{"sh", "-c", "exit 3"}, nil)
		w := s.assign(t, d, dir, id)
		if _, err := w.Create(ctx, &task.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Start(ctx, &task.StartRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		if end, err := w.Wait(ctx, &task.WaitRequest{ID: id}); err != nil || end.ExitStatus != 3 {
			t.Fatalf("%v, %v", end, err)
		}
		if _, err := w.Delete(ctx, &task.DeleteRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		w.client.Close()
		var reply struct{ Idle bool }
		if err := s.said.Decode(&reply); err != nil || !reply.Idle {
			t.Fatalf("round %d: %+v, %v", i, reply, err)
		}
		// All that it had to tell was told before.
		topics := d.topics(t, 0)
		if n := 4 * (i + 1); len(topics) != n || topics[n-1] != "/tasks/delete" {
			t.Errorf("round %d: events %v", i, topics)
		}
		if _, err := os.Stat(w.socket); !os.IsNotExist(err) {
			t.Errorf("round %d: the socket is left: %v", i, err)
		}
		if now := commandLine(t, s.cmd.Process.Pid); now != command {
			t.Errorf("round %d: command line %q, want %q", i, now, command)
		}
		if wd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", s.cmd.Process.Pid)); err != nil || wd != "/" {
			t.Errorf("round %d: it works in %s, %v", i, wd, err)
		}
		switch now := entries(t, s.cmd.Process.Pid, "fd"); {
		case i == 0:
			files = now
		case now > files+2: // a pidfd is closed when its process is collected as garbage
			t.Errorf("round %d: %d open files, %d after the first", i, now, files)
		}
	}
	s.control.Close()
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("a spare whose daemon is gone: %v", err)
	}
}

// A process that was put into a cgroup of a container's choice does not serve again.
func TestSpareNotAgain(t *testing.T) {
	w := newWorld(t, []string{"true"}, nil)
	raw, err := proto.Marshal(&options.Options{ShimCgroup: "/"})
	if err != nil {
		t.Fatal(err)
	}
	w.create(&task.CreateTaskRequest{Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: raw}})
	w.start()
	w.wait("")
	w.delete("")
	w.client.Close()
	var reply struct{ Idle bool }
	if err := w.said.Decode(&reply); err == nil {
		t.Errorf("it says %+v in another cgroup", reply)
	}
	if err := w.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func commandLine(t *testing.T, pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimRight(string(raw), "\x00"), "\x00", " ")
}

func TestSpareRefuses(t *testing.T) {
	s := newSpare(t)
	s.cmd.Stderr = nil
	msg := []byte("\x00\x00\x00\x02{}")
	if _, err := s.control.Write(msg); err != nil {
		t.Fatal(err)
	}
	var reply struct{ Error string }
	if err := s.said.Decode(&reply); err != nil || reply.Error == "" {
		t.Errorf("%+v, %v", reply, err)
	}
	s.control.Close()
	if err := s.cmd.Wait(); err == nil {
		t.Error("it ends as if all were well")
	}
}

// call runs the shim's binary in a bundle.
func call(t *testing.T, dir string, env []string, stdin []byte, args ...string) []byte {
	t.Helper()
	path, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, &stderr)
	}
	return out
}

func pidOf(t *testing.T, dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, "shim.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	fmt.Sscan(string(raw), &pid)
	return pid
}

// awaitGone returns when a process that is not our child has ended.
func awaitGone(t *testing.T, pid int) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // deliberate: not our child
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

func TestStartProtocol(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	sockets := filepath.Join(t.TempDir(), "s")
	params := func(id string) (b []byte) {
		for _, f := range []struct {
			n protowire.Number
			v string
		}{{1, id}, {2, namespace}, {5, d.address}, {6, "/nowhere"}, {9, sockets}} {
			b = protowire.AppendString(protowire.AppendTag(b, f.n, protowire.BytesType), f.v)
		}
		return b
	}
	for name, tc := range map[string]struct {
		env   []string
		stdin func(id string) []byte
		// address takes the address out of the answer.
		address func(t *testing.T, out []byte) string
	}{
		"bare": {[]string{"TTRPC_ADDRESS=" + d.address}, func(string) []byte { return nil }, func(t *testing.T, out []byte) string { return string(out) }},
		"json": {[]string{"TTRPC_ADDRESS=" + d.address, "MAX_SHIM_VERSION=3"}, func(string) []byte { return nil }, func(t *testing.T, out []byte) string {
			var r struct {
				Version           int
				Address, Protocol string
			}
			if err := json.Unmarshal(out, &r); err != nil || r.Version != 3 || r.Protocol != "ttrpc" {
				t.Errorf("%s: %v", out, err)
			}
			return r.Address
		}},
		"protobuf": {[]string{"MAX_SHIM_VERSION=2"}, params, func(t *testing.T, out []byte) string {
			_, rest, _ := bytes.Cut(out, []byte("unix://"))
			address, _, ok := bytes.Cut(rest, []byte("\x1a\x05ttrpc"))
			if !ok {
				t.Errorf("%q", out)
			}
			return "unix://" + string(address)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			id := "start-" + name
			dir := bundle(t, id, []string{"sh", "-c", "exit 6"}, func(s *specs.Spec) {
				s.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "pod-" + name}
			})
			args := []string{"-namespace", namespace, "-id", id, "-address", "/nowhere", "-publish-binary", "/bin/true", "start"}
			address := tc.address(t, call(t, dir, tc.env, tc.stdin(id), args...))
			socket := strings.TrimPrefix(address, "unix://")
			pid := pidOf(t, dir)
			shim := (&spare{}).connect(t, socket)
			defer shim.client.Close()

			// Another container of the pod finds the same shim.
			other := bundle(t, id+"-2", []string{"true"}, func(s *specs.Spec) {
				s.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "pod-" + name}
			})
			if got := tc.address(t, call(t, other, tc.env, tc.stdin(id+"-2"), "-namespace", namespace, "-id", id+"-2", "-address", "/nowhere", "start")); got != address {
				t.Errorf("the pod's second container got %s, the first %s", got, address)
			}
			ctx := t.Context()
			for _, c := range []struct{ id, dir string }{{id, dir}, {id + "-2", other}} {
				if _, err := shim.Create(ctx, &task.CreateTaskRequest{ID: c.id, Bundle: c.dir}); err != nil {
					t.Fatal(err)
				}
				if _, err := shim.Start(ctx, &task.StartRequest{ID: c.id}); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range []string{id, id + "-2"} {
				if _, err := shim.Wait(ctx, &task.WaitRequest{ID: c}); err != nil {
					t.Error(err)
				}
				if _, err := shim.Delete(ctx, &task.DeleteRequest{ID: c}); err != nil {
					t.Error(err)
				}
			}
			shim.Shutdown(ctx, &task.ShutdownRequest{ID: id})
			awaitGone(t, pid)
			if _, err := os.Stat(socket); err == nil {
				t.Error("the socket is left")
			}
		})
	}
}

// After kill -9 of the shim "delete" leaves nothing of the container.
func TestKilledShim(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	dir := bundle(t, "killed", []string{"sleep", "1000"}, nil)
	s := newSpare(t).assign(t, d, dir, "killed")
	ctx := t.Context()
	created, err := s.Create(ctx, &task.CreateTaskRequest{ID: "killed", Bundle: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx, &task.StartRequest{ID: "killed"}); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGKILL)
	s.cmd.Wait()
	s.client.Close()
	out := call(t, dir, nil, nil, "-namespace", namespace, "-id", "killed", "-address", "/nowhere", "-bundle", dir, "delete")
	var resp task.DeleteResponse
	if err := proto.Unmarshal(out, &resp); err != nil || resp.Pid != created.Pid || resp.ExitStatus != 137 {
		t.Errorf("%v, %v", &resp, err)
	}
	awaitGone(t, int(created.Pid))
	os.Remove(s.socket)
	(&world{testShim: s, t: t, dir: dir, id: "killed"}).nothingLeft()
	// And again, when there is nothing.
	call(t, dir, nil, nil, "-namespace", namespace, "-id", "killed", "-address", "/nowhere", "-bundle", dir, "delete")
}

// The end of a container is not lost with its shim.
func TestKilledShimRemembersExit(t *testing.T) {
	needRoot(t)
	d := newDaemon(t)
	dir := bundle(t, "remembered", []string{"sh", "-c", "exit 11"}, nil)
	s := newSpare(t).assign(t, d, dir, "remembered")
	ctx := t.Context()
	if _, err := s.Create(ctx, &task.CreateTaskRequest{ID: "remembered", Bundle: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(ctx, &task.StartRequest{ID: "remembered"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ctx, &task.WaitRequest{ID: "remembered"}); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGKILL)
	s.cmd.Wait()
	s.client.Close()
	os.Remove(s.socket)
	out := call(t, dir, nil, nil, "-namespace", namespace, "-id", "remembered", "-address", "/nowhere", "-bundle", dir, "delete")
	var resp task.DeleteResponse
	if err := proto.Unmarshal(out, &resp); err != nil || resp.ExitStatus != 11 {
		t.Errorf("%v, %v", &resp, err)
	}
	(&world{testShim: s, t: t, dir: dir, id: "remembered"}).nothingLeft()
}

func TestVersion(t *testing.T) {
	if out := string(call(t, ".", nil, nil, "-v")); !strings.Contains(out, "Version:") {
		t.Errorf("%q", out)
	}
}

// The shim is in memory once for each container: what it links is looked at.
func TestLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags", "seccomp netgo osusergo", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		switch {
		case p == "google.golang.org/grpc", p == "go.etcd.io/bbolt", p == "net/http", p == "github.com/containerd/containerd/api/runtime/task/v3",
			strings.HasPrefix(p, "oras.land/"), strings.HasPrefix(p, "github.com/containerd/containerd/v2"), strings.HasPrefix(p, "github.com/gogo/"):
			t.Errorf("the shim links %s", p)
		}
	}
}
