package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/internal/cgroup"
	"berth/internal/ociruntime/ocinit"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	ocinit.Linked() // this program is its containers' init
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// host is where the containers of one test are.
type host struct {
	t       *testing.T
	driver  Driver
	root    string
	cgroups string
	// files to be in the next bundle.
	files map[string]string
}

// drivers runs a test for each driver.
func drivers(t *testing.T, fn func(*testing.T, *host)) {
	if os.Geteuid() != 0 {
		t.Skip("containers are made by root")
	}
	run := func(name string, make func(root, dir string) Driver) {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			h := &host{t: t, root: root, driver: make(root, t.TempDir()), cgroups: fmt.Sprintf("berth-oci-%d", os.Getpid())}
			t.Cleanup(h.nothingLeft)
			fn(t, h)
		})
	}
	run("builtin", func(root, _ string) Driver { return &Builtin{Root: root} })
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Log("there is no runc on the PATH: the external driver is not tested")
		return
	}
	run("external", func(root, dir string) Driver {
		return &External{Binary: runc, Root: root, Log: filepath.Join(dir, "log.json")}
	})
}

func (h *host) nothingLeft() {
	if left, _ := os.ReadDir(h.root); len(left) > 0 {
		h.t.Errorf("state is left: %v", left)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + h.cgroups)
	for _, g := range append(groups, "/sys/fs/cgroup/"+h.cgroups) {
		if err := os.Remove(g); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("control groups are left: %v", err)
		}
	}
}

func (h *host) spec(id string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin"}, NoNewPrivileges: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
			{Destination: "/usr", Type: "bind", Source: "/usr", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + h.cgroups + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "uts"}, {Type: "ipc"}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
}

func (h *host) create(id string, spec *specs.Spec, stdio Stdio) (Container, error) {
	return h.createIn(h.t.Context(), id, spec, stdio)
}

func (h *host) createIn(ctx context.Context, id string, spec *specs.Spec, stdio Stdio) (Container, error) {
	dir := h.t.TempDir()
	for _, d := range []string{"usr", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	for _, l := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(dir, "rootfs", l)); err != nil {
			h.t.Fatal(err)
		}
	}
	for name, content := range h.files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	return h.driver.Create(ctx, id, CreateOptions{Bundle: dir, Spec: spec, Changed: true, Stdio: stdio, PIDFile: filepath.Join(dir, "init.pid")})
}

