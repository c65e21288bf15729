package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/spec"
	"berth/internal/wire"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// stopSignalLabel on a container names the signal that ends it.
const stopSignalLabel = "io.containerd.image.config.stop-signal"

// created is a container whose task can be made.
type created struct {
	record *containersapi.Container
	spec   *specs.Spec
	// rootfs are the mounts of its snapshot, nil when it has none.
	rootfs []*types.Mount
	// checkpoint is what its task continues from, or nil.
	checkpoint *types.Descriptor
	// network is what its task is attached to before it starts, or nil.
	network *network
}

// creation is what is asked for, flags checked, before any call.
type creation struct {
	id, ref  string
	labels   map[string]string
	sandbox  string
	runtime  *containersapi.Container_Runtime
	fromFile *specs.Spec    // --config
	flags    spec.Container // otherwise
	rootPath string         // --rootfs
	cni      bool
}

func parseCreation(cmd *cli.Command, namespace string) (c creation, err error) {
	c = creation{labels: labelArgs(cmd.StringSlice("label")), sandbox: cmd.String("sandbox"), cni: cmd.Bool("cni")}
	if c.runtime, err = runtimeOf(cmd); err != nil {
		return c, err
	}
	if cmd.IsSet("config") {
		if c.id = cmd.Args().First(); c.id == "" {
			return c, invalid("container id must be provided")
		}
		if cmd.NArg() > 1 {
			return c, invalid("with --config, only the container id is given: the spec names the command")
		}
		if c.fromFile, err = specFromFile(cmd.String("config")); err != nil {
			return c, err
		}
		if c.fromFile.Annotations == nil {
			c.fromFile.Annotations = map[string]string{}
		}
		maps.Copy(c.fromFile.Annotations, c.labels)
		return c, nil
	}
	if c.ref = cmd.Args().First(); c.ref == "" {
		return c, invalid("image ref must be provided")
	}
	if c.id = cmd.Args().Get(1); c.id == "" {
		return c, invalid("container id must be provided")
	}
	if c.flags, err = specFromFlags(cmd, namespace, c.id, cmd.Args().Slice()[2:]); err != nil {
		return c, err
	}
	if cmd.Bool("rootfs") {
		if c.rootPath, err = filepath.Abs(c.ref); err != nil {
			return c, err
		}
		c.flags.RootPath = c.rootPath
	}
	return c, nil
}

// createContainer makes the container that the command line describes. On
// failure nothing of it is left.
func createContainer(ctx context.Context, cmd *cli.Command, s *session, c creation) (*created, error) {
	out := &created{record: &containersapi.Container{ID: c.id, Labels: c.labels, Runtime: c.runtime, Sandbox: c.sandbox}}
	if c.cni {
		out.record.Extensions = cniExtensions()
	}
	switch {
	case c.fromFile != nil:
		out.spec = c.fromFile
		return out, out.store(ctx, s)
	case c.rootPath != "":
		if c.flags.User != "" {
			root, err := spec.OpenRootfsDir(c.rootPath)
			if err != nil {
				return nil, err
			}
			defer root.Close()
			c.flags.Rootfs = root
		}
		var err error
		if out.spec, err = spec.Build(c.flags); err != nil {
			return nil, err
		}
		return out, out.store(ctx, s)
	}
	return out, out.fromImage(ctx, cmd, s, c)
}

// store writes the record.
func (c *created) store(ctx context.Context, s *session) error {
	b, err := json.Marshal(c.spec)
	if err != nil {
		return fmt.Errorf("encoding the container's spec: %w", err)
	}
	c.record.Spec = &anypb.Any{TypeUrl: spec.TypeURL, Value: b}
	_, err = containersapi.NewContainersClient(s).Create(ctx, &containersapi.CreateContainerRequest{Container: c.record})
	return err
}

