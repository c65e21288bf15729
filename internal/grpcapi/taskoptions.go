package grpcapi

import (
	"fmt"

	"berth/internal/object"
	"berth/internal/task"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// createOptions gathers what a request to create a task says in its several
// places. The checkpoint comes from the annotation, or from runc's options; create
// takes it from the content store otherwise.
func createOptions(req *api.CreateTaskRequest) (task.CreateOptions, error) {
	opts := task.CreateOptions{
		Rootfs:      wire.MountsFromProto(req.Rootfs),
		IO:          object.TaskIO{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Terminal: req.Terminal},
		Options:     wire.AnyFromProto(req.Options),
		RuntimePath: req.RuntimePath,
		Address:     req.TaskApiAddress,
		Version:     req.TaskApiVersion,
	}
	// Differs from containerd: options of other runtimes than runc pass through;
	// there, a task cannot be created with them.
	if req.Options != nil && typeurl.Is(req.Options, (*options.Options)(nil)) {
		var o options.Options
		if err := typeurl.UnmarshalTo(req.Options, &o); err != nil {
			return opts, fmt.Errorf("runtime options: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		opts.Checkpoint = o.CriuImagePath
		// Compat: sandboxers older than 2.1 pass the address in here.
		if opts.Address == "" {
			opts.Address = o.TaskApiAddress
		}
		if opts.Version == 0 {
			opts.Version = o.TaskApiVersion
		}
	}
	if path := req.Checkpoint.GetAnnotations()[restoreAnnotation]; path != "" {
		opts.Checkpoint = path
	}
	return opts, nil
}
