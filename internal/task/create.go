package task

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"berth/internal/failpoint"
	"berth/internal/object"
	"berth/internal/task/procfs"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"
	"berth/internal/trace"
	"berth/internal/wire"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// CreateOptions is what a task needs beyond its container's record.
type CreateOptions struct {
	Rootfs []object.Mount
	IO     object.TaskIO
	// Checkpoint is the path of a checkpoint to restore from, or empty.
	Checkpoint string
	// Options for the runtime; override those of the container when set.
	Options *object.Any
	// RuntimePath is the path of a shim to use instead of the runtime's own.
	RuntimePath string
	// Address and Version of a task API that serves the container already, in
	// place of a shim to start. The address is <protocol>+<address>, as in
	// ttrpc+unix:///run/x.sock.
	Address string
	Version uint32
}

// Create makes the task of a container: a bundle, a shim, an init process that
// waits to be started. It returns the init's PID.
// errdefs.ErrAlreadyExists when it has a task; errdefs.ErrNotFound when there
// is no such runtime. A failure leaves nothing behind.
func (m *Manager) Create(ctx context.Context, namespace string, c object.Container, opts CreateOptions) (_ uint32, err error) {
	ctx, span := trace.Start(ctx, "task.create", trace.String("namespace", namespace), trace.String("id", c.ID), trace.String("runtime", c.Runtime.Name))
	defer func() { span.End(err) }()
	if err := errors.Join(identifier("namespace", namespace), identifier("container ID", c.ID)); err != nil {
		return 0, err
	}
	p, err := m.plan(c, opts)
	if err != nil {
		return 0, fmt.Errorf("create task of container %q: %w", c.ID, err)
	}
	t, err := m.reserve(ctx, key{namespace, c.ID}, false)
	if err != nil {
		return 0, err
	}
	m.attach.Prepare()
	pid, s, err := m.create(ctx, t, p)
	if err != nil {
		m.forget(t, object.Exit{})
		return 0, fmt.Errorf("create task of container %q: %w", c.ID, err)
	}
	m.settle(t, s, pid)
	if s.own {
		time.AfterFunc(spareDelay, func() { m.spares.Replenish(s.binary) })
	} else {
		m.background.Go(func() {
			ctx, cancel := context.WithTimeout(m.life, m.timeouts().Load)
			defer cancel()
			s.learnProcess(ctx, t)
		})
	}
	return pid, nil
}

// plan is what Create is going to do, found out before anything is made.
type plan struct {
	object.Container
	CreateOptions
	spec    []byte
	rootGID int
	group   string
	binary  string
	options *object.Any
}

func (m *Manager) plan(c object.Container, opts CreateOptions) (plan, error) {
	p := plan{Container: c, CreateOptions: opts, options: opts.Options, group: c.ID}
	if p.options == nil || len(p.options.Value) == 0 {
		p.options = c.Runtime.Options
	}
	if c.Spec != nil && len(c.Spec.Value) > 0 {
		p.spec = c.Spec.Value
		facts, err := parseSpec(p.spec)
		if err != nil {
			return p, err
		}
		p.rootGID, p.group = facts.rootGID(), facts.group(c.ID)
	}
	var err error
	p.binary, err = m.binaryOf(cmp.Or(opts.RuntimePath, c.Runtime.Name))
	return p, err
}

// create does the steps of Create in order, and undoes them when one fails.
func (m *Manager) create(ctx context.Context, t *task, p plan) (uint32, *shim, error) {
	if err := t.bundle.create(p.spec, p.rootGID); err != nil {
		return 0, nil, err
	}
	failpoint.Hit("task.create.bundle-made")
	s, err := m.provide(ctx, t, p)
	failpoint.Hit("task.create.shim-ready")
	if err != nil {
		m.discard(t)
		return 0, nil, err
	}
	rootfs, err := m.prepareRootfs(ctx, t, s, p)
	if err != nil {
		m.undo(t, s, p)
		return 0, nil, fmt.Errorf("root filesystem: %w", err)
	}
	req := &taskapi.CreateTaskRequest{
		ID:         t.id,
		Bundle:     t.bundle.path,
		Rootfs:     wire.MountsToProto(rootfs),
		Terminal:   p.IO.Terminal,
		Stdin:      p.IO.Stdin,
		Stdout:     p.IO.Stdout,
		Stderr:     p.IO.Stderr,
		Checkpoint: p.Checkpoint,
		Options:    wire.AnyToProto(p.options),
	}
	var resp taskapi.CreateTaskResponse
	err = s.call(ctx, t.key, "Create", req, &resp)
	if errdefs.IsNotImplemented(err) && s.version.CompareAndSwap(3, 2) {
		// Compat: a shim of containerd 1.7 still runs the pod, while the new
		// binary, which was asked for its address, speaks of version 3.
		err = s.call(ctx, t.key, "Create", req, &resp)
	}
	if ferr := failpoint.Hit("task.create.created"); ferr != nil {
		err = ferr
	}
	if err != nil {
		m.undo(t, s, p)
		return 0, nil, err
	}
	return resp.GetPid(), s, nil
}