// fromImage makes snapshot, spec and record. What does not depend on each other
// is asked for at the same time. The lease keeps the collector from the snapshot
// until the record refers to it; making it hides behind the look at the image, and
// releasing it behind the making of the task.
func (c *created) fromImage(ctx context.Context, cmd *cli.Command, s *session, req creation) (err error) {
	lease := leaseID()
	var img resolved
	snapshotter := cmd.String("snapshotter")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// Not interruptible: a lease that the daemon makes after it was asked to
		// delete it would stay.
		ctx, cancel := afterwards(ctx)
		defer cancel()
		return createLease(ctx, s, lease)
	})
	if snapshotter == "" {
		g.Go(func() (err error) {
			snapshotter, err = defaultSnapshotter(gctx, s)
			return err
		})
	}
	g.Go(func() (err error) {
		img, err = resolveImage(gctx, s, req.ref, cmd.String("platform"))
		return err
	})
	err = g.Wait()
	defer s.later(ctx, func(ctx context.Context) error { return deleteLease(ctx, s, lease, false) })
	if err != nil {
		return err
	}
	ctx = withLease(ctx, lease)

	c.record.Image, c.record.Snapshotter, c.record.SnapshotKey = req.ref, snapshotter, req.id
	c.record.Labels = imageLabels(img, req.labels)
	if c.rootfs, err = prepareRootfs(ctx, cmd, s, snapshotter, req, img); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			removeSnapshot(ctx, s, snapshotter, req.id)
		}
	}()
	req.flags.Image = &img.config.Config
	if err := withRootfs(ctx, c.rootfs, func(root *spec.Rootfs) (err error) {
		req.flags.Rootfs = root
		c.spec, err = spec.Build(req.flags)
		return err
	}); err != nil {
		return err
	}
	return c.store(ctx, s)
}

// later does something after the command's work while that goes on; the session
// waits for it at its end. A failure is not the command's.
func (s *session) later(ctx context.Context, fn func(context.Context) error) {
	ctx, cancel := afterwards(ctx)
	s.pending.Go(func() {
		defer cancel()
		fn(ctx)
	})
}

// withRootfs opens what mounts describe, or mounts it where that is needed.
func withRootfs(ctx context.Context, mounts []*types.Mount, fn func(*spec.Rootfs) error) error {
	objects := wire.MountsFromProto(mounts)
	root, err := spec.OpenRootfs(objects)
	if err == nil {
		defer root.Close()
		return fn(root)
	}
	if !errdefs.IsNotImplemented(err) {
		return err
	}
	return mount.WithTemp(ctx, readOnly(objects), func(dir string) error {
		root, err := spec.OpenRootfsDir(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		return fn(root)
	})
}

// readOnly makes the last of mounts read-only: unmounting need not sync then.
func readOnly(mounts []object.Mount) []object.Mount {
	last := &mounts[len(mounts)-1]
	var kept []string
	for _, o := range last.Options {
		if o != "rw" && o != "ro" {
			kept = append(kept, o)
		}
	}
	last.Options = append(kept, "ro")
	return mounts
}

// imageLabels are a new container's: the image config's, those of the image
// record, those that were asked for, and the stop signal. Names that the daemon
// gives a meaning to are not taken from an image's config.
func imageLabels(img resolved, asked map[string]string) map[string]string {
	labels := map[string]string{}
	for key, value := range img.config.Config.Labels {
		if !reservedLabel(key) {
			labels[key] = value
		}
	}
	for key, value := range img.labels {
		if len(key)+len(value) <= 4096 {
			labels[key] = value
		}
	}
	maps.Copy(labels, asked)
	labels[stopSignalLabel] = "SIGTERM"
	if sig := img.config.Config.StopSignal; sig != "" {
		labels[stopSignalLabel] = sig
	}
	return labels
}

func reservedLabel(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	for _, reserved := range []string{"containerd.io", "io.cri-containerd"} {
		if domain == reserved || strings.HasSuffix(domain, "."+reserved) || strings.HasPrefix(domain, reserved+".") {
			return true
		}
	}
	return false
}

// prepareRootfs makes the container's snapshot; the image is unpacked first if
// it is not.
func prepareRootfs(ctx context.Context, cmd *cli.Command, s *session, snapshotter string, req creation, img resolved) ([]*types.Mount, error) {
	labels := labelArgs(cmd.StringSlice("snapshotter-label"))
	maps := idMaps{req.flags.UIDMap, req.flags.GIDMap}
	shift := maps.UIDs != nil && !cmd.Bool("remap-labels")
	if maps.UIDs != nil && !shift {
		labels["containerd.io/snapshot/uidmapping"] = idMapLabel(maps.UIDs)
		labels["containerd.io/snapshot/gidmapping"] = idMapLabel(maps.GIDs)
	}
	prepare := func() (_ []*types.Mount, err error) {
		parent := img.chain()
		if shift {
			if parent, err = maps.remapped(ctx, s, snapshotter, parent); err != nil {
				return nil, err
			}
		}
		resp, err := snapshotsapi.NewSnapshotsClient(s).Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{
			Snapshotter: snapshotter, Key: req.id, Parent: parent, Labels: labels,
		})
		return resp.GetMounts(), err
	}
	mounts, err := prepare()
	if errdefs.IsAlreadyExists(err) {
		// No name stays reserved by a run that came to nothing.
		if releaseAbandoned(ctx, s, snapshotter, req.id) {
			mounts, err = prepare()
		} else {
			err = fmt.Errorf("%w; take another name, or remove what has it ('ctr containers rm %s', 'ctr snapshots rm %s')", err, req.id, req.id)
		}
	}
	if !errdefs.IsNotFound(err) {
		return mounts, err
	}
	if err := unpackImage(ctx, s, snapshotter, img, cmd.Bool("sync-fs")); err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", req.ref, err)
	}
	return prepare()
}

