package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth/internal/failpoint"
	"berth/internal/object/live"
	"berth/internal/ociruntime"
	"berth/internal/shim/api"
	"berth/internal/stdio"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// service is the containers of one shim and what may be done with them.
//
// Lock order: service.mu, container.mu, process.mu. None is held over a call into
// the runtime, a mount or a write to a stream.
type service struct {
	ctx       context.Context // ends with the shim
	namespace string
	log       *slog.Logger
	reaper    *reaper
	publish   func(event)
	// left is called after the last container was deleted, failed when the only
	// one could not be made.
	left, failed func()
	// idle is when memory is given back after a start.
	idle *time.Timer
	// moved: the shim was put into a cgroup of a container's choice.
	moved atomic.Bool

	mu         sync.Mutex
	containers map[string]*container
	// sealed: the shim ends, and takes no container any more.
	sealed bool
}

func newService(ctx context.Context, namespace string, log *slog.Logger, r *reaper, publish func(event), left, failed func()) *service {
	s := &service{ctx: ctx, namespace: namespace, log: log, reaper: r, publish: publish, left: left, failed: failed, containers: map[string]*container{}}
	s.idle = time.AfterFunc(math.MaxInt64, keepSmall)
	return s
}

func (s *service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil && c.init.made() {
		return c, nil
	}
	return nil, fmt.Errorf("container %s is not in this shim: %w", id, errdefs.ErrNotFound)
}

func (s *service) process(id, execID string) (*process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// enter finds a process and begins an operation on it.
func (s *service) enter(id, execID string, op operation) (*process, state, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return nil, 0, err
	}
	before, err := p.begin(op)
	return p, before, err
}

// hold calls into the runtime, which may start processes and wait for them itself.
func (s *service) hold(fn func() error) error {
	defer s.reaper.Hold()()
	return fn()
}

func (s *service) create(ctx context.Context, req createRequest) (uint32, error) {
	c := &container{service: s, id: req.id, bundle: req.bundle, options: req.options, execs: map[string]*process{}, settled: make(chan struct{})}
	c.init = newProcess(c, "", req.io)
	s.mu.Lock()
	switch {
	case s.containers[req.id] != nil:
		s.mu.Unlock()
		return 0, fmt.Errorf("container %s: %w", req.id, errdefs.ErrAlreadyExists)
	case s.sealed:
		s.mu.Unlock()
		return 0, fmt.Errorf("container %s: the shim is ending: %w", req.id, errdefs.ErrUnavailable)
	}
	// From here on a Delete finds it; only then is the bundle looked at. A daemon
	// that takes config.json away and then deletes can rely on that order: no
	// Create, be it one that an earlier daemon sent, gets past both.
	s.containers[req.id] = c
	s.mu.Unlock()
	defer close(c.settled)
	failpoint.Hit("shim.create.begun")
	if err := c.create(ctx, req); err != nil {
		s.forget(c)
		return 0, err
	}
	s.publish(event{topic: "/tasks/create", body: &api.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: mountsToAPI(req.rootfs), Checkpoint: req.checkpoint, Pid: c.init.pid,
		IO: &api.TaskIO{Stdin: req.io.Stdin, Stdout: req.io.Stdout, Stderr: req.io.Stderr, Terminal: req.io.Terminal},
	}})
	pid := c.init.pid
	failpoint.Hit("shim.create.published")
	c.init.settle(created)
	return pid, nil
}

// empty tells that there is no container, not even one that is being made.
func (s *service) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0
}

// seal has the shim refuse further containers, unless it has one.
func (s *service) seal() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = s.sealed || len(s.containers) == 0
	return s.sealed
}

// forget takes out a container that could not be made.
func (s *service) forget(c *container) {
	s.mu.Lock()
	delete(s.containers, c.id)
	last := len(s.containers) == 0
	s.mu.Unlock()
	if last {
		s.failed()
	}
}