// undo takes back a create that failed at the shim, or that nobody waits for any
// more. The shim may have answered, be still at it, have the request before it,
// hang or be dead. It is bounded and independent of the caller.
//
// Berth's shim settles a Create that it has begun before it answers Delete, and
// begins none without the spec: after the two, nothing of the container is there
// or to come. Another shim may answer that there is no container while it makes
// one: see undoForeign.
func (m *Manager) undo(t *task, s *shim, p plan) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.life), undoTimeout)
	defer cancel()
	if err := t.bundle.withdraw(); err != nil {
		m.log.Warn("spec of a failed create not withdrawn", "namespace", t.namespace, "id", t.id, "error", err)
	}
	failpoint.Hit("task.undo.withdrawn")
	alone := m.detach(t, s)
	orderly := s.deleteNow(ctx, t.key)
	failpoint.Hit("task.undo.deleted")
	if !orderly && m.life.Err() != nil {
		return // Close has cut the shim off; Recover does it again
	}
	if alone {
		if orderly {
			m.retire(ctx, s, t.key)
		} else {
			s.kill(t.bundle)
		}
	}
	t.bundle.restore()
	if alone && (!s.own || !s.isDead()) {
		m.undoForeign(ctx, t, s)
		orderly = false
	}
	if !orderly {
		if _, err := m.runDelete(ctx, p.binary, t); err != nil {
			m.log.Warn("failed create not cleaned up by the shim", "namespace", t.namespace, "id", t.id, "error", err)
		}
	}
	m.discard(t)
}

// deleteNow has the shim delete what it has of a container, and tells whether
// that is nothing now.
func (s *shim) deleteNow(ctx context.Context, k key) bool {
	ctx, cancel := context.WithTimeout(ctx, s.m.timeouts().Cleanup)
	defer cancel()
	err := s.call(ctx, k, "Delete", &taskapi.DeleteRequest{ID: k.id}, &taskapi.DeleteResponse{})
	return err == nil || errdefs.IsNotFound(err) && !s.isDead()
}

// undoForeign ends for certain a shim that was told to, but of which it is not
// known that it let go of the container before: one that was adopted, or another's.
func (m *Manager) undoForeign(ctx context.Context, t *task, s *shim) {
	if !s.isDead() {
		// A Create that was under way has given it a container after all.
		call, cancel := context.WithTimeout(ctx, stateTimeout)
		err := s.call(call, t.key, "State", &taskapi.StateRequest{ID: t.id}, &taskapi.StateResponse{})
		cancel()
		if err == nil && s.deleteNow(ctx, t.key) {
			m.retire(ctx, s, t.key)
		}
	}
	if _, err := os.Lstat(t.bundle.file(sandboxFile)); isGone(err) {
		t.bundle.killWorkers()
	}
}

// discard removes the bundle where an error to do so cannot be returned.
func (m *Manager) discard(t *task) {
	if err := t.bundle.remove(m.later); err != nil {
		m.log.Warn("bundle not removed", "namespace", t.namespace, "id", t.id, "error", err)
	}
	m.releaseRootfs(t)
}

// later runs what nobody has to wait for; Close waits for it.
func (m *Manager) later(f func()) { m.background.Go(f) }

