package shim

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forked is a child that nobody but the reaper waits for.
type forked int

func (f forked) PID() int { return int(f) }

func (f forked) Collect() (syscall.WaitStatus, error) {
	var ws syscall.WaitStatus
	_, err := syscall.Wait4(int(f), &ws, syscall.WNOHANG, nil)
	return ws, err
}

func fork(t *testing.T, script string) forked {
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	cmd.Process.Release()
	return forked(pid)
}

// awaitZombie returns when a child has ended; it stays uncollected.
func awaitZombie(t *testing.T, pid int) {
	if _, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOWAIT); err != nil {
		t.Fatal(err)
	}
}

type exitReport struct {
	pid    int
	status uint32
}

func TestReaperReportsStatus(t *testing.T) {
	for script, want := range map[string]uint32{"exit 0": 0, "exit 42": 42, "kill -9 $$": 137, "kill -15 $$": 143} {
		r := newReaper()
		exits := make(chan exitReport, 1)
		release := r.Hold()
		child := fork(t, script)
		awaitZombie(t, int(child)) // it ends before it is registered
		r.Register(child, func(status uint32, at time.Time) { exits <- exitReport{int(child), status} })
		release()
		select {
		case e := <-exits:
			if e.status != want {
				t.Errorf("%s: status %d, want %d", script, e.status, want)
			}
		default:
			t.Errorf("%s: no exit was reported", script)
		}
	}
}

func TestReaperLeavesUnknownChildrenWhileHeld(t *testing.T) {
	r := newReaper()
	release := r.Hold()
	theirs := fork(t, "exit 1") // somebody else waits for it
	awaitZombie(t, int(theirs))
	ours := fork(t, "exit 2")
	awaitZombie(t, int(ours))
	exits := make(chan uint32, 1)
	r.Register(ours, func(status uint32, at time.Time) { exits <- status })
	r.Sweep()
	select {
	case status := <-exits:
		if status != 2 {
			t.Errorf("status %d, want 2", status)
		}
	default:
		t.Error("a child that is held back hides the exit of another")
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(int(theirs), &ws, 0, nil); err != nil || pid != int(theirs) || ws.ExitStatus() != 1 {
		t.Errorf("the child that somebody else waits for: pid %d, status %d, %v", pid, ws.ExitStatus(), err)
	}
	release()
}

func TestReaperReapsOrphans(t *testing.T) {
	r := newReaper()
	orphan := fork(t, "exit 3")
	awaitZombie(t, int(orphan))
	r.Sweep()
	if err := syscall.Kill(int(orphan), 0); err != syscall.ESRCH {
		t.Errorf("the orphan is still there: %v", err)
	}
}

func TestReaperNests(t *testing.T) {
	r := newReaper()
	outer, inner := r.Hold(), r.Hold()
	orphan := fork(t, "exit 3")
	awaitZombie(t, int(orphan))
	inner()
	if err := syscall.Kill(int(orphan), 0); err != nil {
		t.Errorf("reaped while held: %v", err)
	}
	outer()
	if err := syscall.Kill(int(orphan), 0); err != syscall.ESRCH {
		t.Errorf("the orphan is still there: %v", err)
	}
}
