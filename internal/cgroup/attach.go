package cgroup

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Attacher shortens the first attachment of a process to a control group.
//
// With version 1 a process is put into a group by a write to cgroup.procs, for
// which the kernel takes a lock that is shared with every fork and exit. While
// nobody takes it, the kernel keeps it cheap for those, and the first writer has to
// wait for an RCU grace period, some 5 to 15 ms; writers that come within the
// next such period do not. Prepare takes that wait beforehand, beside the other
// work of a create, by a write that changes nothing.
type Attacher struct {
	procs string // the daemon's own cgroup.procs in some hierarchy, empty with version 2
	busy  atomic.Bool
	last  atomic.Int64 // when the last write ended, in Unix nanoseconds
}

// prepared is how long after one write another would bring nothing: less than the
// shortest grace period.
const prepared = 3 * time.Millisecond

// NewAttacher finds out what the host has.
func NewAttacher() *Attacher { return &Attacher{procs: ownProcs("/proc/self/cgroup", Mount)} }

// ownProcs is the cgroup.procs file of the calling process in the first version 1
// hierarchy with a controller that is mounted where it is expected.
func ownProcs(list, mount string) string {
	f, err := os.Open(list)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// <number>:<controller>,…:<path>; version 2 has no controllers.
		part := strings.SplitN(s.Text(), ":", 3)
		if len(part) != 3 || part[1] == "" || strings.HasPrefix(part[1], "name=") {
			continue
		}
		procs := filepath.Join(mount, part[1], part[2], "cgroup.procs")
		if !fs.ValidPath(strings.TrimPrefix(procs, "/")) {
			continue
		}
		if _, err := os.Stat(procs); err == nil {
			return procs
		}
	}
	return ""
}

// Prepare returns at once; a write that is under way already serves this call too.
func (a *Attacher) Prepare() {
	if a.procs == "" || time.Since(time.Unix(0, a.last.Load())) < prepared || !a.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer a.busy.Store(false)
		// "0" is the writer, which is there already. A failure costs only the time
		// that would have been saved.
		if f, err := os.OpenFile(a.procs, os.O_WRONLY, 0); err == nil {
			f.WriteString("0")
			f.Close()
		}
		a.last.Store(time.Now().UnixNano())
	}()
}
