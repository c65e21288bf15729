package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Erofs performs mounts of type "erofs" straight from the file where the
// kernel can (Linux 6.12), from loop devices where it cannot.
func Erofs() Handler { return new(erofsHandler) }

type erofsHandler struct{ needsLoop atomic.Bool }

func (h *erofsHandler) Mount(_ context.Context, m live.Mount, at string, _ []live.ActiveMount) (live.ActiveMount, error) {
	var options []string
	for _, o := range m.Options {
		if strings.HasPrefix(o, internalPrefix+"dmverity=") {
			return live.ActiveMount{}, fmt.Errorf("%s: layers with dm-verity are not supported: %w", m.Source, errdefs.ErrNotImplemented)
		}
		if o != "loop" {
			options = append(options, o)
		}
	}
	m.Options = options
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return live.ActiveMount{}, err
	}
	err := error(unix.ENOTBLK)
	if !h.needsLoop.Load() {
		err = mountAlone(m, at)
	}
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENOSYS) {
		h.needsLoop.Store(true)
		err = mountByLoop(m, at)
	}
	if err != nil {
		return live.ActiveMount{}, fmt.Errorf("mount erofs %s: %w", m.Source, err)
	}
	return live.ActiveMount{Mount: m, MountPoint: at}, nil
}

func (h *erofsHandler) Unmount(_ context.Context, at string) error { return Unmount(at, 0) }

// mountByLoop makes loop devices of the source and of the files in device=.
// They clear themselves when the mount goes.
func mountByLoop(m live.Mount, at string) error {
	m.Options = slices.Clone(m.Options)
	device, _, err := attachLoop(m.Source, true, false)
	if err != nil {
		return err
	}
	defer device.Close()
	m.Source = device.Name()
	for i, o := range m.Options {
		file, ok := strings.CutPrefix(o, "device=")
		if !ok {
			continue
		}
		device, _, err := attachLoop(file, true, false)
		if err != nil {
			return err
		}
		defer device.Close()
		m.Options[i] = "device=" + device.Name()
	}
	return mountAlone(m, at)
}

func mountAlone(m live.Mount, at string) error {
	opts, err := parse(m)
	if err != nil {
		return err
	}
	return newMount(m.Source, at, m.Type, opts)
}

// newMount mounts by fsopen(2), whose options have no common limit of length,
// only one of 255 bytes for each. ENOSYS before Linux 5.2.
func newMount(source, at, fstype string, opts options) error {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if opts.flags&unix.MS_RDONLY != 0 { // before the source: it decides how that is opened
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return err
		}
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	for _, o := range opts.data {
		key, value, ok := strings.Cut(o, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return fmt.Errorf("option %q: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributesOf(opts.flags))
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// attributesOf translates MS_* to MOUNT_ATTR_*.
func attributesOf(flags int) int {
	out := 0
	for ms, attr := range map[int]int{
		unix.MS_RDONLY:      unix.MOUNT_ATTR_RDONLY,
		unix.MS_NOSUID:      unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV:       unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC:      unix.MOUNT_ATTR_NOEXEC,
		unix.MS_NOATIME:     unix.MOUNT_ATTR_NOATIME,
		unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME,
		unix.MS_NODIRATIME:  unix.MOUNT_ATTR_NODIRATIME,
	} {
		if flags&ms != 0 {
			out |= attr
		}
	}
	return out
}
