package script

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/registry/registrytest"
	"berth/test/testimage"

	"github.com/rogpeppe/go-internal/testscript"
)

// bin holds the daemon and shim under test, ctr is the command line under
// test, busybox the image's only program.
var bin, ctr, busybox string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "script:", err)
			return 1
		}
		return m.Run()
	}())
}

func prepare() error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	run := func(name string, arg ...string) error {
		cmd := exec.Command(name, arg...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		return cmd.Run()
	}
	if bin = os.Getenv("BERTH_BIN"); bin == "" {
		bin = filepath.Join(top, "bin")
		if err := run(filepath.Join(top, "scripts/build"), bin); err != nil {
			return fmt.Errorf("build: %w", err)
		}
	}
	if ctr = os.Getenv("BERTH_CTR"); ctr == "" {
		ctr = filepath.Join(bin, "ctr")
	}
	cache := filepath.Join(top, "bin", "test")
	if err := run(filepath.Join(top, "scripts/busybox"), cache); err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	busybox = filepath.Join(cache, "busybox")
	return nil
}

func TestScripts(t *testing.T)               { runScripts(t, false) }
func TestScriptsAcrossRestarts(t *testing.T) { runScripts(t, true) }

func runScripts(t *testing.T, restarts bool) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setup(env, restarts) },
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "overlay":
				b, err := os.ReadFile("/proc/filesystems")
				return bytes.Contains(b, []byte("\toverlay\n")), err
			case "restarts":
				return restarts, nil
			case "berth-daemon":
				return isBerth(filepath.Join(bin, "containerd"))
			case "berth-ctr":
				return isBerth(ctr)
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon":   cmdDaemon,
			"ctr":      cmdCtr,
			"image":    cmdImage,
			"registry": cmdRegistry,
			"await":    cmdAwait,
			"shows":    cmdShows,
			"exits":    cmdExits,
			"fake":     cmdFake,
			"mkimage":  cmdMkimage,
			"terminal": cmdTerminal,
			"signal":   cmdSignal,
			"ports":    cmdPorts,
			"get":      cmdGet,
			"inherit":  cmdInherit,
			"notify":   cmdNotify,
			"certs":    cmdCerts,
			"dial":     cmdDial,
			"owner":    cmdOwner,
		},
	})
}

// isBerth tells whether a program is ours, by the version it prints.
func isBerth(program string) (bool, error) {
	out, err := exec.Command(program, "--version").Output()
	return bytes.Contains(out, []byte("berth")), err
}

// machine is what one script runs against.
type machine struct {
	dir       string
	namespace string
	restarts  bool
	fake      *registrytest.Registry // nil until the script asks for it

	mu       sync.Mutex // guards the processes
	daemon   *exec.Cmd
	exited   chan struct{} // closed when daemon has ended
	registry *exec.Cmd
	prepare  func(*exec.Cmd) // changes how the daemon is started; may be nil
}

const machineKey = "machine"

func setup(env *testscript.Env, restarts bool) error {
	// Cgroups and the runtime's state are the host's: a namespace of its own
	// keeps one script's containers from another's.
	namespace := fmt.Sprintf("%s-%d", strings.ReplaceAll(filepath.Base(env.WorkDir), "_", "-"), os.Getpid())
	m := &machine{dir: filepath.Join(env.WorkDir, "d"), namespace: namespace, restarts: restarts}
	if err := os.Mkdir(m.dir, 0o711); err != nil {
		return err
	}
	// The root of a user namespace must reach its files.
	for _, dir := range []string{env.WorkDir, filepath.Dir(env.WorkDir)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.'io.containerd.internal.v1.opt']\npath = %q\n",
		m.dir+"/root", m.dir+"/state", m.address(), m.address()+".ttrpc", m.dir+"/opt")
	if err := os.WriteFile(m.dir+"/config.toml", []byte(config), 0o600); err != nil {
		return err
	}
	env.Values[machineKey] = m
	env.Setenv("PATH", filepath.Dir(ctr)+":"+bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	env.Setenv("CONTAINERD_ADDRESS", m.address())
	env.Setenv("CONTAINERD_NAMESPACE", namespace)
	env.Setenv("D", m.dir)
	env.Setenv("BUSYBOX", busybox)
	env.Setenv("IMAGE", "example.com/busybox:1")
	env.Defer(m.close)
	return nil
}

func (m *machine) address() string { return m.dir + "/c.sock" }

