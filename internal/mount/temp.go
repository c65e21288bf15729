package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"berth/internal/object/live"

	"golang.org/x/sys/unix"
)

const tempPattern = "berth-mount-"

// WithTemp mounts at a fresh directory, calls fn with it, and undoes that. The
// mounts are private: no other mount namespace receives them. An overlay's
// volatile option is left out, for it would forbid mounting it again.
//
// A crash leaves the directory and its mounts in os.TempDir: RemoveTemps.
func WithTemp(ctx context.Context, mounts []live.Mount, fn func(root string) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	root, remove, err := tempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	return prepared(ctx, mounts, func(mounts []live.Mount) error {
		if err := All(withoutVolatile(mounts), root); err != nil {
			return err
		}
		return fn(root)
	})
}

// prepared calls fn with mounts that mount(2) can do: those that need
// preparation (see Activator) are activated for its time.
func prepared(ctx context.Context, mounts []live.Mount, fn func([]live.Mount) error) (err error) {
	a := NewActivator(nil, "/")
	if !a.Needed(mounts, ActivateOptions{}) {
		return fn(mounts)
	}
	dir, remove, err := tempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	_, system, err := a.Activate(ctx, dir, mounts, ActivateOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.clear(context.WithoutCancel(ctx), dir)) }()
	return fn(system)
}

// tempDir makes a directory below a private mount; remove takes it away together
// with everything mounted there. The directory is not the mount itself: the kernel
// refuses to mount a filesystem (a subvolume of it) on a mount of the same one.
func tempDir() (dir string, remove func() error, err error) {
	private, err := os.MkdirTemp("", tempPattern)
	if err != nil {
		return "", nil, fmt.Errorf("temporary mount: %w", err)
	}
	dir = filepath.Join(private, "m")
	// os.Remove, never RemoveAll: if a mount could not be undone, what it shows is not ours to delete.
	remove = func() error {
		err := UnmountRecursive(private, unix.UMOUNT_NOFOLLOW)
		if rerr := os.Remove(dir); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return errors.Join(err, os.Remove(private))
	}
	err = unix.Mount(private, private, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", private, "", unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("temporary mount: make %s a private mount: %w", private, err), remove())
	}
	return dir, remove, nil
}

// RemoveTemps takes away what WithTemp has left behind in a crash. Nothing may
// be using WithTemp meanwhile, in this process or another one of this user's.
func RemoveTemps() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if err := UnmountRecursive(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeShallow(dir, 2))
	}
	return errors.Join(errs...)
}

// removeShallow removes a directory with what an activation has in it: files and
// directories, some levels deep.
func removeShallow(dir string, levels int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() && levels > 1 {
			err = removeShallow(path, levels-1)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

func withoutVolatile(mounts []live.Mount) []live.Mount {
	out := slices.Clone(mounts)
	for i, m := range out {
		if m.Type == "overlay" && slices.ContainsFunc(m.Options, isVolatile) {
			out[i].Options = slices.DeleteFunc(slices.Clone(m.Options), isVolatile)
		}
	}
	return out
}
