package shim

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flags of the shim's command line, as containerd's protocol has them.
type Flags struct {
	Namespace, ID, Bundle, Address string
	Debug                          bool
}

// defaultSocketDir is where sockets of shims are, short because the path of a
// socket has 107 bytes. Compat: containerd's.
const defaultSocketDir = "/run/containerd/s"

// maxStdin bounds what the daemon writes to standard input.
const maxStdin = 10 << 20

// Start is the action "start": it starts a shim for the bundle in the working
// directory, or finds that of the bundle's group, and writes its address to out.
func Start(ctx context.Context, f Flags, in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxStdin))
	if err != nil {
		return fmt.Errorf("read the daemon's parameters: %w", err)
	}
	b, ok := decodeBootstrap(raw, f.ID, f.Namespace)
	if !ok {
		b = bootstrap{
			id: f.ID, namespace: f.Namespace, address: f.Address, debug: f.Debug,
			ttrpcAddress: os.Getenv("TTRPC_ADDRESS"), reply: flagReply(os.Getenv("MAX_SHIM_VERSION")),
		}
	}
	group, err := groupOf("config.json", b.id)
	if err != nil {
		return err
	}
	address, err := startShim(b, group)
	if err != nil {
		return err
	}
	answer, err := b.reply(address)
	if err != nil {
		return err
	}
	_, err = out.Write(answer)
	return err
}

// groupOf names the containers that share a shim: those of a pod.
func groupOf(config, id string) (string, error) {
	f, err := os.Open(config)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&spec); err != nil {
		return "", fmt.Errorf("read config.json: %w", err)
	}
	for _, key := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if group, ok := spec.Annotations[key]; ok {
			return group, nil
		}
	}
	return id, nil
}

// startShim returns the address of the group's shim.
func startShim(b bootstrap, group string) (string, error) {
	dir := b.socketDir
	if dir == "" {
		dir = defaultSocketDir
	}
	// Compat: the same name as containerd's shim has, so that a container that joins
	// the group finds the shim whichever started it.
	sum := sha256.Sum256([]byte(filepath.Join(b.address, b.namespace, group)))
	path := filepath.Join(dir, fmt.Sprintf("%x", sum))
	address := "unix://" + path
	l, err := listen(path)
	if errors.Is(err, errServed) {
		return address, nil
	} else if err != nil {
		return "", err
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		return "", err
	}
	defer file.Close()
	pid, err := spawn(b, file)
	if err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	// Compat: read by people and scripts, not by daemons.
	return address, os.WriteFile("shim.pid", strconv.AppendInt(nil, int64(pid), 10), 0o644)
}

var errServed = errors.New("another shim serves the socket")

// listen makes a socket, in place of one that nobody listens on any more.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		conn, derr := net.DialTimeout("unix", path, 100*time.Millisecond)
		if derr == nil {
			conn.Close()
		}
		if !errors.Is(derr, unix.ECONNREFUSED) && !errors.Is(derr, unix.ENOENT) { // who has a full queue does listen
			return nil, errServed
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket of a shim that is gone: %w", err)
		}
		l, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it is the shim's, not this process's
	return l, os.Chmod(path, 0o600)
}

// spawn starts this program again as the shim, which outlives us and the daemon.
func spawn(b bootstrap, socket *os.File) (pid int, err error) {
	args := []string{"-namespace", b.namespace, "-id", b.id, "-address", b.address}
	if b.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+b.ttrpcAddress)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the shim: %w", err)
	}
	pid = cmd.Process.Pid
	preferDaemon(pid)
	return pid, cmd.Process.Release()
}

// preferDaemon makes the kernel kill the shim rather than its daemon when memory
// runs out. Raising the score needs no privilege; that it fails harms nobody.
func preferDaemon(pid int) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", os.Getppid()))
	if err != nil {
		return
	}
	if score, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), strconv.AppendInt(nil, int64(min(score+1, 1000)), 10), 0)
	}
}

// ServeInherited is the shim that Start started: its socket is file descriptor 3,
// the bundle its working directory, and the log goes to the FIFO that the daemon
// made there.
func ServeInherited(ctx context.Context, f Flags) error {
	if f.Namespace == "" || f.ID == "" {
		return errors.New("-namespace and -id are needed: a daemon starts this program, see -h")
	}
	tune()
	file := os.NewFile(3, "socket")
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("file descriptor 3 is not a listening socket: %w", err)
	}
	file.Close()
	log, err := openLog("log")
	if err != nil {
		return err
	}
	defer log.Close()
	return Serve(ctx, Config{Namespace: f.Namespace, TTRPCAddress: os.Getenv("TTRPC_ADDRESS"), Listener: listener, Log: newLog(log, f.Debug)})
}

// openLog opens the daemon's FIFO so that neither opening nor writing ever waits:
// what a daemon that is away does not read is lost once the FIFO is full.
func openLog(path string) (io.WriteCloser, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return os.Stderr, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return logFIFO(fd), nil
}

// logFIFO is written to without waiting.
type logFIFO int

func (fd logFIFO) Write(b []byte) (int, error) { return unix.Write(int(fd), b) }
func (fd logFIFO) Close() error                { return unix.Close(int(fd)) }