// awaitCreated waits until a container that is just being made is there, or not.
func (s *service) awaitCreated(ctx context.Context, id string) error {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil {
		return nil // it will not be found
	}
	select {
	case <-c.settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *service) start(ctx context.Context, id, execID string) (uint32, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return 0, err
	}
	if p.isExec() {
		if err := p.c.beginExec(p); err != nil {
			return 0, err
		}
		return s.startExec(ctx, p)
	}
	if _, err := p.begin(opStart); err != nil {
		return 0, err
	}
	if err := s.hold(func() error { return p.c.oci.Start(ctx) }); err != nil {
		// It did not start; if it ended, that is reported.
		p.settle(created)
		return 0, fmt.Errorf("OCI runtime start failed: %w", err)
	}
	failpoint.Hit("shim.start.started")
	p.openInput()
	s.publish(event{topic: "/tasks/start", body: &api.TaskStart{ContainerID: id, Pid: p.pid}})
	p.settle(running)
	s.idle.Reset(idleAfter)
	return p.pid, nil
}

func (s *service) startExec(ctx context.Context, p *process) (uint32, error) {
	if err := p.start(ctx); err != nil {
		p.failed()
		return 0, fmt.Errorf("OCI runtime exec failed: %w", err)
	}
	pid := p.pid
	failpoint.Hit("shim.exec.started")
	p.openInput()
	s.publish(event{topic: "/tasks/exec-started", body: &api.TaskExecStarted{ContainerID: p.c.id, ExecID: p.execID, Pid: pid}})
	p.settle(running)
	s.idle.Reset(idleAfter)
	return pid, nil
}

// start runs an exec.
func (p *process) start(ctx context.Context) error {
	streams, err := stdio.Open(ctx, p.io, p.c.stdioOptions())
	if err != nil {
		return err
	}
	in, out, errout := streams.Child()
	release := p.c.service.reaper.Hold()
	defer release()
	oci, err := p.c.oci.Exec(ctx, ociruntime.ExecOptions{
		ID: p.execID, Spec: p.spec, Stdio: ociruntime.Stdio{Stdin: in, Stdout: out, Stderr: errout},
	})
	if err != nil {
		streams.Close()
		return err
	}
	if err := p.attach(oci, streams); err != nil {
		p.detach()
		_ = syscall.Kill(oci.PID(), syscall.SIGKILL)
		_, _ = oci.Collect()
		streams.Close()
		return err
	}
	p.spec = nil
	p.c.service.reaper.Register(oci, p.collected)
	return nil
}

// delete removes what has ended, or was not started. Who deletes a container that
// is still being made, which nobody but its maker's successor does, wants it gone
// however far it has come.
func (s *service) delete(ctx context.Context, id, execID string) (live.Exit, error) {
	if err := s.awaitCreated(ctx, id); err != nil {
		return live.Exit{}, err
	}
	p, before, err := s.enter(id, execID, opDelete)
	if err != nil {
		return live.Exit{}, err
	}
	if p.isExec() {
		p.release()
		p.c.mu.Lock()
		delete(p.c.execs, execID)
		p.c.mu.Unlock()
		end := p.exit()
		if before == created {
			p.failed()
		}
		p.finish(deleting, deleted)
		return end, nil
	}
	c := p.c
	if before == created {
		if err := s.hold(func() error { return c.oci.KillAll(ctx) }); err != nil {
			p.finish(deleting, before)
			return live.Exit{}, err
		}
		select {
		case <-p.exited:
		case <-ctx.Done():
			p.finish(deleting, before)
			return live.Exit{}, ctx.Err()
		}
	}
	if err := s.hold(func() error { return c.oci.Delete(ctx) }); err != nil {
		p.finish(deleting, stopped)
		return live.Exit{}, fmt.Errorf("OCI runtime delete failed: %w", err)
	}
	failpoint.Hit("shim.delete.destroyed")
	c.unwatch()
	p.release()
	c.releaseExecs()
	c.unmount()
	failpoint.Hit("shim.delete.unmounted")
	end := p.exit()
	s.publish(event{topic: "/tasks/delete", body: &api.TaskDelete{
		ContainerID: id, Pid: end.PID, ExitStatus: end.Status, ExitedAt: api.Time(end.At),
	}})
	p.finish(deleting, deleted)
	s.mu.Lock()
	delete(s.containers, id)
	last := len(s.containers) == 0
	s.mu.Unlock()
	failpoint.Hit("shim.delete.deleted")
	if last {
		s.left()
	}
	return end, nil
}

