package fsx

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TryLock takes an exclusive lock (flock) on a file, which is made when it is
// not there, and returns the function that gives it back. The lock ends with
// the process, however that ends; the file stays. errdefs.ErrUnavailable when
// somebody else has it: another process, or an earlier call of this one.
func TryLock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is locked by another process: %w", path, errdefs.ErrUnavailable)
		}
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return f.Close, nil
}

// Lock is TryLock that waits, woken by the kernel, for at most as long as patience.
func Lock(path string, patience time.Duration) (unlock func() error, err error) {
	type result struct {
		f   *os.File
		err error
	}
	got, late := make(chan result), make(chan struct{})
	go func() {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			for {
				if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
					break
				}
			}
		}
		select {
		case got <- result{f, err}:
		case <-late:
			_ = f.Close() // nobody wants it any more
		}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-got:
		if r.err != nil {
			_ = r.f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, r.err)
		}
		return r.f.Close, nil
	case <-timer.C:
		close(late)
		return nil, fmt.Errorf("%s is locked by another process: %w", path, errdefs.ErrUnavailable)
	}
}
