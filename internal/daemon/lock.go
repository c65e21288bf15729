package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"berth/internal/fsx"

	"github.com/containerd/errdefs"
)

// lockFile, in root and in state, is locked by the daemon that uses them and
// has its PID.
const lockFile = "berth.lock"

// lockDir makes sure that no other daemon uses a directory.
// errdefs.ErrAlreadyExists names the one that does. The lock goes with the
// process, however that ends.
func lockDir(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockFile)
	unlock, err = fsx.TryLock(path)
	if errdefs.IsUnavailable(err) {
		return nil, fmt.Errorf("%s is in use by %s; stop it, or choose other directories with --root and --state: %w", dir, holder(path), errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// The PID is for people; the lock is what counts.
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), unlock())
	}
	return unlock, nil
}

func holder(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "another daemon"
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return "another daemon"
	}
	return process(pid)
}