// provide gets a shim for the task, with the task attached to it: the one whose
// address the caller knows, that of its sandbox, or a new one.
func (m *Manager) provide(ctx context.Context, t *task, p plan) (*shim, error) {
	if err := os.WriteFile(t.bundle.file(binaryPathFile), []byte(p.binary), 0o600); err != nil {
		return nil, fmt.Errorf("write %s: %w", binaryPathFile, err)
	}
	if p.Address != "" {
		protocol, address, ok := strings.Cut(p.Address, "+")
		if !ok {
			return nil, fmt.Errorf("task API address %q is not of the form ttrpc+unix:///path: %w", p.Address, errdefs.ErrInvalidArgument)
		}
		return m.join(ctx, t, p, &bootapi.BootstrapResult{Version: int32(p.Version), Address: address, Protocol: protocol})
	}
	s := m.sandboxShim(t.namespace, p.SandboxID)
	if s == nil && p.group != t.id {
		s = m.sandboxShim(t.namespace, p.group)
	}
	if s != nil {
		return m.join(ctx, t, p, &bootapi.BootstrapResult{Version: s.version.Load(), Address: s.address, Protocol: s.protocol})
	}
	e, err := shimproc.EditionOf(p.binary)
	if err != nil {
		return nil, err
	}
	if m.servesItself(e) {
		return m.startOwn(ctx, t, p, e)
	}
	return m.startOther(ctx, t, p)
}

// sandboxShim is the shim of a sandbox, or of a sandbox's own task, if that can hold
// further containers (version 3 of the API).
func (m *Manager) sandboxShim(namespace, id string) *shim {
	m.mu.Lock()
	defer m.mu.Unlock()
	sandbox := m.sandboxes[key{namespace, id}]
	if sandbox == nil {
		sandbox = m.tasks[key{namespace, id}]
	}
	if sandbox == nil || sandbox.phase != alive || sandbox.shim.version.Load() < 3 {
		return nil
	}
	return sandbox.shim
}

// join uses a shim that runs already.
func (m *Manager) join(ctx context.Context, t *task, p plan, boot *bootapi.BootstrapResult) (*shim, error) {
	if err := shimconn.CheckBootstrap(boot); err != nil {
		return nil, err
	}
	if err := os.WriteFile(t.bundle.file(sandboxFile), []byte(cmp.Or(p.SandboxID, p.group)), 0o600); err != nil {
		return nil, fmt.Errorf("write sandbox file: %w", err)
	}
	if err := t.bundle.writeBootstrap(boot); err != nil {
		return nil, err
	}
	s, fresh, err := m.claim(ctx, t, boot, p.binary)
	if err == nil && fresh {
		err = m.begin(ctx, t, s)
	}
	return s, err
}

// startOther starts a shim by the start command, or gets from it the address of
// the pod's shim.
func (m *Manager) startOther(ctx context.Context, t *task, p plan) (_ *shim, err error) {
	usual := "unix://" + m.socketPath(t.namespace, p.group)
	if err := m.awaitLeaving(ctx, usual); err != nil {
		return nil, err
	}
	logs, err := m.openLog(t)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			logs.Close()
			if p.group == t.id {
				m.endStray(t, usual)
			}
		}
	}()
	// A crash until bootstrap.json is written leaves a shim without a task,
	// which Recover finds at the usual address.
	boot, err := m.startForeign(ctx, p.binary, t, p.options)
	if err != nil {
		return nil, err
	}
	if err := t.bundle.writeBootstrap(boot); err != nil {
		return nil, err
	}
	s, fresh, err := m.claim(ctx, t, boot, p.binary)
	if err != nil {
		return nil, err
	}
	if fresh {
		s.logs = logs
		return s, m.begin(ctx, t, s)
	}
	// The pod's shim logs into the FIFO of the pod's first container.
	return s, logs.Close()
}

// endStray ends a shim that was started for a task but could not be taken over.
func (m *Manager) endStray(t *task, address string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.life), m.timeouts().Shutdown)
	defer cancel()
	c, err := shimconn.Connect(ctx, "ttrpc", address)
	if err != nil {
		if shimconn.NobodyListens(err) {
			m.removeSocket(strings.TrimPrefix(address, "unix://"))
		}
		return
	}
	defer c.Close()
	var who taskapi.ConnectResponse
	err = c.Call(ctx, shimconn.NewestVersion, t.namespace, "Connect", &taskapi.ConnectRequest{ID: t.id}, &who)
	if err == nil {
		err = c.Call(ctx, shimconn.NewestVersion, t.namespace, "Shutdown", &taskapi.ShutdownRequest{ID: t.id}, &emptypb.Empty{})
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		m.log.Warn("shim that was not needed does not end", "namespace", t.namespace, "id", t.id, "error", err)
	}
	if pid := int(who.GetShimPid()); pid > 1 && procfs.WorksIn(pid, t.bundle.path) {
		if p, err := shimproc.Open(pid); err == nil {
			p.Kill()
			<-p.Exited
		}
	}
	m.removeSocket(strings.TrimPrefix(address, "unix://"))
}

