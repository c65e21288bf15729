// Package ociruntime makes and controls containers as the OCI runtime
// specification describes them. There is one Driver interface with two drivers:
// Builtin runs libcontainer in this process, External runs a program with runc's
// command line (runc, crun, youki, …).
//
// Both keep a container's state in <root>/<id> in the form that the program
// itself uses, so that "runc --root <root> list" shows them.
//
// Children: a driver starts processes. Those of a container (its init, and what
// Exec starts) become children of the calling process, which must be a child
// subreaper; whoever reaps children collects them with Process.Collect. All
// other children a driver waits for itself: nobody else may reap them while one
// of its methods runs.
package ociruntime

import (
	"context"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Driver makes containers.
type Driver interface {
	// Create makes a container and its init process, which waits for
	// Container.Start. A failure leaves nothing behind.
	Create(ctx context.Context, id string, opts CreateOptions) (Container, error)
	// Destroy kills and removes what is left of a container that this process
	// has not made. It is content when there is none. The specification tells of
	// what was made before there was a state; nil: it is not known.
	Destroy(ctx context.Context, id string, spec *specs.Spec) error
}

// Container is one container that a Driver made. Methods may be called at the
// same time; none waits for an Exec that hangs.
type Container interface {
	// Init is the container's first process.
	Init() Process
	// Start lets the init process execute the container's program.
	Start(ctx context.Context) error
	// Exec runs a further process in the container. Until the caller has collected
	// it, once it has ended, the container's init does not end either when they
	// share a PID namespace of their own.
	Exec(ctx context.Context, opts ExecOptions) (Process, error)
	// Signal sends a signal to the init process; KillAll ends every process
	// of the container, paused or not.
	Signal(ctx context.Context, sig syscall.Signal) error
	KillAll(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Update(ctx context.Context, resources *specs.LinuxResources) error
	// Pids of all processes in the container's cgroup, in the caller's PID
	// namespace.
	Pids(ctx context.Context) ([]int, error)
	Checkpoint(ctx context.Context, opts CheckpointOptions) error
	// Delete removes a container whose init process has ended and was collected,
	// or was never started.
	Delete(ctx context.Context) error
}

// Process is a child of the calling process.
type Process interface {
	// PID in the caller's PID namespace.
	PID() int
	// Console is the master of the process's terminal, nil when it has none.
	// The caller closes it.
	Console() *os.File
	// Collect reaps the process, which must have ended. It is called once.
	Collect() (syscall.WaitStatus, error)
}

// Stdio holds the files that become a process's streams; nil is /dev/null. The
// caller closes them once the process is made.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// CreateOptions describes a container.
type CreateOptions struct {
	// Bundle is the directory with config.json.
	Bundle string
	// Spec is the content of config.json, with any changes applied; changes tells
	// that there are such.
	Spec    *specs.Spec
	Changed bool
	// Stdio is ignored when the spec asks for a terminal.
	Stdio        Stdio
	NoPivotRoot  bool
	NoNewKeyring bool
	// PIDFile, when not empty, is where the init's PID is written.
	PIDFile string
	// Checkpoint, when not empty, is the directory of a checkpoint to restore. The
	// container then runs at once, and Start does nothing.
	Checkpoint string
	// CriuWork is where a restore keeps its logs.
	CriuWork string
}

// ExecOptions describes a process.
type ExecOptions struct {
	// ID is unique among the processes of the container.
	ID    string
	Spec  *specs.Process
	Stdio Stdio
}

// CheckpointOptions are CRIU's, as the containerd.runc.v1.CheckpointOptions
// message has them.
type CheckpointOptions struct {
	ImagePath, WorkPath, ParentPath string
	// Exit stops the container once it is written.
	Exit                bool
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	// CgroupsMode is soft, full or strict.
	CgroupsMode string
}
