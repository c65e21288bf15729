package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// attachLoop backs a free loop device with the file. The device clears itself
// when the last user (a mount, or the returned file) lets go of it.
func attachLoop(file string, readOnly, directIO bool) (*os.File, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	if directIO {
		flags |= unix.LO_FLAGS_DIRECT_IO
	}
	backing, err := os.OpenFile(file, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (is the kernel's loop module loaded?)", err)
	}
	defer control.Close()

	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	for try := range 100 {
		n, err := freeLoop(int(control.Fd()), try)
		if err != nil {
			return nil, fmt.Errorf("find a free device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: somebody was faster, on to the next
			return nil, fmt.Errorf("configure %s for %s: %w", device.Name(), file, err)
		}
	}
	return nil, fmt.Errorf("no free device for %s: %w", file, unix.EBUSY)
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