// start starts the daemon and waits until its socket answers.
func (m *machine) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.daemon != nil {
		return errors.New("the daemon runs already")
	}
	log, err := os.OpenFile(m.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", m.dir+"/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if m.prepare != nil {
		m.prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = poll(ctx, func() error {
		select {
		case <-exited:
			return stop{fmt.Errorf("the daemon ended: %v", cmd.ProcessState)}
		default:
		}
		c := exec.CommandContext(ctx, ctr, "-a", m.address(), "version")
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("ctr version: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-exited
		tail, _ := os.ReadFile(m.dir + "/log")
		return fmt.Errorf("%w\n%s", err, tail)
	}
	m.daemon, m.exited = cmd, exited
	return nil
}

func (m *machine) signal(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.daemon == nil {
		return errors.New("the daemon does not run")
	}
	if err := m.daemon.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-m.exited:
	case <-time.After(15 * time.Second):
		m.daemon.Process.Kill()
		<-m.exited
		return fmt.Errorf("the daemon did not end within 15 s of %v", sig)
	}
	m.daemon = nil
	return nil
}

// close ends what the script started and complains of what it left.
func (m *machine) close() {
	if m.daemon != nil {
		m.signal(syscall.SIGTERM)
	}
	if m.registry != nil {
		m.registry.Process.Kill()
		m.registry.Wait()
	}
	// A shim whose daemon is gone tries for a few seconds to deliver its events.
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	poll(ctx, func() error {
		if n := len(m.processes()); n > 0 {
			return fmt.Errorf("%d processes are left", n)
		}
		return nil
	})
	var left []string
	for _, pid := range m.processes() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d %q", pid, bytes.TrimSpace(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))))
		syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts := m.mounts()
	for i := len(mounts) - 1; i >= 0; i-- {
		left = append(left, "mount "+mounts[i])
		syscall.Unmount(mounts[i], syscall.MNT_DETACH)
	}
	left = append(left, m.traces()...)
	if len(left) > 0 {
		leftovers.Lock()
		leftovers.list = append(leftovers.list, fmt.Sprintf("%s: %s", filepath.Base(filepath.Dir(m.dir)), strings.Join(left, "; ")))
		leftovers.Unlock()
	}
}

// leftovers are what passing scripts left running or mounted; TestNothingLeft
// reports them. A script that failed half-way may leave things.
var leftovers struct {
	sync.Mutex
	list []string
}

// TestNothingLeft runs after the scripts: go test keeps the order of the file.
func TestNothingLeft(t *testing.T) {
	leftovers.Lock()
	defer leftovers.Unlock()
	for _, l := range leftovers.list {
		t.Errorf("left behind by %s", l)
	}
}

// processes lists those that have the script's directory in their environment
// or command line: shims and what they hold.
func (m *machine) processes() []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		if bytes.Contains(cmdline, []byte(m.dir)) || strings.HasPrefix(cwd, m.dir) {
			out = append(out, pid)
		}
	}
	return out
}

func (m *machine) mounts() []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], m.dir) {
			out = append(out, f[4])
		}
	}
	return out
}

// traces removes, and lists, what is left of containers outside the script's
// directory: the runtime's state and cgroups.
func (m *machine) traces() []string {
	var out []string
	for _, pattern := range []string{"/run/containerd/runc/" + m.namespace + "/*", "/sys/fs/cgroup/*/" + m.namespace + "/*", "/sys/fs/cgroup/" + m.namespace + "/*"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if fi, err := os.Stat(f); err != nil || !fi.IsDir() {
				continue
			}
			out = append(out, "directory "+f)
			killAll(f + "/cgroup.procs")
			if strings.HasPrefix(f, "/run/") {
				os.RemoveAll(f)
			} else {
				os.Remove(f)
			}
		}
	}
	// The namespace's own directories are the host's business, as containerd has it.
	for _, pattern := range []string{"/run/containerd/runc/" + m.namespace, "/sys/fs/cgroup/*/" + m.namespace, "/sys/fs/cgroup/" + m.namespace} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			os.Remove(f)
		}
	}
	return out
}

// killAll kills the processes of a cgroup that a script left.
func killAll(procs string) {
	b, _ := os.ReadFile(procs)
	for pid := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(pid); err == nil {
			syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

func of(ts *testscript.TestScript) *machine { return ts.Value(machineKey).(*machine) }

func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: daemon start|stop|kill|restart")
	}
	m := of(ts)
	var err error
	switch args[0] {
	case "start":
		err = m.start()
	case "stop":
		err = m.signal(syscall.SIGTERM)
	case "kill":
		err = m.signal(syscall.SIGKILL)
	case "restart":
		if err = m.signal(syscall.SIGKILL); err == nil {
			err = m.start()
		}
	default:
		ts.Fatalf("unknown: daemon %s", args[0])
	}
	if neg != (err != nil) {
		ts.Fatalf("daemon %s: %v", args[0], err)
	}
}

