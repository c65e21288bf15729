package task

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/object"
)

// exitUnknown is the status of a process of which nobody knows how it ended, as
// in containerd.
const exitUnknown = 255

// shimDied ends the tasks of a shim that is certainly dead. Tasks that are just
// being created or deleted are left to those who do that.
func (m *Manager) shimDied(s *shim) {
	s.release()
	m.removeSocket(s.socketFile())
	m.mu.Lock()
	if m.shims[s.address] == s {
		delete(m.shims, s.address)
	}
	var lost []*task
	for t := range s.tasks {
		if t.phase == alive {
			t.phase = ending
			lost = append(lost, t)
		}
	}
	close(s.dead)
	m.mu.Unlock()
	for _, t := range lost {
		m.log.Warn("shim died", "namespace", t.namespace, "id", t.id)
		m.background.Go(func() { m.bury(t) })
	}
}

// bury clears away what a dead shim left of a task in phase ending or
// recovering, and tells of its end in place of the shim.
func (m *Manager) bury(t *task) {
	m.deletes <- struct{}{}
	defer func() { <-m.deletes }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.life), m.timeouts().Cleanup)
	defer cancel()
	binary := ""
	if t.shim != nil {
		binary = t.shim.binary
	}
	m.mu.Lock()
	pid := t.pid
	m.mu.Unlock()
	exit, err := m.runDelete(ctx, binary, t)
	failpoint.Hit("task.bury.cleaned")
	if err != nil {
		m.log.Warn("dead shim not cleaned up by its delete command", "namespace", t.namespace, "id", t.id, "error", err)
		exit = object.Exit{Status: exitUnknown}
		t.bundle.killInit()
	}
	if exit.PID == 0 {
		exit.PID = pid
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	m.conclude(ctx, t, exit)
}

// conclude removes the bundle of a task whose end nobody else reports, and
// reports it.
func (m *Manager) conclude(ctx context.Context, t *task, exit object.Exit) {
	m.discard(t)
	if t.sandbox {
		m.endSandbox(ctx, t, exit)
		return
	}
	failpoint.Hit("task.bury.before-report")
	m.opts.Events.Publish(ctx, t.namespace, events.TaskExit(t.id, "", exit))
	m.opts.Events.Publish(ctx, t.namespace, events.TaskDelete(t.id, "", exit))
	m.forget(t, exit)
}

// removeSocket removes what a dead shim left of its socket. The path comes from
// the shim: nothing but a socket in one of the usual directories is touched.
func (m *Manager) removeSocket(path string) {
	if dir := filepath.Dir(path); dir != m.opts.SocketDir && dir != "/run/containerd/s" {
		return
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		os.Remove(path)
	}
}
