// Package task is running containers as the daemon sees them: bundles on disk,
// the shims that hold the containers, and how to reach them.
package task

import (
	"context"
	"log/slog"
	"time"

	"berth/internal/events"
	"berth/internal/object"
)

// Options of New.
type Options struct {
	// Root and State are the daemon's directories; bundles are in
	// <State>/io.containerd.runtime.v2.task/<namespace>/<id>, work in the same
	// path under Root.
	Root, State string
	// Address and TTRPCAddress are the daemon's sockets, told to shims.
	Address, TTRPCAddress string
	Events                *events.Exchange
	Log                   *slog.Logger
	// Env is added to the environment of shims.
	Env []string
}

// Manager starts, finds and ends shims, and passes operations on to them. One
// shim that hangs never holds up another's tasks.
type Manager struct{}

// New makes a manager. It touches no shim: Recover does.
func New(opts Options) (*Manager, error) { return nil, nil }

// Recover adopts the shims that an earlier daemon left, ends what is left of
// dead ones, and reports their exits. The API may be served meanwhile: a call
// for a task that is not settled yet waits for it alone.
func (m *Manager) Recover(ctx context.Context, namespaces []string) error { return nil }

// Close lets go of the shims; they live on.
func (m *Manager) Close() error { return nil }

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
	// place of a shim to start.
	Address string
	Version uint32
}

// Create makes the task of a container: a bundle, a shim, an init process that
// waits to be started. It returns the init's PID.
// errdefs.ErrAlreadyExists when it has a task; errdefs.ErrNotFound when there
// is no such runtime. A failure leaves nothing behind.
func (m *Manager) Create(ctx context.Context, namespace string, c object.Container, opts CreateOptions) (uint32, error) {
	return 0, nil
}

// Start runs the init process, or the exec process when execID is not empty.
func (m *Manager) Start(ctx context.Context, namespace, id, execID string) (pid uint32, err error) {
	return 0, nil
}

// Delete removes a stopped task with its bundle and shim, or a stopped exec
// process when execID is not empty. errdefs.ErrFailedPrecondition while it runs.
func (m *Manager) Delete(ctx context.Context, namespace, id, execID string) (object.Exit, error) {
	return object.Exit{}, nil
}

// State of a process; errdefs.ErrNotFound when there is no such task or exec.
func (m *Manager) State(ctx context.Context, namespace, id, execID string) (object.Process, error) {
	return object.Process{}, nil
}

// List describes the init processes of a namespace's tasks. A task whose shim
// does not answer in time is reported as TaskUnknown.
func (m *Manager) List(ctx context.Context, namespace string) ([]object.Process, error) {
	return nil, nil
}

// Kill sends a signal, to all processes of the container when all is set.
func (m *Manager) Kill(ctx context.Context, namespace, id, execID string, signal uint32, all bool) error {
	return nil
}

// ExecOptions describes a further process of a task.
type ExecOptions struct {
	IO object.TaskIO
	// Spec is an OCI process.
	Spec object.Any
}

// Exec adds a process to a task; Start runs it.
func (m *Manager) Exec(ctx context.Context, namespace, id, execID string, opts ExecOptions) error {
	return nil
}

func (m *Manager) ResizePty(ctx context.Context, namespace, id, execID string, width, height uint32) error {
	return nil
}

// CloseIO closes the standard input of a process.
func (m *Manager) CloseIO(ctx context.Context, namespace, id, execID string, stdin bool) error {
	return nil
}
func (m *Manager) Pause(ctx context.Context, namespace, id string) error  { return nil }
func (m *Manager) Resume(ctx context.Context, namespace, id string) error { return nil }
func (m *Manager) Pids(ctx context.Context, namespace, id string) ([]object.ProcessInfo, error) {
	return nil, nil
}
func (m *Manager) Checkpoint(ctx context.Context, namespace, id, path string, options *object.Any) error {
	return nil
}
func (m *Manager) Update(ctx context.Context, namespace, id string, resources object.Any, annotations map[string]string) error {
	return nil
}

// Wait returns when the process has ended, or ctx has.
func (m *Manager) Wait(ctx context.Context, namespace, id, execID string) (object.Exit, error) {
	return object.Exit{}, nil
}

// Stats returns the cgroup metrics of a task in the form that its shim chose.
func (m *Manager) Stats(ctx context.Context, namespace, id string) (object.Any, time.Time, error) {
	return object.Any{}, time.Time{}, nil
}

// RuntimeInfo asks a runtime's shim (its -info) about itself; the result and
// the options are serialised containerd.runc.v1 messages.
func (m *Manager) RuntimeInfo(ctx context.Context, runtime, path string, options *object.Any) (object.Any, error) {
	return object.Any{}, nil
}
