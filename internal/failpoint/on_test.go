//go:build failpoints

package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestActions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	p, err := parse("a=error;b@3=error;c=delay:20ms;list=" + file)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false} {
		if err := p.hit("a"); (err != nil) != want {
			t.Errorf("hit %d of a: %v", i+1, err)
		}
	}
	for i, want := range []bool{false, false, true, false} {
		if err := p.hit("b"); (err != nil) != want {
			t.Errorf("hit %d of b: %v", i+1, err)
		}
	}
	begin := time.Now()
	if err := p.hit("c"); err != nil || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("the delay lasted %v, %v", time.Since(begin), err)
	}
	list, err := os.ReadFile(file)
	if err != nil || string(list) != "a\na\na\nb\nb\nb\nb\nc\n" {
		t.Errorf("list: %q, %v", list, err)
	}
}

func TestKill(t *testing.T) {
	if os.Getenv(Variable) != "" {
		Hit("dies")
		t.Fatal("it lives")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), Variable+"=dies=kill")
	cmd.Run()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"a", "a=explode", "a@x=kill", "a@0=kill", "a=delay:soon", "=kill", "list=/nowhere/at/all"} {
		if _, err := parse(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
