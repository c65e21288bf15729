package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrNotDevice says that a path is neither a device node nor a FIFO.
var ErrNotDevice = errors.New("not a device node")

// DeviceFromPath describes the device node at path, links not followed.
// ErrNotDevice when it is something else.
func DeviceFromPath(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFIFO:
		kind = "p"
	default:
		return specs.LinuxDevice{}, fmt.Errorf("%s: %w", path, ErrNotDevice)
	}
	rdev, mode := uint64(st.Rdev), fs.FileMode(st.Mode&^unix.S_IFMT)
	return specs.LinuxDevice{
		Type: kind, Path: path, Major: int64(unix.Major(rdev)), Minor: int64(unix.Minor(rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}

// Devices lists the device node at path or, when that is a directory, those
// below it but for FIFOs, consoles, and what a container has of its own (pts,
// shm, mqueue, fd).
func Devices(path string) ([]specs.LinuxDevice, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		dev, err := DeviceFromPath(path)
		if err != nil {
			return nil, err
		}
		return []specs.LinuxDevice{dev}, nil
	}
	return devicesBelow(path)
}

func devicesBelow(dir string) ([]specs.LinuxDevice, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []specs.LinuxDevice
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				continue
			}
			below, err := devicesBelow(path)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
			continue
		}
		if e.Name() == "console" || e.Type()&fs.ModeDevice == 0 {
			continue
		}
		dev, err := DeviceFromPath(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotDevice) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, dev)
	}
	return out, nil
}

// AllowDevices adds devs to the container with access (a subset of "rwm").
func AllowDevices(s *specs.Spec, access string, devs ...specs.LinuxDevice) {
	for _, d := range devs {
		s.Linux.Devices = append(s.Linux.Devices, d)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access,
		})
	}
}
