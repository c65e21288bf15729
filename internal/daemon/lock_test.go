package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"berth/internal/fsx"

	"github.com/containerd/errdefs"
)

// The lock of a daemon that lives is refused at once; that of one that is dead,
// whose child still has it, is waited for.
func TestLockOutlivesItsDaemon(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lockFile)
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := lockDir(dir); !errdefs.IsAlreadyExists(err) || time.Since(begun) > lockPatience/2 {
		t.Errorf("lock of a daemon that lives: %v after %v", err, time.Since(begun))
	}
	unlock()

	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	unlock, err = fsx.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(dead.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { unlock() })
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("lock of a dead daemon's child: %v", err)
	}
	again()
}
