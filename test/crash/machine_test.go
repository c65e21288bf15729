package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything may take that a test waits for. It is generous:
// it only bounds a failure.
const patience = 20 * time.Second

// machine is a daemon with everything that is its own.
type machine struct {
	t         *testing.T
	dir       string
	namespace string
	daemon    *exec.Cmd
	exited    chan struct{} // closed when daemon has ended
}

var machines atomic.Int64

// newMachine makes the directories; the daemon is not started yet. At the end of
// the test everything must have gone, unless the test failed: then it is removed.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	// Not t.TempDir: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "berth-crash-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, namespace: fmt.Sprintf("crash-%d-%d", os.Getpid(), machines.Add(1))}
	t.Cleanup(m.close)
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n",
		dir+"/root", dir+"/state", m.address(), m.address()+".ttrpc", dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) address() string { return m.dir + "/c.sock" }

func (m *machine) root(elem ...string) string {
	return filepath.Join(append([]string{m.dir, "root"}, elem...)...)
}

func (m *machine) state(elem ...string) string {
	return filepath.Join(append([]string{m.dir, "state"}, elem...)...)
}

// launch starts a daemon, which may be told to die, and does not wait for it.
func (m *machine) launch(failpoints string) {
	m.t.Helper()
	log, err := os.OpenFile(m.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", m.dir+"/config.toml")
	cmd.Env = append(os.Environ(), "BERTH_FAILPOINTS="+failpoints)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.daemon, m.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) { cmd.Wait(); close(exited) }(m.exited)
}

var errDied = errors.New("the daemon has died")

// await returns when the daemon answers, with errDied when it ended before.
func (m *machine) await() error {
	return m.poll(func() error {
		_, _, err := m.ctr("version")
		return err
	})
}

// start starts a daemon that lives, and waits for it.
func (m *machine) start() {
	m.t.Helper()
	m.launch("")
	if err := m.await(); err != nil {
		m.t.Fatalf("start the daemon: %v", err)
	}
}

// kill ends the daemon by SIGKILL, if it still runs.
func (m *machine) kill() { m.end(syscall.SIGKILL) }

// stop ends the daemon in order.
func (m *machine) stop() { m.end(syscall.SIGTERM) }

func (m *machine) end(sig syscall.Signal) {
	m.t.Helper()
	if m.daemon == nil {
		return
	}
	m.daemon.Process.Signal(sig)
	select {
	case <-m.exited:
	case <-time.After(patience):
		m.daemon.Process.Kill()
		<-m.exited
		m.t.Errorf("the daemon does not end by %v", sig)
	}
	m.daemon = nil
}

// dead tells whether the daemon has ended.
func (m *machine) dead() bool {
	if m.daemon == nil {
		return true
	}
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// ctr runs ctr and returns its exit status and output; the error says all of it.
func (m *machine) ctr(args ...string) (status int, out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ctr"), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+m.address(), "CONTAINERD_NAMESPACE="+m.namespace)
	cmd.WaitDelay = time.Second
	b, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return -1, string(b), fmt.Errorf("ctr %s: it does not end\n%s", strings.Join(args, " "), b)
	}
	if err != nil {
		err = fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, b)
	}
	return cmd.ProcessState.ExitCode(), string(b), err
}

// must is ctr for what has to succeed.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	_, out, err := m.ctr(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// lines is what a quiet list prints.
func (m *machine) lines(args ...string) []string {
	m.t.Helper()
	return strings.Fields(m.must(args...))
}

// task is one line of ctr tasks ls.
type task struct {
	pid    int
	status string
}

func (m *machine) tasks() (map[string]task, error) {
	_, out, err := m.ctr("tasks", "ls")
	if err != nil {
		return nil, err
	}
	tasks := map[string]task{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] != "TASK" {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				return nil, fmt.Errorf("ctr tasks ls: %q", line)
			}
			tasks[f[0]] = task{pid, f[2]}
		}
	}
	return tasks, nil
}

// awaitStatus waits until a task has a status; empty: until there is no task.
func (m *machine) awaitStatus(id, status string) error {
	return m.poll(func() error {
		tasks, err := m.tasks()
		if err == nil && tasks[id].status != status {
			err = fmt.Errorf("task %s is %q, not %q", id, tasks[id].status, status)
		}
		return err
	})
}

// poll calls f until it succeeds, often at first. It ends early with the daemon.
func (m *machine) poll(f func() error) error {
	deadline := time.Now().Add(patience)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		died := m.dead()
		err := f()
		if err == nil {
			return nil
		}
		if died {
			return fmt.Errorf("%w (%w)", errDied, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited for too long: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-m.exited:
		}
	}
}

// shims maps the IDs of containers to the PIDs of their shims.
func (m *machine) shims() map[string]int {
	shims := map[string]int{}
	for pid, cmdline := range m.processes() {
		args := strings.Split(cmdline, "\x00")
		for i := range args[:len(args)-1] {
			if args[i] == "-id" && strings.Contains(args[0], "containerd-shim") {
				shims[args[i+1]] = pid
			}
		}
	}
	return shims
}

// processes lists those of this machine, with their command lines: those that
// name its directory or work in it.
func (m *machine) processes() map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		if bytes.Contains(cmdline, []byte(m.dir)) || strings.HasPrefix(cwd, m.dir) {
			found[pid] = string(cmdline)
		}
	}
	return found
}

// log returns what the daemons have logged.
func (m *machine) log() string {
	b, _ := os.ReadFile(m.dir + "/log")
	return string(b)
}

// close removes everything. What is there that should not be fails the test.
func (m *machine) close() {
	m.stop()
	if !m.t.Failed() {
		if err := settle(m.traces); err != nil {
			m.t.Error(err)
		}
	}
	if m.t.Failed() {
		log := m.log()
		m.t.Logf("the daemon's log ends:\n%s", log[max(0, len(log)-6000):])
	}
	for pid := range m.processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range m.contained() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	settle(func() []string {
		m.unmountAll()
		return m.removeTraces()
	})
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Error(err)
	}
}