// claim attaches the task to the shim at an address. If there is none yet it
// makes the record of one (fresh), and the caller has to begin or fail it.
func (m *Manager) claim(ctx context.Context, t *task, boot *bootapi.BootstrapResult, binary string) (_ *shim, fresh bool, _ error) {
	for {
		if err := m.awaitLeaving(ctx, boot.Address); err != nil {
			return nil, false, err
		}
		m.mu.Lock()
		s := m.shims[boot.Address]
		switch {
		case s == nil:
			s = m.newShim(boot.Address, boot.Protocol, binary, boot.Version)
			s.mounts = mountsOf(boot)
			s.tasks[t] = true
			m.shims[boot.Address] = s
			m.mu.Unlock()
			return s, true, nil
		case s.leaving:
			m.mu.Unlock()
			continue
		}
		s.tasks[t] = true
		m.mu.Unlock()
		select {
		case <-s.ready:
			if s.err == nil {
				return s, false, nil
			}
			m.detach(t, s) // its start failed; ours may not
		case <-ctx.Done():
			m.detach(t, s)
			return nil, false, fmt.Errorf("wait for the pod's shim: %w", ctx.Err())
		}
	}
}

// begin connects to a fresh shim.
func (m *Manager) begin(ctx context.Context, t *task, s *shim) error {
	err := s.open(ctx)
	if err != nil {
		m.fail(s, err)
		return err
	}
	close(s.ready)
	return nil
}

// fail ends a fresh shim that could not be begun.
func (m *Manager) fail(s *shim, err error) {
	m.mu.Lock()
	delete(m.shims, s.address)
	m.mu.Unlock()
	s.release()
	s.err = err
	close(s.ready)
	close(s.dead)
}

// detach takes the task from its shim, and tells whether it was the last: then
// the shim is leaving, and the caller has to retire it.
func (m *Manager) detach(t *task, s *shim) (last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !s.tasks[t] {
		return false
	}
	delete(s.tasks, t)
	if len(s.tasks) > 0 || s.isDead() {
		return false
	}
	s.leaving = true
	return true
}

// awaitLeaving waits until the shim at an address that was told to end has done
// so: the next with the same name uses the same socket.
func (m *Manager) awaitLeaving(ctx context.Context, address string) error {
	m.mu.Lock()
	s := m.shims[address]
	leaving := s != nil && s.leaving
	m.mu.Unlock()
	if !leaving {
		return nil
	}
	timer := time.NewTimer(m.timeouts().Cleanup)
	defer timer.Stop()
	select {
	case <-s.dead:
		return nil
	case <-s.stayed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of an earlier shim: %w", ctx.Err())
	case <-timer.C:
		return fmt.Errorf("an earlier shim at %s does not end: %w", address, errdefs.ErrUnavailable)
	}
}

// retire tells a shim without tasks to end, and sees to it that it does.
func (m *Manager) retire(ctx context.Context, s *shim, k key) {
	m.seeOff(s, k, m.shutdown(ctx, s, k))
}

// shutdown tells a shim to end.
func (m *Manager) shutdown(ctx context.Context, s *shim, k key) error {
	ctx, cancel := context.WithTimeout(ctx, m.timeouts().Shutdown)
	defer cancel()
	err := s.call(ctx, k, "Shutdown", &taskapi.ShutdownRequest{ID: k.id}, &emptypb.Empty{})
	if err == nil {
		s.hangUp() // it need not wait for us to have read its answer
	}
	return err
}

// seeOff waits for the end of a shim that was told to end. One that answered but
// stays (it holds a sandbox) is kept for further tasks; one that did not is killed.
func (m *Manager) seeOff(s *shim, k key, refused error) {
	timer := time.NewTimer(m.timeouts().Shutdown)
	defer timer.Stop()
	select {
	case <-s.dead:
		return
	case <-timer.C:
	case <-m.life.Done():
		return
	}
	if s.isLost() {
		return // it is ending; its watch sees to the rest
	}
	if refused != nil {
		m.log.Warn("shim does not end, killing it", "namespace", k.namespace, "id", k.id, "error", refused)
		s.kill(m.bundleOf(k, false))
		return
	}
	m.mu.Lock()
	s.leaving = false
	close(s.stayed)
	s.stayed = make(chan struct{})
	m.mu.Unlock()
}
