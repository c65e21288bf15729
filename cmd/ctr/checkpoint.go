package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/remote"
	"berth/internal/wire"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A checkpoint is an image whose index lists, as containerd has it: the container's
// image, what CRIU wrote as a tar, the options it ran with, the container's spec and
// runtime options (each a serialised Any), and the writable layer. Annotations of
// the index name the image, the runtime and the snapshotter.
const (
	typeCriu           = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	typeSpec           = "application/vnd.containerd.container.checkpoint.config.v1+proto"
	typeOptions        = "application/vnd.containerd.container.checkpoint.options.v1+proto"
	typeRuntimeOptions = "application/vnd.containerd.container.checkpoint.runtime.options+proto"

	annotationRuntime     = "io.containerd.checkpoint.runtime"
	annotationSnapshotter = "io.containerd.checkpoint.snapshotter"
	maxCheckpointBlob     = 16 << 20
)

// checkpoint is one in the making. Everything it writes belongs to a lease.
type checkpoint struct {
	s     *session
	store *remote.Content
	index ispec.Index
}

// withCheckpoint runs fn with an empty index, under a lease.
func withCheckpoint(ctx context.Context, s *session, fn func(ctx context.Context, c *checkpoint) error) error {
	lease := leaseID()
	if err := createLease(ctx, s, lease); err != nil {
		return err
	}
	defer s.later(ctx, func(ctx context.Context) error { return deleteLease(ctx, s, lease, false) })
	c := &checkpoint{s: s, store: remote.NewContent(remote.Scope(s, s.namespace, lease))}
	c.index.SchemaVersion = 2
	c.index.Annotations = map[string]string{}
	return fn(withLease(ctx, lease), c)
}

func (c *checkpoint) add(desc ispec.Descriptor) {
	if desc.Platform == nil {
		desc.Platform = &ispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	}
	c.index.Manifests = append(c.index.Manifests, desc)
}

func (c *checkpoint) write(ctx context.Context, mediaType, ref string, b []byte, labels map[string]string) (ispec.Descriptor, error) {
	desc := ispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	w, err := c.store.Writer(ctx, content.WriteOptions{Ref: ref, Size: desc.Size, Expected: desc.Digest})
	if errdefs.IsAlreadyExists(err) {
		return desc, nil
	}
	if err != nil {
		return desc, err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return desc, err
	}
	if _, err := w.Write(b); err != nil {
		return desc, err
	}
	return desc, ignoreExists(w.Commit(ctx, desc.Size, desc.Digest, labels))
}

func (c *checkpoint) addAny(ctx context.Context, mediaType, ref string, a *anypb.Any) error {
	b, err := proto.Marshal(a)
	if err != nil {
		return err
	}
	desc, err := c.write(ctx, mediaType, ref, b, nil)
	c.add(desc)
	return err
}

// addTask has the processes written. Without an image path the daemon puts them
// into its content store and tells what it wrote.
func (c *checkpoint) addTask(ctx context.Context, id string, opts *options.CheckpointOptions) error {
	a, err := marshalAny(opts)
	if err != nil {
		return err
	}
	resp, err := tasksapi.NewTasksClient(c.s).Checkpoint(ctx, &tasksapi.CheckpointTaskRequest{ContainerID: id, Options: a})
	if err != nil {
		return err
	}
	for _, d := range resp.Descriptors {
		c.add(wire.DescriptorFromProto(d))
	}
	return nil
}

// addImage refers to the image.
func (c *checkpoint) addImage(ctx context.Context, name string) error {
	resp, err := imagesapi.NewImagesClient(c.s).Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err == nil {
		c.index.Manifests = append(c.index.Manifests, wire.DescriptorFromProto(resp.Image.Target))
	}
	return err
}

// addLayer adds what the container has written, as a layer.
func (c *checkpoint) addLayer(ctx context.Context, record *containersapi.Container) error {
	if record.SnapshotKey == "" {
		return invalid("container %s has no snapshot whose changes could be kept", record.ID)
	}
	sn := newSnapshotter(c.s, record.Snapshotter)
	upper, err := sn.readable(ctx, record.SnapshotKey)
	if err != nil {
		return err
	}
	defer upper.remove()
	lower := readable{remove: func() {}}
	if upper.info.Parent != "" {
		if lower, err = sn.readable(ctx, upper.info.Parent); err != nil {
			return err
		}
	}
	defer lower.remove()
	resp, err := diffapi.NewDiffClient(c.s).Diff(ctx, &diffapi.DiffRequest{
		Left: lower.mounts, Right: upper.mounts, MediaType: ispec.MediaTypeImageLayerGzip, Ref: "checkpoint-rw-" + record.SnapshotKey,
	})
	if err == nil {
		c.add(wire.DescriptorFromProto(resp.Diff))
	}
	return err
}

