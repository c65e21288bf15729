package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/object"
	"berth/internal/task/procfs"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

// bootFile, beside the bundles' namespaces, holds the boot ID of the kernel under
// which they were made. Its hidden name keeps it from being taken for one.
const bootFile = ".boot-id"

// leftovers is what New found on disk, for Recover.
type leftovers struct {
	tasks []*task
	// hidden directories are bundles and work directories whose removal was
	// cut short.
	hidden []string
	// rebooted: the bundles are of an earlier boot. Their processes and mounts
	// are gone, and whoever listens at their sockets now is somebody else.
	rebooted bool
}

// findBundles registers the bundles that an earlier daemon left, of tasks and of
// sandboxes, and hides the work directories that no bundle has.
func (m *Manager) findBundles() error {
	if err := m.findIn(sandboxesDir, true); err != nil {
		return err
	}
	if err := m.findIn(tasksDir, false); err != nil {
		return err
	}
	m.found.rebooted = m.noteBoot(filepath.Join(m.opts.State, tasksDir, bootFile))
	return nil
}

func (m *Manager) findIn(dir string, sandbox bool) error {
	state, root := filepath.Join(m.opts.State, dir), filepath.Join(m.opts.Root, dir)
	err := eachDir(state, func(k key, hidden bool) {
		if hidden {
			m.found.hidden = append(m.found.hidden, filepath.Join(state, k.namespace, k.id))
			return
		}
		t := m.newTask(k, recovering, sandbox)
		m.table(sandbox)[k] = t
		m.found.tasks = append(m.found.tasks, t)
	})
	if err != nil {
		return fmt.Errorf("look for bundles: %w", err)
	}
	err = eachDir(root, func(k key, hidden bool) {
		path := filepath.Join(root, k.namespace, k.id)
		if !hidden && m.table(sandbox)[k] != nil {
			return
		}
		if !hidden {
			var err error
			if path, err = hide(path); err != nil {
				m.log.Warn("old work directory not removed", "error", err)
				return
			}
		}
		m.found.hidden = append(m.found.hidden, path)
	})
	if err != nil {
		return fmt.Errorf("look for work directories: %w", err)
	}
	return nil
}

// eachDir calls f for every directory <dir>/<namespace>/<id>.
func eachDir(dir string, f func(k key, hidden bool)) error {
	namespaces, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, ns := range namespaces {
		if !ns.IsDir() || strings.HasPrefix(ns.Name(), ".") {
			continue
		}
		ids, err := os.ReadDir(filepath.Join(dir, ns.Name()))
		if err != nil {
			return err
		}
		for _, id := range ids {
			if id.IsDir() {
				f(key{ns.Name(), id.Name()}, strings.HasPrefix(id.Name(), "."))
			}
		}
	}
	return nil
}

// noteBoot compares the kernel's boot ID with that in the file, and writes it
// there before any bundle of this boot is made. Without a file, as when
// containerd made the bundles, they count as being of this boot.
func (m *Manager) noteBoot(path string) (rebooted bool) {
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		m.log.Warn("the boot ID is not known, old sockets may be dialled", "error", err)
		return false
	}
	then, err := readSmall(path)
	if err == nil && string(then) == string(now) {
		return false
	}
	rebooted = err == nil && len(then) > 0
	temp := path + ".new"
	if err := os.WriteFile(temp, now, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil && !isGone(err) {
		m.log.Warn("the boot ID was not saved", "error", err)
	}
	return rebooted
}

// Recover adopts the shims that an earlier daemon left, ends what is left of
// dead ones, and reports their exits. It returns when all are settled, or with
// the context's error when that ends first; the rest goes on then. The API may
// be served meanwhile: a call for a task that is not settled yet waits for it
// alone. It is called once; namespaces are those that have records.
func (m *Manager) Recover(ctx context.Context, namespaces []string) error {
	found := m.found
	m.found = leftovers{}
	m.background.Go(func() { removeAll(found.hidden) })
	var all sync.WaitGroup
	for _, t := range found.tasks {
		if !slices.Contains(namespaces, t.namespace) {
			m.log.Warn("task in a namespace that has no records", "namespace", t.namespace, "id", t.id)
		}
		all.Add(1)
		m.background.Go(func() {
			defer all.Done()
			if found.rebooted {
				m.conclude(m.life, t, object.Exit{Status: exitUnknown, At: time.Now()})
				return
			}
			m.adoptTask(t)
		})
	}
	// The answer is needed for the first container: have it ready.
	m.background.Go(m.askDefaultRuntime)
	done := make(chan struct{})
	m.background.Go(func() { all.Wait(); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("recover tasks: %w", ctx.Err())
	}
}

func (m *Manager) askDefaultRuntime() {
	if binary, err := m.binaryOf("io.containerd.runc.v2"); err == nil {
		if e, err := shimproc.EditionOf(binary); err == nil {
			m.servesItself(e)
		}
	}
}

// adoptTask settles one task of an earlier daemon. A shim that does not answer
// in time is kept: slow is not dead, and its container may be well.
//
// Differs from containerd: the executable of the shim need not be there any
// more, and a task without processes is kept for its exit status.
func (m *Manager) adoptTask(t *task) {
	ctx, cancel := context.WithTimeout(m.life, m.timeouts().Load)
	defer cancel()
	binary := ""
	if data, err := readSmall(t.bundle.file(binaryPathFile)); err == nil {
		binary = string(data)
	}
	failpoint.Hit("task.recover.found")
	boot, err := t.bundle.readBootstrap()
	if err != nil {
		if !isGone(err) {
			m.log.Warn("bundle without a usable address", "namespace", t.namespace, "id", t.id, "error", err)
		}
		m.dropHalfMade(t)
		return
	}
	s, fresh, err := m.claim(ctx, t, boot, binary)
	if err != nil {
		m.log.Warn("task not recovered", "namespace", t.namespace, "id", t.id, "error", err)
		m.forget(t, object.Exit{})
		return
	}
	if fresh {
		err := m.adoptShim(ctx, t, s)
		if err != nil {
			m.removeSocket(s.socketFile())
			m.fail(s, err)
			t.shim = s
			m.bury(t)
			return
		}
	}
	m.inspect(ctx, t, s)
}

// adoptShim connects to a shim of an earlier daemon; an error means that it is dead.
func (m *Manager) adoptShim(ctx context.Context, t *task, s *shim) error {
	if info, err := os.Lstat(t.bundle.file(logFIFO)); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
		if s.logs, err = m.openLog(t); err != nil {
			m.log.Warn("shim's log not read", "namespace", t.namespace, "id", t.id, "error", err)
		}
	}
	err := s.open(ctx)
	if shimconn.NobodyListens(err) || errors.Is(err, errdefs.ErrNotImplemented) {
		return err
	}
	if err != nil {
		// It has a full queue. Its watch tries until it answers or dies.
		s.adopt(shimconn.Lost())
	}
	close(s.ready)
	return nil
}

