package shimproc

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// A process that is root in a user namespace alone cannot take back what it gave
// away, although it has all capabilities there.
func TestPriorityReturns(t *testing.T) {
	const child = "BERTH_TEST_PRIORITY"
	if os.Getenv(child) != "" {
		if priorityReturns() {
			t.Log("it returns")
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	run := func(attr *syscall.SysProcAttr) bool {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPriorityReturns$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = attr
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Contains(string(out), "it returns")
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	if run(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}) {
		t.Error("in a user namespace a lowered priority can be raised")
	}
	if !priorityReturns() {
		t.Skip("this process has no CAP_SYS_NICE")
	}
	if !run(nil) {
		t.Error("with CAP_SYS_NICE a lowered priority cannot be raised")
	}
}