// releaseExecs closes the streams of execs that nobody deleted, all at the same
// time: each may have output that nobody reads. Those that were never started have
// ended with it.
func (c *container) releaseExecs() {
	c.mu.Lock()
	execs := c.execs
	c.execs = map[string]*process{}
	c.mu.Unlock()
	var all sync.WaitGroup
	for _, p := range execs {
		if before, err := p.begin(opDelete); err == nil && before == created {
			p.failed()
		}
		all.Go(p.release)
	}
	all.Wait()
}

func (p *process) exit() live.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == nil {
		return live.Exit{}
	}
	return *p.end
}

// failed makes an exec that could not be started, or never will be, one that has
// ended: nobody waits for it any longer.
func (p *process) failed() {
	p.mu.Lock()
	if p.end == nil {
		p.end = &live.Exit{Status: unknownStatus}
	}
	p.state = stopped
	p.mu.Unlock()
	close(p.exited)
}

func (s *service) exec(ctx context.Context, id, execID string, io live.TaskIO, raw []byte) error {
	p, _, err := s.enter(id, "", opExec)
	if err != nil {
		return err
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(raw, spec); err != nil {
		return fmt.Errorf("the process of exec %s is not an OCI process: %w: %w", execID, err, errdefs.ErrInvalidArgument)
	}
	spec.Terminal = io.Terminal
	clamp(spec, s.log)
	e := newProcess(p.c, execID, io)
	e.spec, e.state = spec, created
	p.c.mu.Lock()
	if p.c.execs[execID] != nil {
		p.c.mu.Unlock()
		return fmt.Errorf("exec %s of container %s: %w", execID, id, errdefs.ErrAlreadyExists)
	}
	p.c.execs[execID] = e
	p.c.mu.Unlock()
	s.publish(event{topic: "/tasks/exec-added", body: &api.TaskExecAdded{ContainerID: id, ExecID: execID}})
	return nil
}

func (s *service) kill(ctx context.Context, id, execID string, signal uint32, all bool) error {
	p, now, err := s.enter(id, execID, opKill)
	if err != nil {
		return err
	}
	sig := syscall.Signal(signal)
	switch {
	case p.isExec():
		return p.kill(sig)
	// What is frozen has to be thawed to die (version 1 of control groups).
	case sig == syscall.SIGKILL && (all || now == pausing || now == paused):
		return s.hold(func() error { return p.c.oci.KillAll(ctx) })
	default:
		return s.hold(func() error { return p.c.oci.Signal(ctx, sig) })
	}
}

// kill signals an exec.
func (p *process) kill(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// While end is not set the PID is ours: nobody has collected it.
	if p.end != nil || p.pid == 0 {
		return refusal(stopped, opKill, errdefs.ErrNotFound)
	}
	if err := syscall.Kill(int(p.pid), sig); errors.Is(err, syscall.ESRCH) {
		return refusal(stopped, opKill, errdefs.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("send signal %d to process %d: %w", sig, p.pid, err)
	}
	return nil
}

func (s *service) wait(ctx context.Context, id, execID string) (live.Exit, error) {
	p, err := s.process(id, execID)
	if err != nil {
		return live.Exit{}, err
	}
	select {
	case <-p.exited:
		return p.exit(), nil
	case <-ctx.Done():
		return live.Exit{}, ctx.Err()
	}
}

func (s *service) pause(ctx context.Context, id string) error {
	p, before, err := s.enter(id, "", opPause)
	if err != nil {
		return err
	}
	if err := s.hold(func() error { return p.c.oci.Pause(ctx) }); err != nil {
		p.finish(pausing, before)
		return fmt.Errorf("OCI runtime pause failed: %w", err)
	}
	p.finish(pausing, paused)
	s.publish(event{topic: "/tasks/paused", body: &api.TaskPaused{ContainerID: id}})
	return nil
}

func (s *service) resume(ctx context.Context, id string) error {
	p, before, err := s.enter(id, "", opResume)
	if err != nil {
		return err
	}
	if err := s.hold(func() error { return p.c.oci.Resume(ctx) }); err != nil {
		p.finish(resuming, before)
		return fmt.Errorf("OCI runtime resume failed: %w", err)
	}
	p.finish(resuming, running)
	s.publish(event{topic: "/tasks/resumed", body: &api.TaskResumed{ContainerID: id}})
	return nil
}

func (s *service) resize(id, execID string, width, height uint32) error {
	p, _, err := s.enter(id, execID, opResize)
	if err != nil {
		return err
	}
	return p.withStreams(func(st *stdio.Streams) error { return st.Resize(width, height) })
}

func (s *service) closeIO(id, execID string, stdin bool) error {
	p, _, err := s.enter(id, execID, opCloseIO)
	if err != nil || !stdin {
		return err
	}
	return p.withStreams((*stdio.Streams).CloseStdin)
}

func (s *service) pids(ctx context.Context, id string) ([]*processInfo, error) {
	p, _, err := s.enter(id, "", opPids)
	if err != nil {
		return nil, err
	}
	var pids []int
	err = s.hold(func() (err error) {
		pids, err = p.c.oci.Pids(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	execs := map[uint32]string{}
	p.c.mu.Lock()
	for _, e := range p.c.execs {
		e.mu.Lock()
		if e.end == nil { // the PID of one that has ended may be another's
			execs[e.pid] = e.execID
		}
		e.mu.Unlock()
	}
	p.c.mu.Unlock()
	infos := make([]*processInfo, len(pids))
	for i, pid := range pids {
		infos[i] = &processInfo{pid: uint32(pid), execID: execs[uint32(pid)]}
	}
	return infos, nil
}

// processInfo is a process of a container; execID is empty unless it is an exec.
type processInfo struct {
	pid    uint32
	execID string
}

func (s *service) update(ctx context.Context, id string, raw []byte) error {
	p, _, err := s.enter(id, "", opUpdate)
	if err != nil {
		return err
	}
	resources := new(specs.LinuxResources)
	if err := json.Unmarshal(raw, resources); err != nil {
		return fmt.Errorf("the resources are not those of the OCI runtime specification: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := s.hold(func() error { return p.c.oci.Update(ctx, resources) }); err != nil {
		return fmt.Errorf("OCI runtime update failed: %w", err)
	}
	return nil
}

func (s *service) stats(id string) (typeURL string, value []byte, err error) {
	p, _, err := s.enter(id, "", opStats)
	if err != nil {
		return "", nil, err
	}
	return p.c.group.Metrics()
}

func (s *service) checkpoint(ctx context.Context, id string, opts ociruntime.CheckpointOptions) error {
	p, before, err := s.enter(id, "", opCheckpoint)
	if err != nil {
		return err
	}
	err = s.hold(func() error { return p.c.oci.Checkpoint(ctx, opts) })
	p.finish(checkpointing, before)
	if err != nil {
		return fmt.Errorf("OCI runtime checkpoint failed: %w", err)
	}
	s.publish(event{topic: "/tasks/checkpointed", body: &api.TaskCheckpointed{ContainerID: id, Checkpoint: opts.ImagePath}})
	return nil
}