// save writes the index and makes the image.
func (c *checkpoint) save(ctx context.Context, ref, name string, labels map[string]string) error {
	b, err := json.Marshal(c.index)
	if err != nil {
		return err
	}
	desc, err := c.write(ctx, ispec.MediaTypeImageIndex, ref, b, image.ChildLabels(c.index.Manifests))
	if err != nil {
		return err
	}
	_, err = imagesapi.NewImagesClient(c.s).Create(ctx, &imagesapi.CreateImageRequest{
		Image: &imagesapi.Image{Name: name, Target: wire.DescriptorToProto(desc), Labels: labels},
	})
	return err
}

// paused runs fn while the task is paused, and lets it go on if it ran before.
func paused(ctx context.Context, p process, fn func() error) (err error) {
	state, err := p.state(ctx)
	if err != nil {
		return err
	}
	if state.Status != task.Status_PAUSED {
		if _, err := p.tasks.Pause(ctx, &tasksapi.PauseTaskRequest{ContainerID: p.id}); err != nil {
			return err
		}
		defer func() {
			ctx, cancel := afterwards(ctx)
			defer cancel()
			_, e := p.tasks.Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: p.id})
			if e = ignoreNotFound(e); e != nil && !errdefs.IsFailedPrecondition(e) { // it may have been asked to exit
				err = errors.Join(err, fmt.Errorf("resuming task %s: %w", p.id, e))
			}
		}()
	}
	return fn()
}

func checkpointContainerAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id", "ref"); err != nil {
		return err
	}
	id, ref := cmd.Args().First(), cmd.Args().Get(1)
	record, err := getContainer(ctx, s, id)
	if err != nil {
		return err
	}
	if record.Image == "" {
		return invalid("container %s was not made from an image; there is nothing to restore it from", id)
	}
	take := func() error {
		return withCheckpoint(ctx, s, func(ctx context.Context, c *checkpoint) error {
			c.index.Annotations[ispec.AnnotationRefName] = record.Image
			c.index.Annotations[annotationRuntime] = record.Runtime.GetName()
			c.index.Annotations[annotationSnapshotter] = record.Snapshotter
			return c.container(ctx, cmd, record, ref)
		})
	}
	p := s.process(id, "")
	if _, err := p.state(ctx); errdefs.IsNotFound(err) {
		if cmd.Bool("task") {
			return fmt.Errorf("--task: container %s has no task: %w", id, err)
		}
		return take()
	}
	return paused(ctx, p, take)
}

func (c *checkpoint) container(ctx context.Context, cmd *cli.Command, record *containersapi.Container, ref string) error {
	if opts := record.Runtime.GetOptions(); len(opts.GetValue()) > 0 {
		if err := c.addAny(ctx, typeRuntimeOptions, record.ID+"-runtime-options", opts); err != nil {
			return err
		}
	}
	if cmd.Bool("image") {
		if err := c.addImage(ctx, record.Image); err != nil {
			return err
		}
	}
	if cmd.Bool("rw") {
		if err := c.addLayer(ctx, record); err != nil {
			return err
		}
	}
	if cmd.Bool("task") {
		opts := &options.CheckpointOptions{FileLocks: true}
		if err := c.addTask(ctx, record.ID, opts); err != nil {
			return err
		}
		a, err := marshalAny(opts)
		if err == nil {
			err = c.addAny(ctx, typeOptions, record.ID+"-checkpoint-options", a)
		}
		if err != nil {
			return err
		}
	} else if err := c.addAny(ctx, typeSpec, record.ID+"-spec", record.Spec); err != nil {
		// Differs from containerd: a checkpoint without the task has the spec, too,
		// so that it can be restored.
		return err
	}
	return c.save(ctx, record.ID+"-index", ref, nil)
}

func checkpointTaskAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id"); err != nil {
		return err
	}
	id := cmd.Args().First()
	record, err := getContainer(ctx, s, id)
	if err != nil {
		return err
	}
	opts := &options.CheckpointOptions{Exit: cmd.Bool("exit"), ImagePath: cmd.String("image-path"), WorkPath: cmd.String("work-path")}
	name := fmt.Sprintf("containerd.io/checkpoint/%s:%s", id, time.Now().Format("01-02-2006-15:04:05"))
	return paused(ctx, s.process(id, ""), func() error {
		return withCheckpoint(ctx, s, func(ctx context.Context, c *checkpoint) error {
			if err := c.addTask(ctx, id, opts); err != nil || opts.ImagePath != "" {
				return err
			}
			if record.Image != "" {
				if err := c.addImage(ctx, record.Image); err != nil {
					return err
				}
				c.index.Annotations["image.name"] = record.Image
			}
			if record.SnapshotKey != "" {
				if err := c.addLayer(ctx, record); err != nil {
					return err
				}
			}
			if err := c.save(ctx, id, name, map[string]string{"containerd.io/checkpoint": "true"}); err != nil {
				return err
			}
			output.Line("%s", name)
			return nil
		})
	})
}

