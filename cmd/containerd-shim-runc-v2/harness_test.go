package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
)

// buildShim builds the binary that is tested, as it is shipped, once. BERTH_TEST_SHIM
// names one that is built already.
var buildShim = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("BERTH_TEST_SHIM"); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "shim-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "containerd-shim-runc-v2")
	cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo", "-ldflags", "-s -w -extldflags -static", "-o", path, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// What is on the host once, under names that no other test has at the same time.
var (
	namespace = fmt.Sprintf("test-%d", os.Getpid())
	cgroups   = fmt.Sprintf("berth-test-%d", os.Getpid())
)

func TestMain(m *testing.M) {
	code := m.Run()
	os.Remove("/run/containerd/runc/" + namespace)
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroups)
	for _, p := range append(parents, "/sys/fs/cgroup/"+cgroups) {
		os.Remove(p)
	}
	if path, err := buildShim(); err == nil && os.Getenv("BERTH_TEST_SHIM") == "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// daemon plays the daemon: it receives events.
type daemon struct {
	address string
	mu      sync.Mutex
	events  []*types.Envelope
	changed chan struct{}
}

func newDaemon(t testing.TB) *daemon {
	d := &daemon{address: filepath.Join(t.TempDir(), "d.sock"), changed: make(chan struct{}, 1)}
	d.listen(t)
	return d
}

func (d *daemon) listen(t testing.TB) *ttrpc.Server {
	l, err := net.Listen("unix", d.address)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, d)
	go server.Serve(context.Background(), l)
	t.Cleanup(func() { server.Close() })
	return server
}

func (d *daemon) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	d.mu.Lock()
	d.events = append(d.events, r.Envelope)
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
	return &emptypb.Empty{}, nil
}

// topics waits until at least n events came.
func (d *daemon) topics(t testing.TB, n int) []string {
	deadline := time.After(10 * time.Second)
	for {
		d.mu.Lock()
		var topics []string
		for _, e := range d.events {
			topics = append(topics, e.Topic)
		}
		d.mu.Unlock()
		if len(topics) >= n {
			return topics
		}
		select {
		case <-d.changed:
		case <-deadline:
			t.Fatalf("only these events came: %v", topics)
		}
	}
}

// spare is a shim that waits for its assignment.
type spare struct {
	cmd     *exec.Cmd
	control *os.File
	said    *json.Decoder // what comes on control
}

func newSpare(t testing.TB) *spare {
	path, err := buildShim()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	cmd := exec.Command(path, "serve", "--padding", fmt.Sprintf("%0200d", 0))
	cmd.Args[0] = "containerd-shim-runc-v2"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	control := os.NewFile(uintptr(fds[0]), "control")
	return &spare{cmd, control, json.NewDecoder(control)}
}

// testShim is a shim that serves.
type testShim struct {
	*spare
	task.TTRPCTaskService
	client *ttrpc.Client
	socket string
}

func (s *spare) assign(t testing.TB, d *daemon, dir, id string) *testShim {
	socket := filepath.Join(dir, "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	msg, _ := json.Marshal(map[string]any{
		"namespace": namespace, "id": id, "bundle": dir, "address": "/nowhere", "ttrpc_address": d.address, "socket": "unix://" + socket,
	})
	raw := append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...)
	if err := unix.Sendmsg(int(s.control.Fd()), raw, unix.UnixRights(int(lf.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	var reply struct {
		PID, Version int
		Error        string
	}
	if err := s.said.Decode(&reply); err != nil {
		t.Fatal(err)
	}
	if reply.PID != s.cmd.Process.Pid || reply.Version != 3 {
		t.Fatalf("the shim answered %+v", reply)
	}
	return s.connect(t, socket)
}

func (s *spare) connect(t testing.TB, socket string) *testShim {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	return &testShim{s, task.NewTTRPCTaskClient(client), client, socket}
}

// close lets the shim end by itself, as it does once its containers are deleted and
// its daemon does not want it as a spare.
func (s *testShim) close(t testing.TB) {
	if s.control != nil {
		s.control.Close()
	}
	s.client.Close()
	timer := time.AfterFunc(10*time.Second, func() {
		t.Error("the shim does not end")
		s.cmd.Process.Signal(syscall.SIGKILL)
	})
	defer timer.Stop()
	s.cmd.Wait()
}

// bundle writes a bundle whose root filesystem is this machine's programs,
// read-only, with the test's changes to the configuration.
func bundle(t testing.TB, id string, args []string, change func(*specs.Spec)) string {
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"usr", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			t.Fatal(err)
		}
	}
	caps := []string{"CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/usr", Type: "bind", Source: "/usr", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath:   "/" + cgroups + "/" + id,
			Namespaces:    []specs.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "network"}},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if change != nil {
		change(spec)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
