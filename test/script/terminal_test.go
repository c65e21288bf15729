package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/console"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdTerminal runs a command on a terminal and has a conversation with it: a
// file of lines "size ROWS COLUMNS", "expect REGEXP", "send TEXT" (a Go string
// without its quotes), "signal NAME" and, last, "exit STATUS".
func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: terminal FILE COMMAND...")
	}
	script := ts.ReadFile(args[0])
	if args[1] == "ctr" {
		of(ts).maybeRestart(ts)
		args[1] = ctr
	}
	master, slave, err := console.NewPty()
	ts.Check(err)
	defer master.Close()
	ts.Check(master.Resize(console.WinSize{Height: 24, Width: 80}))
	tty, err := os.OpenFile(slave, os.O_RDWR, 0)
	ts.Check(err)
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, k := range []string{"PATH", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "HOME"} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	tty.Close()
	ts.Check(err)
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	defer func() { cmd.Process.Kill(); <-ended }()

	seen := newTranscript(master)
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "":
		case "size":
			var w console.WinSize
			_, err := fmt.Sscan(rest, &w.Height, &w.Width)
			ts.Check(err)
			ts.Check(master.Resize(w))
		case "send":
			text, err := strconv.Unquote(`"` + rest + `"`)
			ts.Check(err)
			_, err = master.Write([]byte(text))
			ts.Check(err)
		case "signal":
			ts.Check(cmd.Process.Signal(map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[rest]))
		case "expect":
			if err := seen.expect(regexp.MustCompile(rest), 15*time.Second); err != nil {
				ts.Fatalf("%s: %v", line, err)
			}
		case "exit":
			select {
			case <-ended:
			case <-time.After(15 * time.Second):
				ts.Fatalf("%s has not ended; it printed:\n%s", args[1], seen)
			}
			if got := fmt.Sprint(cmd.ProcessState.ExitCode()); got != rest {
				ts.Fatalf("exit status %s, not %s; it printed:\n%s", got, rest, seen)
			}
		default:
			ts.Fatalf("unknown: %s", line)
		}
	}
	ts.Logf("terminal:\n%s", seen)
}

// transcript is what was printed on a terminal.
type transcript struct {
	mu   sync.Mutex
	all  []byte
	at   int // expect looks from here on
	more chan struct{}
}

func newTranscript(master console.Console) *transcript {
	t := &transcript{more: make(chan struct{}, 1)}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			t.mu.Lock()
			t.all = append(t.all, b[:n]...)
			t.mu.Unlock()
			select {
			case t.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return t
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.all)
}

func (t *transcript) expect(re *regexp.Regexp, patience time.Duration) error {
	end := time.After(patience)
	for {
		t.mu.Lock()
		loc := re.FindIndex(t.all[t.at:])
		if loc != nil {
			t.at += loc[1]
		}
		rest := string(t.all[t.at:])
		t.mu.Unlock()
		if loc != nil {
			return nil
		}
		select {
		case <-t.more:
		case <-end:
			return errors.New("it printed:\n" + rest)
		}
	}
}
