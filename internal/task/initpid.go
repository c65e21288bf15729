package task

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"berth/internal/task/procfs"
	"berth/internal/task/shimproc"
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
	started, err := procfs.StartTime(pid)
	if err != nil || started.After(written.ModTime().Add(time.Second)) || started.Before(written.ModTime().Add(-time.Minute)) {
		return
	}
	p.Kill()
	select {
	case <-p.Exited:
	case <-time.After(shutdownTimeout):
	}
}
