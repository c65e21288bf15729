// Package sandbox is the contract of what runs sandboxes: groups of containers
// with common surroundings, such as a pod or a virtual machine. Records of
// sandboxes are kept elsewhere (meta.Sandboxes); a Controller brings them to life.
//
// Controllers are: task.Sandboxes, over shims with the sandbox API, and clients of
// controllers in other processes.
package sandbox

import (
	"context"
	"time"

	"berth/internal/object"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Controller runs the sandboxes of one kind. All methods may be called at the
// same time. Errors to branch on: errdefs.ErrNotFound for a sandbox that it does not
// have (Stop and Status are content with that), errdefs.ErrAlreadyExists,
// errdefs.ErrNotImplemented for what the implementation lacks, and
// errdefs.ErrUnavailable when it cannot be reached.
type Controller interface {
	// Create prepares a sandbox; nothing runs in it. A failure leaves nothing.
	Create(ctx context.Context, namespace string, s object.Sandbox, opts CreateOptions) error
	// Start runs it. When that fails the sandbox is gone.
	Start(ctx context.Context, namespace, id string) (Instance, error)
	// Platform on which its containers run.
	Platform(ctx context.Context, namespace, id string) (ispec.Platform, error)
	// Stop ends what runs in it and keeps it until Shutdown. Zero is no timeout. A sandbox
	// that is not there is stopped.
	Stop(ctx context.Context, namespace, id string, timeout time.Duration) error
	// Wait returns when it has ended.
	Wait(ctx context.Context, namespace, id string) (object.Exit, error)
	// Status is that of an ended sandbox (only ID and ExitedAt) for one that is
	// not there. Verbose adds what the implementation likes to tell.
	Status(ctx context.Context, namespace, id string, verbose bool) (Status, error)
	// Shutdown takes it away with all that belongs to it.
	Shutdown(ctx context.Context, namespace, id string) error
	// Metrics of the sandbox as a whole.
	Metrics(ctx context.Context, namespace, id string) (Metric, error)
	// Update tells it that fields of its record have changed; all, if none are named.
	Update(ctx context.Context, namespace, id string, s object.Sandbox, fields ...string) error
}

// CreateOptions is what a sandbox needs beyond its record.
type CreateOptions struct {
	Rootfs      []object.Mount
	Options     *object.Any
	NetNS       string // path of its network namespace, or empty
	Annotations map[string]string
}

// Instance is a sandbox that was started.
type Instance struct {
	ID        string
	PID       uint32
	CreatedAt time.Time
	Labels    map[string]string
	// Address and Version of the task API for its containers, as in
	// ttrpc+unix:///run/x.sock; empty when there is none.
	Address string
	Version uint32
	// Spec that its containers are to build on, or nil.
	Spec *object.Any
}

// Status of a sandbox; State and Info are words of its implementation.
type Status struct {
	ID        string
	PID       uint32
	State     string
	Info      map[string]string
	CreatedAt time.Time
	ExitedAt  time.Time
	Extra     *object.Any
	Address   string
	Version   uint32
}

// Metric is a measurement in a form that the sandbox's implementation chose.
type Metric struct {
	At   time.Time
	ID   string
	Data *object.Any
}
