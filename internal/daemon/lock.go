package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/internal/fsx"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lockFile, in root and in state, is locked by the daemon that uses them and
// has its PID.
const lockFile = "berth.lock"

// lockPatience is how long a lock may outlive the daemon that took it.
const lockPatience = 5 * time.Second

// lockDir makes sure that no other daemon uses a directory.
// errdefs.ErrAlreadyExists names the one that does. The lock goes with the
// process, however that ends.
func lockDir(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockFile)
	unlock, err = fsx.TryLock(path)
	if errdefs.IsUnavailable(err) && !alive(path) {
		// A daemon that was killed while it started a program leaves a child that
		// holds the lock until its exec.
		unlock, err = fsx.Lock(path, lockPatience)
	}
	if errdefs.IsUnavailable(err) {
		return nil, fmt.Errorf("%s is in use by %s; stop it, or choose other directories with --root and --state: %w", dir, holder(path), errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// The PID is for people; the lock is what counts, on a full disk too.
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil && !isFull(err) {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), unlock())
	}
	return unlock, nil
}

// owner is the PID that a lock file has, 0 when it has none.
func owner(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}

// alive tells whether the daemon that took the lock may still run.
func alive(path string) bool {
	pid := owner(path)
	return pid <= 0 || !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func holder(path string) string {
	if pid := owner(path); pid > 0 {
		return process(pid)
	}
	return "another daemon"
}
