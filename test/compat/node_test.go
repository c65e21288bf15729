package compat

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
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// node is one root and state directory, on which daemons run one after the
// other: ours and theirs. Its directory is short, for the sockets.
type node struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

// newNode makes the directories and a configuration that both daemons take.
func newNode(t *testing.T, extra string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("", "bn")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, addr: dir + "/c.sock", log: new(bytes.Buffer)}
	// Version 2 is what containerd 1.7 understands as well.
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.cri']\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[debug]\naddress = %q\nlevel = 'debug'\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n[plugins.'io.containerd.internal.v1.restart']\ninterval = '1s'\n[plugins.'io.containerd.monitor.container.v1.restart']\ninterval = '1s'\n%s",
		dir+"/root", dir+"/state", n.addr, n.addr+".ttrpc", dir+"/debug.sock", dir+"/opt", extra)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.remove)
	return n
}

// namespace is one of this node's own: state of containers is below
// /run/containerd/runc for all.
func (n *node) namespace() string { return filepath.Base(n.dir) }

// start runs the daemon of a directory of programs and waits until it answers.
func (n *node) start(bin string) *client.Client {
	n.t.Helper()
	fmt.Fprintf(n.log, "--- %s\n", bin)
	n.cmd = exec.Command(filepath.Join(bin, "containerd"), "-c", n.dir+"/config.toml")
	n.cmd.Env = append(os.Environ(), "PATH="+bin+":"+peerBin+":/usr/sbin:/usr/bin:/sbin:/bin")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.WaitDelay = 5 * time.Second
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	c, err := client.New(n.addr, client.WithTimeout(30*time.Second))
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.log)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	if ok, err := c.IsServing(ctx); !ok {
		n.t.Fatalf("the daemon does not serve: %v\n%s", err, n.log)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// stop ends the daemon by a signal.
func (n *node) stop(sig syscall.Signal) {
	n.t.Helper()
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Signal(sig)
	err := n.cmd.Wait()
	n.cmd = nil
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && sig == syscall.SIGTERM && exit.ExitCode() != 0 {
		n.t.Errorf("the daemon ended with %v", err)
	}
}

// remove ends what a failed test has left and takes the directory away. What a
// test that passed has left is an error.
func (n *node) remove() {
	n.stop(syscall.SIGTERM)
	var pids []int
	// A shim ends a moment after its last container.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if pids = n.processes(); len(pids) == 0 || time.Now().After(end) {
			break
		}
	}
	left := len(pids)
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		n.t.Logf("process %d: %q", pid, cmdline)
		syscall.Kill(pid, syscall.SIGKILL)
	}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], n.dir+"/") {
			left++
			unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if state := runtimeState + n.namespace(); left > 0 {
		os.RemoveAll(state)
		n.t.Errorf("%d processes and mounts were left behind", left)
	}
	// A parent that runtimes make and leave: only when it is empty.
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		dirs, _ := filepath.Glob(pattern + "berth-compat")
		for _, dir := range dirs {
			os.Remove(dir)
		}
	}
	if n.t.Failed() {
		n.t.Logf("the daemons' log:\n%s", n.log)
	}
	os.RemoveAll(n.dir)
}

// processes are those that work in the node's directories.
func (n *node) processes() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if pid, perr := strconv.Atoi(e.Name()); err == nil && perr == nil && strings.HasPrefix(cwd, n.dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}