func cmdCtr(ts *testscript.TestScript, neg bool, args []string) {
	of(ts).maybeRestart(ts)
	execCommand(ts, neg, append([]string{ctr}, args...))
}

func (m *machine) maybeRestart(ts *testscript.TestScript) {
	if !m.restarts || m.daemon == nil {
		return
	}
	if err := m.signal(syscall.SIGKILL); err != nil {
		ts.Fatalf("kill the daemon: %v", err)
	}
	if err := m.start(); err != nil {
		ts.Fatalf("start the daemon again: %v", err)
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: exits N COMMAND...")
	}
	if args[1] == "ctr" {
		of(ts).maybeRestart(ts)
		args[1] = ctr
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, not %s", got, args[0])
	}
}

// execCommand runs testscript's own exec.
func execCommand(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[0], args[1:]...)
	switch {
	case err != nil && !neg:
		ts.Fatalf("%s failed: %v", strings.Join(args, " "), err)
	case err == nil && neg:
		ts.Fatalf("%s succeeded, it should not have", strings.Join(args, " "))
	}
}

func cmdImage(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.Getenv("IMAGE")
	if len(args) > 0 {
		name = args[0]
	}
	program, err := os.ReadFile(busybox)
	ts.Check(err)
	img, err := testimage.Busybox(name, program)
	ts.Check(err)
	var b bytes.Buffer
	ts.Check(testimage.WriteOCI(&b, img))
	file := ts.MkAbs("busybox.tar")
	ts.Check(os.WriteFile(file, b.Bytes(), 0o600))
	execCommand(ts, neg, []string{ctr, "images", "import", file})
}

func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	m := of(ts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/registry}, delete: {enabled: true}}\nhttp:\n  addr: %q\n", m.dir, addr)
	for _, a := range args {
		switch a {
		case "tls":
			ts.Check(certificate(ts.MkAbs("ca.pem"), m.dir+"/key.pem"))
			config += fmt.Sprintf("  tls: {certificate: %q, key: %q}\n", ts.MkAbs("ca.pem"), m.dir+"/key.pem")
		case "auth": // user me, password secret
			ts.Check(os.WriteFile(m.dir+"/htpasswd", []byte("me:"+secretHash+"\n"), 0o600))
			config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", m.dir+"/htpasswd")
		default:
			ts.Fatalf("unknown: registry %s", a)
		}
	}
	ts.Check(os.WriteFile(m.dir+"/registry.yml", []byte(config), 0o600))
	log, err := os.Create(m.dir + "/registry.log")
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command("docker-registry", "serve", m.dir+"/registry.yml")
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	m.registry = cmd
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ts.Check(poll(ctx, func() error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	}))
	ts.Setenv("REGISTRY", addr)
}

// secretHash is bcrypt's of "secret".
const secretHash = "$2b$04$OQ6VeyiYsW6APG0EMlmueugneC71X.oWPvn7a3MZdf15HC.tfs5Wu"

// certificate writes a self-signed certificate for 127.0.0.1 and its key.
func certificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test registry"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := poll(ctx, func() error {
		err := ts.Exec(args[0], args[1:]...)
		if neg {
			if err == nil {
				return errors.New("it still succeeds")
			}
			return nil
		}
		return err
	})
	if err != nil {
		ts.Fatalf("await %s: %v", strings.Join(args, " "), err)
	}
}

// cmdShows waits until what a command prints matches a pattern, or, negated, does
// so no longer: for what the daemon does when nobody is left to tell, as clearing
// up after a client that has gone.
func cmdShows(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] shows PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = poll(ctx, func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return stop{err}
		}
		if out := ts.ReadFile("stdout"); pattern.MatchString(out) == neg {
			return fmt.Errorf("it prints %q", out)
		}
		return nil
	})
	if err != nil {
		ts.Fatalf("shows %s: %v", strings.Join(args, " "), err)
	}
}

// stop is an error that ends a poll at once.
type stop struct{ error }

// poll calls f until it succeeds, often at first; the last error when ctx ends.
func poll(ctx context.Context, f func() error) error {
	wait := 5 * time.Millisecond
	for {
		err := f()
		var s stop
		if err == nil || errors.As(err, &s) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		case <-time.After(wait):
			wait = min(2*wait, 200*time.Millisecond)
		}
	}
}
