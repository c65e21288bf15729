package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"berth/internal/failpoint"
	"berth/internal/object"
	"berth/internal/trace"
	"berth/internal/wire"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// call passes one operation on to the shim of a task.
func (m *Manager) call(ctx context.Context, namespace, id, method string, req, resp proto.Message) error {
	t, err := m.lookup(ctx, namespace, id)
	if err != nil {
		return err
	}
	return t.call(ctx, method, req, resp)
}

func (t *task) call(ctx context.Context, method string, req, resp proto.Message) error {
	if t.shim == nil {
		return fmt.Errorf("the shim of container %q has died: %w", t.id, errdefs.ErrNotFound)
	}
	return t.shim.call(ctx, t.key, method, req, resp)
}

// do is call for methods that answer nothing.
func (m *Manager) do(ctx context.Context, namespace, id, method string, req proto.Message) error {
	return m.call(ctx, namespace, id, method, req, &emptypb.Empty{})
}

// Start runs the init process, or the exec process when execID is not empty.
func (m *Manager) Start(ctx context.Context, namespace, id, execID string) (pid uint32, err error) {
	ctx, span := trace.Start(ctx, "task.start", trace.String("namespace", namespace), trace.String("id", id), trace.String("exec", execID))
	defer func() { span.End(err) }()
	t, err := m.lookup(ctx, namespace, id)
	if err != nil {
		return 0, err
	}
	var resp taskapi.StartResponse
	if err := t.call(ctx, "Start", &taskapi.StartRequest{ID: id, ExecID: execID}, &resp); err != nil {
		return 0, err
	}
	failpoint.Hit("task.start.started")
	if t.shim.own && execID == "" {
		m.spares.Replenish(t.shim.binary)
	}
	return resp.GetPid(), nil
}

// State of a process; errdefs.ErrNotFound when there is no such task or exec.
func (m *Manager) State(ctx context.Context, namespace, id, execID string) (object.Process, error) {
	t, err := m.lookup(ctx, namespace, id)
	if err != nil {
		return object.Process{}, err
	}
	return t.state(ctx, execID)
}

func (t *task) state(ctx context.Context, execID string) (object.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, t.shim.m.timeouts().State)
	defer cancel()
	var resp taskapi.StateResponse
	if err := t.call(ctx, "State", &taskapi.StateRequest{ID: t.id, ExecID: execID}, &resp); err != nil {
		return object.Process{}, err
	}
	return object.Process{
		ContainerID: t.id,
		ExecID:      execID,
		PID:         resp.GetPid(),
		Status:      wire.StatusFromProto(resp.GetStatus()),
		IO: object.TaskIO{
			Stdin:    resp.GetStdin(),
			Stdout:   resp.GetStdout(),
			Stderr:   resp.GetStderr(),
			Terminal: resp.GetTerminal(),
		},
		Exit: object.Exit{
			PID:    resp.GetPid(),
			Status: resp.GetExitStatus(),
			At:     wire.TimeFromProto(resp.GetExitedAt()),
		},
	}, nil
}

// List describes the init processes of a namespace's tasks. A task whose shim
// does not answer in time is reported as TaskUnknown.
func (m *Manager) List(ctx context.Context, namespace string) ([]object.Process, error) {
	m.mu.Lock()
	var tasks []*task
	for k, t := range m.tasks {
		if k.namespace == namespace && t.phase != creating {
			tasks = append(tasks, t)
		}
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, m.timeouts().State)
	defer cancel()
	found := make([]*object.Process, len(tasks))
	var group sync.WaitGroup
	for i, t := range tasks {
		group.Go(func() { found[i] = m.listed(ctx, t) })
	}
	group.Wait()
	if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
		return nil, err
	}
	var out []object.Process
	for _, p := range found {
		if p != nil {
			out = append(out, *p)
		}
	}
	return out, nil
}