// run creates and starts.
func (h *host) run(id string, spec *specs.Spec, stdio Stdio) Container {
	h.t.Helper()
	c, err := h.create(id, spec, stdio)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := c.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// collect waits for a process and returns its exit code, or 128 plus the signal.
func collect(t *testing.T, p Process) int {
	t.Helper()
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
	ws, err := p.Collect()
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	if err != nil && ws == 0 {
		t.Fatal(err)
	}
	return ws.ExitStatus()
}

func pipe(t *testing.T) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestLife(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		r, w := pipe(t)
		c := h.run("life", h.spec("life", "sh", "-c", "echo hello; exit 7"), Stdio{Stdout: w})
		w.Close()
		if out, err := io.ReadAll(r); err != nil || string(out) != "hello\n" {
			t.Errorf("output %q, %v", out, err)
		}
		if st := collect(t, c.Init()); st != 7 {
			t.Errorf("status %d, want 7", st)
		}
		if err := c.Signal(t.Context(), unix.SIGTERM); !errdefs.IsNotFound(err) {
			t.Errorf("signal to a process that was collected: %v", err)
		}
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Several containers are made by one process, whose working directory is none of
// their bundles, or even gone. What a bundle says is relative to the bundle.
func TestBundlesAreNotWorkingDirectory(t *testing.T) {
	gone, err := os.MkdirTemp("", "gone-")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	drivers(t, func(t *testing.T, h *host) {
		if _, external := h.driver.(*External); external {
			t.Skip("the program has a working directory of its own")
		}
		for _, id := range []string{"one", "two"} {
			spec := h.spec(id, "cat", "/data/name")
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "data", Options: []string{"bind"}})
			r, w := pipe(t)
			h.files = map[string]string{"data/name": id}
			c := h.run(id, spec, Stdio{Stdout: w})
			w.Close()
			if out, _ := io.ReadAll(r); string(out) != id {
				t.Errorf("container %s read %q", id, out)
			}
			collect(t, c.Init())
			if err := c.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		for name, tc := range map[string]struct {
			change func(*specs.Spec)
			want   string
		}{
			"no such command":   {func(s *specs.Spec) { s.Process.Args = []string{"nosuch"} }, `exec: "nosuch": executable file not found in $PATH`},
			"no such path":      {func(s *specs.Spec) { s.Process.Args = []string{"/bin/nosuch"} }, "no such file or directory"},
			"no args":           {func(s *specs.Spec) { s.Process.Args = nil }, "args"},
			"relative cwd":      {func(s *specs.Spec) { s.Process.Cwd = "x" }, "not an absolute path"},
			"no such rlimit":    {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "RLIMIT_X"},
			"no such namespace": {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "x"}) }, "namespace"},
			"bad mount": {func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/nonexistent", Options: []string{"bind"}})
			}, "nonexistent"},
		} {
			spec := h.spec("refused", "true")
			tc.change(spec)
			_, err := h.create("refused", spec, Stdio{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want %q", name, err, tc.want)
			}
		}
		c, err := h.create("twice", h.spec("twice", "true"), Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.create("twice", h.spec("twice2", "true"), Stdio{}); err == nil {
			t.Error("a second container of the same name is made")
		}
		if err := c.KillAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		collect(t, c.Init())
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestOperations(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		ctx := t.Context()
		c := h.run("ops", h.spec("ops", "sleep", "1000"), Stdio{})
		r, w := pipe(t)
		p, err := c.Exec(ctx, ExecOptions{ID: "e", Spec: &specs.Process{Args: []string{"sh", "-c", "echo in; exit 4"}, Cwd: "/", Env: []string{"PATH=/bin"}}, Stdio: Stdio{Stdout: w}})
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		if out, _ := io.ReadAll(r); string(out) != "in\n" {
			t.Errorf("output %q", out)
		}
		if st := collect(t, p); st != 4 {
			t.Errorf("status %d, want 4", st)
		}
		if _, err := c.Exec(ctx, ExecOptions{ID: "x", Spec: &specs.Process{Args: []string{"nosuch"}, Cwd: "/", Env: []string{"PATH=/bin"}}}); err == nil || !strings.Contains(err.Error(), "executable file not found") {
			t.Errorf("a command that does not exist: %v", err)
		}
		if pids, err := c.Pids(ctx); err != nil || !slices.Equal(pids, []int{c.Init().PID()}) {
			t.Errorf("PIDs %v, %v", pids, err)
		}
		limit := int64(32 << 20)
		if err := c.Update(ctx, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
			t.Error(err)
		}
		if raw, err := os.ReadFile("/sys/fs/cgroup/memory/" + h.cgroups + "/ops/memory.limit_in_bytes"); err == nil && strings.TrimSpace(string(raw)) != "33554432" {
			t.Errorf("the limit is %s", raw)
		}
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(ctx, syscall.Signal(0)); err != nil {
			t.Error(err)
		}
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.KillAll(ctx); err != nil { // paused or not
			t.Fatal(err)
		}
		if st := collect(t, c.Init()); st != 137 {
			t.Errorf("status %d, want 137", st)
		}
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestConsole(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		spec := h.spec("tty", "sh", "-c", "test -t 0 && test -t 1 && echo terminal")
		spec.Process.Terminal = true
		c := h.run("tty", spec, Stdio{})
		master := c.Init().Console()
		if master == nil {
			t.Fatal("there is no terminal")
		}
		defer master.Close()
		buf := make([]byte, 100)
		n, err := master.Read(buf)
		if got := string(buf[:n]); err != nil || got != "terminal\r\n" {
			t.Errorf("%q, %v", got, err)
		}
		if st := collect(t, c.Init()); st != 0 {
			t.Errorf("status %d", st)
		}
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// What another process made, and left, is destroyed.
func TestDestroy(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		ctx := t.Context()
		c := h.run("lost", h.spec("lost", "sleep", "1000"), Stdio{})
		if err := h.driver.Destroy(ctx, "lost", nil); err != nil {
			t.Fatal(err)
		}
		if st := collect(t, c.Init()); st != 137 {
			t.Errorf("status %d, want 137", st)
		}
		if err := h.driver.Destroy(ctx, "lost", nil); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if _, builtin := h.driver.(*Builtin); builtin {
			// A start that was cut short leaves the directory alone, or with cgroups.
			for _, spec := range []*specs.Spec{nil, h.spec("half", "true")} {
				if err := os.Mkdir(filepath.Join(h.root, "half"), 0o700); err != nil {
					t.Fatal(err)
				}
				if spec != nil {
					ending := exec.Command("sleep", "0.1") // Destroy has to wait for it
					if err := ending.Start(); err != nil {
						t.Fatal(err)
					}
					defer ending.Wait()
					if err := cgroup.MakeAndJoin(spec.Linux.CgroupsPath, ending.Process.Pid); err != nil {
						t.Fatal(err)
					}
				}
				if err := h.driver.Destroy(ctx, "half", spec); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// A start that hangs holds up no kill. The container's cgroup being frozen, an
// exec does not get on.
func TestExecThatHangs(t *testing.T) {
	drivers(t, func(t *testing.T, h *host) {
		if _, external := h.driver.(*External); external {
			t.Skip("the program refuses to exec in a paused container")
		}
		ctx := t.Context()
		c := h.run("hang", h.spec("hang", "sleep", "1000"), Stdio{})
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		hung := make(chan Process, 1)
		go func() {
			p, err := c.Exec(context.Background(), ExecOptions{ID: "e", Spec: &specs.Process{Args: []string{"true"}, Cwd: "/"}})
			if err != nil {
				p = nil
			}
			hung <- p
		}()
		// It holds the container from when its process is in the cgroup.
		for {
			if pids, err := c.Pids(ctx); err != nil || len(pids) > 1 {
				break
			}
		}
		if err := c.KillAll(ctx); err != nil {
			t.Fatal(err)
		}
		// It may have been thawed and made before it was killed: then it is ours to
		// collect, and the init of its PID namespace does not end before that.
		if p := <-hung; p != nil {
			collect(t, p)
		}
		if st := collect(t, c.Init()); st != 137 {
			t.Errorf("status %d, want 137", st)
		}
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestMissingProgram(t *testing.T) {
	d := &External{Binary: "/nonexistent/runc", Root: t.TempDir(), Log: filepath.Join(t.TempDir(), "log")}
	h := &host{t: t, driver: d, root: d.Root, cgroups: "none"}
	_, err := h.create("c", h.spec("c", "true"), Stdio{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/nonexistent/runc") {
		t.Errorf("%v", err)
	}
}

// A program that is killed with its caller leaves a container that nobody knows of.
func TestExternalCutShort(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs runc on the PATH, and root")
	}
	dir := t.TempDir()
	made := filepath.Join(dir, "made")
	if err := unix.Mkfifo(made, 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\n%s \"$@\" || exit\ncase \"$*\" in *' create '*) echo > %s; exec sleep 1000;; esac\n", runc, made)
	slow := filepath.Join(dir, "slow")
	if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: t.TempDir(), cgroups: fmt.Sprintf("berth-oci-%d", os.Getpid())}
	h.driver = &External{Binary: slow, Root: h.root, Log: filepath.Join(dir, "log.json")}
	t.Cleanup(h.nothingLeft)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		os.ReadFile(made)
		cancel()
	}()
	if _, err := h.createIn(ctx, "cut", h.spec("cut", "true"), Stdio{}); err == nil {
		t.Error("a create whose caller has left succeeded")
	}
}

func TestRlimitNames(t *testing.T) {
	for _, name := range []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"} {
		if _, err := Rlimit("RLIMIT_" + name); err != nil {
			t.Error(err)
		}
	}
	if n, _ := Rlimit("RLIMIT_NOFILE"); n != 7 {
		t.Errorf("RLIMIT_NOFILE is %d", n)
	}
	if _, err := Rlimit("NOFILE"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