func idMapLabel(maps []specs.LinuxIDMapping) string {
	var parts []string
	for _, m := range maps {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size))
	}
	return strings.Join(parts, ",")
}

func removeSnapshot(ctx context.Context, s *session, snapshotter, key string) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	_, err := snapshotsapi.NewSnapshotsClient(s).Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: key})
	return ignoreNotFound(err)
}

func ignoreExists(err error) error {
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// defaultSnapshotter is the namespace's, or overlayfs.
func defaultSnapshotter(ctx context.Context, s *session) (string, error) {
	return namespaceDefault(ctx, s, "snapshotter", "overlayfs")
}

// namespaceDefault is what the namespace's label names for a kind of thing.
func namespaceDefault(ctx context.Context, s *session, kind, otherwise string) (string, error) {
	resp, err := namespacesapi.NewNamespacesClient(s).Get(ctx, &namespacesapi.GetNamespaceRequest{Name: s.namespace})
	if ignoreNotFound(err) != nil {
		return "", err
	}
	if name := resp.GetNamespace().GetLabels()["containerd.io/defaults/"+kind]; name != "" {
		return name, nil
	}
	return otherwise, nil
}

// runtimeOf is the runtime that the flags name, with its options.
func runtimeOf(cmd *cli.Command) (*containersapi.Container_Runtime, error) {
	name, binary, systemd := cmd.String("runtime"), cmd.String("runc-binary"), cmd.Bool("runc-systemd-cgroup")
	rt := &containersapi.Container_Runtime{Name: name}
	var opts proto.Message
	switch {
	case name == defaultRuntime:
		if systemd && cmd.String("cgroup") == "" {
			return nil, invalid(`--runc-systemd-cgroup needs --cgroup, e.g. "machine.slice:foo:deadbeef"`)
		}
		opts = &options.Options{BinaryName: binary, Root: cmd.String("runc-root"), SystemdCgroup: systemd}
	case binary != "" || systemd:
		return nil, invalid("--runc-binary and --runc-systemd-cgroup are for the runtime %s, not %s", defaultRuntime, name)
	case cmd.String("runtime-config-path") != "":
		opts = &runtimeoptions.Options{ConfigPath: cmd.String("runtime-config-path")}
	default:
		return rt, nil
	}
	var err error
	rt.Options, err = marshalAny(opts)
	return rt, err
}

// marshalAny wraps m under its full name, without the prefix that protobuf's own
// Any has: the form that containerd stores.
func marshalAny(m proto.Message) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}
