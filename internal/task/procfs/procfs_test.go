package procfs

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestStartTime(t *testing.T) {
	at, err := StartTime(os.Getpid())
	if err != nil || time.Since(at) < 0 || time.Since(at) > time.Hour {
		t.Errorf("this process started at %v, %v", at, err)
	}
}

func TestWorkers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/b", 0o700); err != nil {
		t.Fatal(err)
	}
	bundle := dir + "/b"
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip(err)
	}
	// Each waits for its input.
	start := func(dir string, args ...string) int {
		cmd := exec.Command("cat", args...)
		cmd.Dir = dir
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		return cmd.Process.Pid
	}
	shell := start(bundle)
	told := start(bundle, "-", bundle)
	beside := start(dir, "-", bundle)
	if got := Workers(bundle); !slices.Equal(got, []int{told}) {
		t.Errorf("%v, want %d", got, told)
	}
	got := Workers(bundle, exe(t, shell))
	want := []int{shell, told}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("with %s: %v, want %v", cat, got, want)
	}
	if !WorksIn(shell, bundle) || WorksIn(beside, bundle) || !WorksIn(shell, dir+"/other") {
		t.Error("WorksIn")
	}
	if err := os.Rename(bundle, dir+"/.b.0"); err != nil {
		t.Fatal(err)
	}
	if got := Workers(bundle); !slices.Equal(got, []int{told}) {
		t.Errorf("of a removed bundle: %v, want %d", got, told)
	}
}

func exe(t *testing.T, pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return path
}
