package task

import (
	"context"
	"errors"
	"net"
	"time"

	"berth/internal/failpoint"
	"berth/internal/task/shimconn"
	"berth/internal/task/shimproc"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// spareDelay is how long after a create the next spare is started at the latest;
// the start of the container, which it would slow down, is over as a rule.
const spareDelay = 100 * time.Millisecond

// startOwn gives the task to a shim that has the serve command: the spare, or one
// that is started now. The socket listens before the shim has it, so that the
// first call is under way while the shim still starts; bootstrap.json is there
// before as well, so that no crash leaves a shim of which nobody knows.
func (m *Manager) startOwn(ctx context.Context, t *task, p plan, e shimproc.Edition) (*shim, error) {
	path := m.socketPath(t.namespace, p.group)
	boot := &bootapi.BootstrapResult{Version: shimconn.NewestVersion, Address: "unix://" + path, Protocol: "ttrpc"}
	if err := t.bundle.writeBootstrap(boot); err != nil {
		return nil, err
	}
	failpoint.Hit("task.create.bootstrap-written")
	s, fresh, err := m.claim(ctx, t, boot, p.binary)
	if err != nil || !fresh {
		return s, err
	}
	listener, err := shimconn.Listen(path)
	if errdefs.IsAlreadyExists(err) {
		if p.group != t.id {
			return s, m.begin(ctx, t, s) // the pod's shim, which has no task of ours
		}
		m.endStray(t, boot.Address)
		listener, err = shimconn.Listen(path)
	}
	if err != nil {
		m.fail(s, err)
		return nil, err
	}
	defer unix.Close(listener)
	failpoint.Hit("task.create.listening")
	if err := m.serve(ctx, t, s, e, listener); err != nil {
		m.removeSocket(path)
		m.fail(s, err)
		return nil, err
	}
	return s, nil
}

// serve connects a fresh shim record with a process that serves the listener.
func (m *Manager) serve(ctx context.Context, t *task, s *shim, e shimproc.Edition, listener int) error {
	sp, err := m.spares.Get(e)
	if err != nil {
		return err
	}
	failpoint.Hit("task.create.shim-started")
	err = sp.Assign(shimproc.Assignment{
		Namespace: t.namespace, ID: t.id, Bundle: t.bundle.path,
		Address: m.opts.Address, TTRPCAddress: m.opts.TTRPCAddress,
		Socket: s.address, Debug: m.debug,
	}, listener)
	failpoint.Hit("task.create.assigned")
	if err == nil {
		err = s.open(ctx)
	}
	if err != nil {
		sp.Dismiss()
		return err
	}
	s.own, s.answered = true, make(chan struct{})
	s.watch(sp.Process)
	s.mu.Lock()
	s.spare = sp
	s.mu.Unlock()
	m.background.Go(func() { m.attend(s, sp) })
	close(s.ready)
	return nil
}

// attend listens to what a shim of ours says on its control socket. When its
// assignment is over the process is a spare again, and its record as good as dead.
func (m *Manager) attend(s *shim, sp *shimproc.Spare) {
	err := sp.Answer()
	if err != nil {
		s.refuse(err)
	}
	close(s.answered)
	if err != nil || !sp.AwaitIdle() {
		sp.Leave()
		return
	}
	if !s.part() {
		sp.Leave()
		return
	}
	m.spares.Put(sp)
}

// part separates the record of a shim whose assignment is over from its process.
// It is false when the process has been killed, or let alone, meanwhile.
func (s *shim) part() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.killed || s.let {
		return false
	}
	s.process, s.spare = nil, nil
	s.over()
	return true
}

// refuse ends a shim that could not take its first task; calls get the reason.
func (s *shim) refuse(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal == nil && !errors.Is(reason, net.ErrClosed) {
		s.refusal = reason
	}
	s.killLocked()
}
