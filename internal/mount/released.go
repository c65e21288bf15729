package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// releaseTimeout bounds the wait for others to let go of an unmounted image.
const releaseTimeout = 10 * time.Second

// Released returns when no loop device is backed by the file any more: only then
// has the filesystem in it been written back. An unmount is no proof of that.
// Every process that starts a container has a copy of all mounts for a moment,
// and the filesystem lives until the last copy is gone.
// errdefs.ErrFailedPrecondition when somebody really has it mounted.
//
// The kernel has nothing to wait for here, so it looks again and again, with
// growing pauses; mostly the first look is the last.
func Released(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		device, err := backedBy(file)
		if err != nil || device == "" {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s is in use as /dev/%s: %w", file, device, errdefs.ErrFailedPrecondition)
		}
	}
}

// backedBy is the loop device of the file, empty when there is none.
func backedBy(file string) (device string, err error) {
	file, err = filepath.EvalSymlinks(file)
	if err != nil {
		return "", err
	}
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		// One that disappears has let go.
		if b, err := os.ReadFile(path); err == nil && strings.TrimSuffix(string(b), "\n") == file {
			return filepath.Base(filepath.Dir(filepath.Dir(path))), nil
		}
	}
	return "", nil
}
