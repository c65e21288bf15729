// Package procfs asks /proc about processes: who works in a directory, and since
// when a process runs. It holds no state. What it tells may be out of date when it
// is read: who acts on it takes hold of the process by a pidfd first.
package procfs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StartTime of a process, to about a hundredth of a second.
func StartTime(pid int) (time.Time, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return time.Time{}, err
	}
	// The name in parentheses may contain anything; field 22 is the 20th after it.
	_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return time.Time{}, os.ErrInvalid
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, err
	}
	const perSecond = 100 // USER_HZ, the same on every architecture Go runs on
	age := time.Duration(up.Nano()) - time.Duration(ticks)*time.Second/perSecond
	return time.Now().Add(-age), nil
}

// WorksIn tells whether a process has dir, or a directory beside it, as its working
// directory: how a shim that merely says that it has some PID is told from an
// innocent process.
func WorksIn(pid int, dir string) bool {
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	return err == nil && (cwd == dir || filepath.Dir(cwd) == filepath.Dir(dir))
}

// Workers lists the processes whose working directory is a bundle, or was before
// the bundle was removed, and that serve it: shims, which are known by their names
// or as one of programs, and what is told the bundle by an argument, as runc is.
// People's shells are not among them, nor is the caller.
func Workers(bundle string, programs ...string) []int {
	hidden := filepath.Join(filepath.Dir(bundle), "."+filepath.Base(bundle)+".")
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
		if err != nil || cwd != bundle && !strings.HasPrefix(cwd, hidden) {
			continue
		}
		exe, err := os.Readlink(filepath.Join(proc, "exe"))
		if err != nil {
			continue // a zombie
		}
		exe = strings.TrimSuffix(exe, " (deleted)")
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if strings.HasPrefix(filepath.Base(exe), "containerd-shim-") || slices.Contains(programs, exe) ||
			bytes.Contains(args, []byte("\x00"+bundle+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}