// listed is one task for List, nil when it is no more.
func (m *Manager) listed(ctx context.Context, t *task) *object.Process {
	select {
	case <-t.settled:
		p, err := t.state(ctx, "")
		if err == nil {
			return &p
		}
		if errdefs.IsNotFound(err) {
			return nil
		}
	case <-t.gone:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return &object.Process{ContainerID: t.id, PID: t.pid, Status: object.TaskUnknown}
}

// Kill sends a signal, to all processes of the container when all is set.
func (m *Manager) Kill(ctx context.Context, namespace, id, execID string, signal uint32, all bool) error {
	failpoint.Hit("task.kill.before")
	return m.do(ctx, namespace, id, "Kill", &taskapi.KillRequest{ID: id, ExecID: execID, Signal: signal, All: all})
}

// ExecOptions describes a further process of a task.
type ExecOptions struct {
	IO object.TaskIO
	// Spec is an OCI process.
	Spec object.Any
}

// Exec adds a process to a task; Start runs it.
func (m *Manager) Exec(ctx context.Context, namespace, id, execID string, opts ExecOptions) error {
	if err := identifier("exec ID", execID); err != nil {
		return err
	}
	return m.do(ctx, namespace, id, "Exec", &taskapi.ExecProcessRequest{
		ID: id, ExecID: execID,
		Terminal: opts.IO.Terminal,
		Stdin:    opts.IO.Stdin,
		Stdout:   opts.IO.Stdout,
		Stderr:   opts.IO.Stderr,
		Spec:     wire.AnyToProto(&opts.Spec),
	})
}

// ResizePty sets the size of a process's terminal in characters.
func (m *Manager) ResizePty(ctx context.Context, namespace, id, execID string, width, height uint32) error {
	return m.do(ctx, namespace, id, "ResizePty", &taskapi.ResizePtyRequest{ID: id, ExecID: execID, Width: width, Height: height})
}

// CloseIO closes the standard input of a process.
func (m *Manager) CloseIO(ctx context.Context, namespace, id, execID string, stdin bool) error {
	return m.do(ctx, namespace, id, "CloseIO", &taskapi.CloseIORequest{ID: id, ExecID: execID, Stdin: stdin})
}

// Pause freezes all processes of a container.
func (m *Manager) Pause(ctx context.Context, namespace, id string) error {
	return m.do(ctx, namespace, id, "Pause", &taskapi.PauseRequest{ID: id})
}

// Resume undoes Pause.
func (m *Manager) Resume(ctx context.Context, namespace, id string) error {
	return m.do(ctx, namespace, id, "Resume", &taskapi.ResumeRequest{ID: id})
}

// Pids lists the processes of a container.
func (m *Manager) Pids(ctx context.Context, namespace, id string) ([]object.ProcessInfo, error) {
	var resp taskapi.PidsResponse
	if err := m.call(ctx, namespace, id, "Pids", &taskapi.PidsRequest{ID: id}, &resp); err != nil {
		return nil, err
	}
	return wire.ProcessInfosFromProto(resp.GetProcesses()), nil
}

// Checkpoint writes the state of a container's processes to a directory.
func (m *Manager) Checkpoint(ctx context.Context, namespace, id, path string, options *object.Any) error {
	return m.do(ctx, namespace, id, "Checkpoint", &taskapi.CheckpointTaskRequest{ID: id, Path: path, Options: wire.AnyToProto(options)})
}

// Update changes the resources of a running container; resources is an OCI
// LinuxResources.
func (m *Manager) Update(ctx context.Context, namespace, id string, resources object.Any, annotations map[string]string) error {
	return m.do(ctx, namespace, id, "Update", &taskapi.UpdateTaskRequest{ID: id, Resources: wire.AnyToProto(&resources), Annotations: annotations})
}

// Stats returns the cgroup metrics of a task in the form that its shim chose,
// and when they were taken.
func (m *Manager) Stats(ctx context.Context, namespace, id string) (object.Any, time.Time, error) {
	var resp taskapi.StatsResponse
	if err := m.call(ctx, namespace, id, "Stats", &taskapi.StatsRequest{ID: id}, &resp); err != nil {
		return object.Any{}, time.Time{}, err
	}
	at := time.Now()
	if resp.Stats == nil {
		return object.Any{}, at, nil
	}
	return *wire.AnyFromProto(resp.Stats), at, nil
}

// Wait returns when the process has ended, or ctx has. When the shim dies the
// exit is what its delete command found, or status 255.
func (m *Manager) Wait(ctx context.Context, namespace, id, execID string) (object.Exit, error) {
	t, err := m.lookup(ctx, namespace, id)
	if err != nil {
		return object.Exit{}, err
	}
	var resp taskapi.WaitResponse
	err = t.call(ctx, "Wait", &taskapi.WaitRequest{ID: id, ExecID: execID}, &resp)
	if err == nil {
		exit := object.Exit{Status: resp.GetExitStatus(), At: wire.TimeFromProto(resp.GetExitedAt())}
		if execID == "" {
			m.mu.Lock()
			exit.PID = t.pid
			m.mu.Unlock()
		}
		return exit, nil
	}
	if t.shim != nil && !t.shim.isDead() {
		return object.Exit{}, err
	}
	exit, err := t.awaitEnd(ctx)
	if execID != "" {
		exit.PID = 0 // it ended with the init process, whose PID this is
	}
	return exit, err
}

// awaitEnd waits until a task whose shim has died is cleared away.
func (t *task) awaitEnd(ctx context.Context) (object.Exit, error) {
	select {
	case <-t.gone:
		return t.exit, nil
	case <-ctx.Done():
		return object.Exit{}, ctx.Err()
	}
}

// Delete removes a stopped task with its bundle and shim, or a stopped exec
// process when execID is not empty. errdefs.ErrFailedPrecondition while it runs.
func (m *Manager) Delete(ctx context.Context, namespace, id, execID string) (object.Exit, error) {
	t, err := m.lookup(ctx, namespace, id)
	if err != nil {
		return object.Exit{}, err
	}
	if execID != "" {
		return t.delete(ctx, execID)
	}
	m.mu.Lock()
	if t.phase == ending {
		m.mu.Unlock()
		return t.awaitEnd(ctx) // somebody is at it
	}
	t.deletes++
	m.mu.Unlock()
	exit, err := t.delete(ctx, "")
	m.mu.Lock()
	t.deletes--
	others := t.deletes
	missing := errdefs.IsNotFound(err) && t.shim != nil && !t.shim.isDead()
	// An answer NotFound while no other Delete is under way: the shim deleted
	// it for an earlier daemon, which could not tell. The rest follows now.
	mine := t.phase == alive && (err == nil || missing && others == 0)
	failpoint.Hit("task.delete.answered")
	if mine {
		t.phase = ending
	}
	m.mu.Unlock()
	switch {
	case mine:
		m.finish(t, exit)
		return exit, err
	case err == nil || t.shim == nil || t.shim.isDead():
		return t.awaitEnd(ctx)
	}
	return object.Exit{}, err
}

func (t *task) delete(ctx context.Context, execID string) (object.Exit, error) {
	var resp taskapi.DeleteResponse
	if err := t.call(ctx, "Delete", &taskapi.DeleteRequest{ID: t.id, ExecID: execID}, &resp); err != nil {
		return object.Exit{}, err
	}
	return object.Exit{PID: resp.GetPid(), Status: resp.GetExitStatus(), At: wire.TimeFromProto(resp.GetExitedAt())}, nil
}

// finish takes away the rest of a task that its shim has deleted. A clean end
// needs no delete command.
//
// Berth's own shim ends by itself after its last container, so that nothing is
// waited for. Another must have been told to end before its bundle goes: the
// bundle is all by which the next daemon would find it.
func (m *Manager) finish(t *task, exit object.Exit) {
	s := t.shim
	last := m.detach(t, s)
	var refused error
	if last && !s.own {
		refused = m.shutdown(context.WithoutCancel(m.life), s, t.key)
		if refused != nil && m.life.Err() != nil {
			m.forget(t, exit) // Close came between; Recover does it again
			return
		}
	}
	m.discard(t)
	failpoint.Hit("task.delete.bundle-gone")
	m.forget(t, exit)
	if !last {
		return
	}
	m.background.Go(func() {
		if s.own {
			refused = m.shutdown(m.life, s, t.key)
		}
		m.seeOff(s, t.key, refused)
	})
}
