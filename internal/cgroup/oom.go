package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OOM watches a group for being out of memory.
type OOM struct {
	group  Group
	events *os.File // an eventfd (v1) or an inotify instance (v2)
	notify func()

	mu    sync.Mutex
	seen  uint64 // kills that were told
	told  bool
	ended chan struct{}
}

// WatchOOM calls notify when the group has run out of memory, each time, on another
// goroutine, until Close. errdefs.ErrNotFound when the host does not count memory.
func (g Group) WatchOOM(notify func()) (*OOM, error) {
	w := &OOM{group: g, notify: notify, ended: make(chan struct{})}
	var err error
	if g.unified() {
		w.events, err = watchEvents(filepath.Join(g.paths[""], "memory.events"))
	} else if dir, ok := g.paths["memory"]; ok {
		w.events, err = watchControl(dir)
	} else {
		err = fmt.Errorf("there is no memory controller: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	go w.run()
	return w, nil
}

// watchControl registers an eventfd for memory.oom_control (cgroup-v1/memory.rst).
func watchControl(dir string) (*os.File, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	events := os.NewFile(uintptr(fd), "eventfd")
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		events.Close()
		return nil, err
	}
	return events, nil
}

// watchEvents watches memory.events, which the kernel reports as modified.
func watchEvents(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		events.Close()
		return nil, &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	return events, nil
}

func (w *OOM) run() {
	defer close(w.ended)
	buf := make([]byte, 512)
	for {
		if _, err := w.events.Read(buf); err != nil {
			return
		}
		kills, exists := w.kills()
		if !exists {
			return // the group was removed, which is an event, too
		}
		w.mu.Lock()
		// Version 1 tells of being out of memory before it kills (or not, if the group
		// is not to be killed in); version 2 of much else besides.
		fresh := kills > w.seen || !w.group.unified()
		w.seen = max(w.seen, kills)
		w.told = w.told || fresh
		w.mu.Unlock()
		if fresh {
			w.notify()
		}
	}
}

// kills counts the processes that were killed in the group.
func (w *OOM) kills() (n uint64, exists bool) {
	var counts map[string]uint64
	if w.group.unified() {
		counts = pairs(w.group.paths[""], "memory.events")
	} else {
		counts = pairs(w.group.paths["memory"], "memory.oom_control")
	}
	return counts["oom_kill"], counts != nil
}

// Flush calls notify if there were kills that were never told, so that being out
// of memory is known before what came of it.
func (w *OOM) Flush() {
	kills, _ := w.kills()
	w.mu.Lock()
	missed := kills > 0 && !w.told
	w.told = w.told || missed
	w.seen = max(w.seen, kills)
	w.mu.Unlock()
	if missed {
		w.notify()
	}
}

// Close ends the watch.
func (w *OOM) Close() error {
	err := w.events.Close()
	<-w.ended
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