// inspect asks an adopted shim how the task is.
func (m *Manager) inspect(ctx context.Context, t *task, s *shim) {
	who, err := s.learnProcess(ctx, t)
	if errdefs.IsNotImplemented(err) && s.version.CompareAndSwap(3, 2) {
		who, err = s.learnProcess(ctx, t)
	}
	failpoint.Hit("task.recover.connected")
	t.shim = s
	if t.sandbox {
		m.inspectSandbox(ctx, t, s)
		return
	}
	var p object.Process
	if err == nil || errdefs.IsNotFound(err) {
		p, err = t.state(ctx, "")
	}
	switch {
	case s.isDead():
		m.bury(t)
	case errdefs.IsNotFound(err):
		// The daemon ended between the start of the shim and the creation of
		// the task, or between the task's deletion and the shim's end.
		m.undo(t, s, plan{binary: s.binary})
		m.forget(t, object.Exit{})
	case err != nil:
		m.log.Warn("shim does not answer, it is kept", "namespace", t.namespace, "id", t.id, "error", err)
		m.settle(t, s, t.bundle.initPID())
		m.background.Go(func() { m.awaitAnswer(t, s) })
	default:
		if p.PID == 0 {
			p.PID = who.GetTaskPid()
		}
		m.settle(t, s, p.PID)
		if p.Status == object.TaskStopped {
			p.Exit.PID = p.PID
			m.opts.Events.Publish(ctx, t.namespace, events.TaskExit(t.id, "", p.Exit))
		}
	}
}

// awaitAnswer settles for good a task whose shim did not answer in time, when it
// does: it may turn out that the shim never made a container.
func (m *Manager) awaitAnswer(t *task, s *shim) {
	err := s.answer(m.life, t.key)
	m.mu.Lock()
	// While somebody deletes the task, it is theirs.
	never := errdefs.IsNotFound(err) && !s.isDead() && t.phase == alive && t.deletes == 0
	if never {
		t.phase = ending
	}
	m.mu.Unlock()
	if never {
		m.undo(t, s, plan{binary: s.binary})
		ctx, cancel := context.WithTimeout(context.WithoutCancel(m.life), m.timeouts().Cleanup)
		defer cancel()
		m.conclude(ctx, t, object.Exit{Status: exitUnknown, At: time.Now()})
	}
}

// answer asks for the state of a task until the shim answers or is dead.
func (s *shim) answer(ctx context.Context, k key) error {
	for {
		err := s.call(ctx, k, "State", &taskapi.StateRequest{ID: k.id}, &taskapi.StateResponse{})
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if !errdefs.IsUnavailable(err) || !c.IsLost() {
			return err
		}
		select {
		case <-c.resolved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dropHalfMade removes a bundle whose Create did not get as far as a shim with a
// known address. Nobody was told of the task, so nobody is told of its end.
//
// A start command, overtaken by the daemon's end, may still bring up a shim: first
// whatever works in the bundle is ended, and with it what could start a shim; then
// one that has moved elsewhere is sought at the usual address.
func (m *Manager) dropHalfMade(t *task) {
	t.bundle.killWorkers()
	m.endStray(t, "unix://"+m.socketPath(t.namespace, t.id))
	failpoint.Hit("task.recover.half-made-ended")
	m.discard(t)
	m.forget(t, object.Exit{})
}

// killWorkers ends the shims that work in a bundle and what they run there, and
// returns when they have ended.
func (b bundle) killWorkers() {
	// Besides shims: the daemon's children that are about to become one.
	shim, _ := readSmall(b.file(binaryPathFile))
	self, _ := os.Executable()
	// A process that is not in the list yet is the child of one that is: it is
	// found in the next round, when its parent can have no more.
	for range 100 {
		pids := procfs.Workers(b.path, string(shim), self)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			p, err := shimproc.Open(pid)
			if err != nil {
				continue // it has ended
			}
			p.Kill()
			select {
			case <-p.Exited:
			case <-time.After(shutdownTimeout): // stuck in the kernel
				p.Close()
				return
			}
		}
	}
}
