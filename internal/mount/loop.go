package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attachLoop backs a free loop device with the file. The device clears itself
// when the last user (a mount, or the returned file) lets go of it.
//
// A file that a device writes to already is not given a second one, of which the
// first knows nothing: shared is true, and the device is that one. A filesystem that
// is mounted twice, as to compare the files of a running container, would be ruined.
func attachLoop(file string, readOnly, directIO bool) (_ *os.File, shared bool, err error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	if directIO {
		flags |= unix.LO_FLAGS_DIRECT_IO
	}
	backing, err := os.OpenFile(file, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	defer backing.Close()
	// Until there is a device that others find: they may be other processes.
	if err := lockFile(backing); err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", file, err)
	}
	// Not by closing: the device keeps this open file, and a lock with it.
	defer unix.Flock(int(backing.Fd()), unix.LOCK_UN)
	if device := writableLoop(backing); device != nil {
		return device, true, nil
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, fmt.Errorf("%w (is the kernel's loop module loaded?)", err)
	}
	defer control.Close()

	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	for try := range 100 {
		n, err := freeLoop(int(control.Fd()), try)
		if err != nil {
			return nil, false, fmt.Errorf("find a free device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, false, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, false, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: somebody was faster, on to the next
			return nil, false, fmt.Errorf("configure %s for %s: %w", device.Name(), file, err)
		}
	}
	return nil, false, fmt.Errorf("no free device for %s: %w", file, unix.EBUSY)
}

// lockFile waits for others who are about to attach the file: some milliseconds. Who
// holds it for longer is nobody of ours, and must not hold up a mount for ever.
func lockFile(f *os.File) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || wait > time.Second {
			return err
		}
		time.Sleep(wait)
	}
}

// writableLoop opens the loop device that writes to the file, nil when there is none.
func writableLoop(backing *os.File) *os.File {
	var want unix.Stat_t
	if err := unix.Fstat(int(backing.Fd()), &want); err != nil {
		return nil
	}
	paths, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil || filepath.Base(strings.TrimSuffix(string(b), "\n")) != filepath.Base(backing.Name()) {
			continue
		}
		device, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(filepath.Dir(path))), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // a read-only one is EROFS or EACCES
		}
		// While it is open it does not change.
		info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		if err == nil && info.Inode == want.Ino && info.Device == want.Dev && info.Offset == 0 && info.Flags&unix.LO_FLAGS_READ_ONLY == 0 {
			return device
		}
		device.Close()
	}
	return nil
}

// freeLoop is the number of a loop device that is free. When others keep taking
// what is free, or look at it so that it cannot be configured, a new one is made
// rather than waited for.
func freeLoop(control, try int) (int, error) {
	if try < 3 {
		return unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), unix.LOOP_CTL_ADD, ^uintptr(0)) // -1: any number
	if errno != 0 {
		return unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	}
	return int(n), nil
}