// restoreAction makes a container of a checkpoint and starts it.
func restoreAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "container id", "ref"); err != nil {
		return err
	}
	id, ref := cmd.Args().First(), cmd.Args().Get(1)
	resp, err := imagesapi.NewImagesClient(s).Get(ctx, &imagesapi.GetImageRequest{Name: ref})
	if err != nil {
		return err
	}
	doc, err := s.readBlob(ctx, wire.DescriptorFromProto(resp.Image.Target), maxCheckpointBlob)
	if err != nil {
		return err
	}
	index, err := image.ParseIndex(doc, resp.Image.Target.MediaType)
	if err != nil {
		return fmt.Errorf("%s is not a checkpoint: %w", ref, err)
	}
	ctx, front, stop := interruptible(ctx)
	defer stop()
	lease := leaseID()
	if err := createLease(ctx, s, lease); err != nil {
		return err
	}
	defer s.later(ctx, func(ctx context.Context) error { return deleteLease(ctx, s, lease, false) })
	c, err := restored(withLease(ctx, lease), cmd, s, id, index)
	if err != nil {
		return fmt.Errorf("restoring %s: %w", ref, err)
	}
	status, _, err := runTask(ctx, cmd, s, front, c, !c.spec.Process.Terminal)
	switch {
	case isLost(err):
		return err
	case err != nil:
		return errors.Join(interrupted(ctx, err), removeContainer(ctx, s, c.record, false))
	}
	return exitWith(status)
}

// restored makes the record and the snapshot that an index describes.
func restored(ctx context.Context, cmd *cli.Command, s *session, id string, index ispec.Index) (_ *created, err error) {
	find := func(mediaType string) *ispec.Descriptor {
		for _, d := range index.Manifests {
			if d.MediaType == mediaType {
				return &d
			}
		}
		return nil
	}
	name, snapshotter := index.Annotations[ispec.AnnotationRefName], index.Annotations[annotationSnapshotter]
	if name == "" || snapshotter == "" || index.Annotations[annotationRuntime] == "" {
		return nil, invalid("it is not a checkpoint of a container: its index does not name image, snapshotter and runtime")
	}
	c := &created{record: &containersapi.Container{
		ID: id, Image: name, SnapshotKey: id, Snapshotter: snapshotter,
		Runtime: &containersapi.Container_Runtime{Name: index.Annotations[annotationRuntime]},
	}}
	if c.record.Spec, err = s.readAny(ctx, find(typeSpec)); err != nil || c.record.Spec == nil {
		return nil, errors.Join(err, invalid("it has no container spec; take it with --task"))
	}
	if c.record.Runtime.Options, err = s.readAny(ctx, find(typeRuntimeOptions)); err != nil {
		return nil, err
	}
	if c.spec, err = containerSpec(c.record); err != nil {
		return nil, err
	}
	if c.spec.Process == nil {
		return nil, invalid("its container spec names no process")
	}
	if cmd.Bool("live") {
		criu := find(typeCriu)
		if criu == nil {
			return nil, invalid("--live: it has no memory of processes; take it with --task")
		}
		c.checkpoint = &types.Descriptor{MediaType: criu.MediaType, Digest: criu.Digest.String(), Size: criu.Size, Annotations: criu.Annotations}
	}
	img, err := resolveImage(ctx, s, name, "")
	if err != nil {
		return nil, err
	}
	if c.rootfs, err = prepareRootfs(ctx, cmd, s, snapshotter, creation{id: id, ref: name}, img); err != nil {
		return nil, err
	}
	if cmd.Bool("rw") {
		layer := find(ispec.MediaTypeImageLayerGzip)
		if layer == nil {
			err = invalid("--rw: it has no writable layer; take it with --rw")
		} else {
			_, err = diffapi.NewDiffClient(s).Apply(ctx, &diffapi.ApplyRequest{Diff: wire.DescriptorToProto(*layer), Mounts: c.rootfs})
		}
	}
	if err == nil {
		_, err = containersapi.NewContainersClient(s).Create(ctx, &containersapi.CreateContainerRequest{Container: c.record})
	}
	if err != nil {
		removeSnapshot(ctx, s, snapshotter, id)
	}
	return c, err
}

// readAny reads a serialised Any; nil for no blob.
func (s *session) readAny(ctx context.Context, desc *ispec.Descriptor) (*anypb.Any, error) {
	if desc == nil {
		return nil, nil
	}
	b, err := s.readBlob(ctx, *desc, maxCheckpointBlob)
	if err != nil {
		return nil, err
	}
	a := &anypb.Any{}
	if err := proto.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("%s: %w", desc.MediaType, err)
	}
	return a, nil
}
