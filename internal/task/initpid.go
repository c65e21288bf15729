package task

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/internal/task/shimproc"

	"golang.org/x/sys/unix"
)

// initPID is the PID of the init process as the shim wrote it down, or 0.
func (b bundle) initPID() uint32 {
	data, err := readSmall(b.file(initPIDFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 31)
	if err != nil || pid <= 1 {
		return 0
	}
	return uint32(pid)
}

// killInit ends the init process of a container whose shim is dead and cannot
// be asked to clean up. Its PID is from init.pid, which may be stale: only a
// process that was started just before that file was written is taken for it.
func (b bundle) killInit() {
	pid := int(b.initPID())
	if pid == 0 {
		return
	}
	written, err := os.Stat(b.file(initPIDFile))
	if err != nil {
		return
	}
	p, err := shimproc.Open(pid)
	if err != nil {
		return
	}
	defer p.Close()
	started, err := startTime(pid)
	if err != nil || started.After(written.ModTime().Add(time.Second)) || started.Before(written.ModTime().Add(-time.Minute)) {
		return
	}
	p.Kill()
	select {
	case <-p.Exited:
	case <-time.After(shutdownTimeout):
	}
}

// startTime of a process, to about a hundredth of a second.
func startTime(pid int) (time.Time, error) {
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
