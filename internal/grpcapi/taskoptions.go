package grpcapi

import (
	"context"
	"fmt"

	"berth/internal/object"
	"berth/internal/task"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// restoreAnnotation names, on the checkpoint of a request, a directory on this
// host that has the images to restore from (CRI's way).
const restoreAnnotation = "RestoreFromPath"

// createOptions gathers what a request to create a task says in its several
// places. The checkpoint comes from the annotation, or from runc's options, or
// would have to be unpacked from the content store.
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
	if req.Checkpoint == nil {
		return opts, nil
	}
	if path := req.Checkpoint.Annotations[restoreAnnotation]; path != "" {
		opts.Checkpoint = path
	}
	if opts.Checkpoint == "" {
		return opts, fmt.Errorf("restore from checkpoint %s: checkpoints in the content store are not supported yet: %w", req.Checkpoint.Digest, errdefs.ErrNotImplemented)
	}
	return opts, nil
}

// Checkpoint writes a checkpoint to the directory that runc's options name.
func (s *tasks) Checkpoint(ctx context.Context, req *api.CheckpointTaskRequest) (*api.CheckpointTaskResponse, error) {
	path, err := checkpointPath(req.Options)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, fmt.Errorf("checkpoint of %s: name an image path: checkpoints in the content store are not supported yet: %w", req.ContainerID, errdefs.ErrNotImplemented)
	}
	if err := s.manager.Checkpoint(ctx, ScopeOf(ctx).Namespace, req.ContainerID, path, wire.AnyFromProto(req.Options)); err != nil {
		return nil, err
	}
	return &api.CheckpointTaskResponse{}, nil
}

func checkpointPath(a *anypb.Any) (string, error) {
	if a == nil {
		return "", nil
	}
	var o options.CheckpointOptions
	if err := typeurl.UnmarshalTo(a, &o); err != nil {
		return "", fmt.Errorf("checkpoint options: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	return o.ImagePath, nil
}
