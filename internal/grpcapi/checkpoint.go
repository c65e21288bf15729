package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/object"
	"berth/internal/task"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Media types of what a checkpoint consists of, containerd's: CRIU's images as a tar
// archive, and the container's spec as an Any.
const (
	mediaCheckpoint = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	mediaConfig     = "application/vnd.containerd.container.checkpoint.config.v1+proto"
)

// restoreAnnotation names, on the checkpoint of a request, a directory on this
// host that has the images to restore from (CRI's way).
const restoreAnnotation = "RestoreFromPath"

// Checkpoint writes a checkpoint to the directory that runc's options name, or else
// to the content store.
func (s *tasks) Checkpoint(ctx context.Context, req *api.CheckpointTaskRequest) (*api.CheckpointTaskResponse, error) {
	scope := s.db.Scope(ScopeOf(ctx).Namespace, ScopeOf(ctx).Lease)
	if _, err := s.manager.State(ctx, scope.Namespace(), req.ContainerID, ""); err != nil {
		return nil, err
	}
	path, err := checkpointPath(req.Options)
	if err != nil {
		return nil, err
	}
	if path != "" {
		if err := s.manager.Checkpoint(ctx, scope.Namespace(), req.ContainerID, path, wire.AnyFromProto(req.Options)); err != nil {
			return nil, err
		}
		return &api.CheckpointTaskResponse{}, nil
	}
	c, err := scope.Containers().Get(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "checkpoint-")
	if err != nil {
		return nil, fmt.Errorf("directory for the checkpoint: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := s.manager.Checkpoint(ctx, scope.Namespace(), req.ContainerID, dir, wire.AnyFromProto(req.Options)); err != nil {
		return nil, err
	}
	images, err := store(ctx, scope.Content(), mediaCheckpoint, dir, func(w io.Writer) error {
		return archive.Diff(ctx, w, "", dir, archive.DiffOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("checkpoint of %s: %w", req.ContainerID, err)
	}
	spec, err := proto.Marshal(wire.AnyToProto(c.Spec))
	if err != nil {
		return nil, err
	}
	config, err := store(ctx, scope.Content(), mediaConfig, dir+"/spec", func(w io.Writer) error {
		_, err := w.Write(spec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("spec of the checkpoint of %s: %w", req.ContainerID, err)
	}
	return &api.CheckpointTaskResponse{Descriptors: []*types.Descriptor{images, config}}, nil
}

// store writes a blob.
func store(ctx context.Context, s content.Store, mediaType, ref string, write func(io.Writer) error) (*types.Descriptor, error) {
	w, err := s.Writer(ctx, content.WriteOptions{Ref: ref})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := write(w); err != nil {
		return nil, errors.Join(err, w.Close(), s.Abort(context.WithoutCancel(ctx), ref))
	}
	st, err := w.Status()
	if err != nil {
		return nil, err
	}
	d := w.Digest()
	if err := w.Commit(ctx, st.Offset, d, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return &types.Descriptor{MediaType: mediaType, Digest: d.String(), Size: st.Offset}, nil
}

// checkpointPath is the directory that the request's options name, or empty.
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

// fetchCheckpoint puts the images of a checkpoint into a directory, which the
// caller removes when the task is made of it.
func fetchCheckpoint(ctx context.Context, s content.Store, d *types.Descriptor) (dir string, err error) {
	if d.MediaType != mediaCheckpoint {
		return "", fmt.Errorf("checkpoint of media type %q, %s is what can be restored: %w", d.MediaType, mediaCheckpoint, errdefs.ErrInvalidArgument)
	}
	blob, err := s.ReaderAt(ctx, ispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size})
	if err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	defer blob.Close()
	if dir, err = os.MkdirTemp("", "checkpoint-"); err != nil {
		return "", fmt.Errorf("directory for the checkpoint: %w", err)
	}
	if _, err := archive.Apply(ctx, dir, io.NewSectionReader(blob, 0, blob.Size()), archive.ApplyOptions{}); err != nil {
		return "", errors.Join(fmt.Errorf("unpack checkpoint %s: %w", d.Digest, err), os.RemoveAll(dir))
	}
	return dir, nil
}

// create makes a task, from a checkpoint in the content store if that is asked for.
func (s *tasks) create(ctx context.Context, req *api.CreateTaskRequest, c object.Container, opts task.CreateOptions) (uint32, error) {
	scope := ScopeOf(ctx)
	if opts.Checkpoint == "" && req.Checkpoint != nil {
		dir, err := fetchCheckpoint(ctx, s.db.Scope(scope.Namespace, scope.Lease).Content(), req.Checkpoint)
		if err != nil {
			return 0, fmt.Errorf("create task of container %q: %w", c.ID, err)
		}
		// runc has read it when the task is made.
		defer os.RemoveAll(dir)
		opts.Checkpoint = dir
	}
	return s.manager.Create(ctx, scope.Namespace, c, opts)
}
