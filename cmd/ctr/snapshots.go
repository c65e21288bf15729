package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/wire"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func snapshotsCommand() *cli.Command {
	makeFlags := func() []cli.Flag {
		return []cli.Flag{
			&cli.StringFlag{Name: "target", Aliases: []string{"t"}, Usage: "Mount target path, will print mount, if provided"},
			&cli.BoolFlag{Name: "mounts", Usage: "Print out snapshot mounts as JSON"},
		}
	}
	return &cli.Command{
		Name:    "snapshots",
		Aliases: []string{"snapshot"},
		Usage:   "Manage snapshots",
		Flags:   []cli.Flag{snapshotterFlag()},
		Commands: []*cli.Command{
			{Name: "commit", Usage: "Commit an active snapshot into the provided name", ArgsUsage: "<key> <active>", Action: withSnapshots(commitSnapshot)},
			{
				Name: "diff", Usage: "Get the diff of two snapshots. the default second snapshot is the first snapshot's parent.", ArgsUsage: "[flags] <idA> [<idB>]",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "media-type", Usage: "Media type to use for creating diff", Value: ispec.MediaTypeImageLayerGzip},
					&cli.StringFlag{Name: "ref", Usage: "Content upload reference to use"},
					&cli.BoolFlag{Name: "keep", Usage: "Keep diff content. up to creator to delete it."},
					labelFlag(),
				},
				Action: undoing(withSnapshots(diffSnapshots)),
			},
			{Name: "info", Usage: "Get info about a snapshot", ArgsUsage: "<key>", Flags: []cli.Flag{formatFlag()}, Action: withSnapshots(snapshotInfo)},
			{Name: "list", Aliases: []string{"ls"}, Usage: "List snapshots", Flags: []cli.Flag{formatFlag()}, Action: withSnapshots(listSnapshots)},
			{
				Name: "mounts", Aliases: []string{"m", "mount"}, Usage: "Mount gets mount commands for the snapshots", ArgsUsage: "<target> <key>",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "temp", Usage: "Mounts the snapshot mounts as a temp mount and returns a bind mount"}},
				Action: withSnapshots(printSnapshotMounts),
			},
			{Name: "prepare", Usage: "Prepare a snapshot from a committed snapshot", ArgsUsage: "[flags] <key> [<parent>]", Flags: makeFlags(), Action: withSnapshots(prepareSnapshot)},
			{Name: "delete", Aliases: []string{"del", "remove", "rm"}, Usage: "Remove snapshots", ArgsUsage: "<key> [<key>, ...]", Action: withSnapshots(removeSnapshots)},
			{Name: "label", Usage: "Add labels to content", ArgsUsage: "<name> [<label>=<value> ...]", Description: "labels snapshots in the snapshotter", Action: withSnapshots(labelSnapshot)},
			{Name: "tree", Usage: "Display tree view of snapshot branches", Action: withSnapshots(snapshotTree)},
			{
				Name: "unpack", Usage: "Unpack applies layers from a manifest to a snapshot", ArgsUsage: "[flags] <digest>",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
					snapshotterFlag(),
				},
				Action: undoing(withSnapshots(unpackByDigest)),
			},
			{
				Name: "usage", Usage: "Usage snapshots", ArgsUsage: "[flags] [<key>, ...]",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "b", Usage: "Display size in bytes"}, formatFlag()},
				Action: withSnapshots(snapshotUsage),
			},
			{Name: "view", Usage: "Create a read-only snapshot from a committed snapshot", ArgsUsage: "[flags] <key> [<parent>]", Flags: makeFlags(), Action: withSnapshots(viewSnapshot)},
		},
	}
}

// snapshotter is the service and the name of one snapshotter.
type snapshotter struct {
	snapshotsapi.SnapshotsClient
	s    *session
	name string
}

func newSnapshotter(s *session, name string) snapshotter {
	return snapshotter{snapshotsapi.NewSnapshotsClient(s), s, name}
}

func withSnapshots(fn func(ctx context.Context, cmd *cli.Command, sn snapshotter) error) cli.ActionFunc {
	return withSession(func(ctx context.Context, cmd *cli.Command, s *session) error {
		name, err := chooseSnapshotter(ctx, cmd, s)
		if err != nil {
			return err
		}
		return fn(ctx, cmd, newSnapshotter(s, name))
	})
}

// snapshotView is a snapshot as info and --format show it.
type snapshotView struct {
	Kind    string
	Name    string
	Parent  string            `json:",omitempty"`
	Labels  map[string]string `json:",omitempty"`
	Created time.Time
	Updated time.Time
}

func viewSnapshotInfo(i *snapshotsapi.Info) snapshotView {
	kind := "Unknown"
	switch i.Kind {
	case snapshotsapi.Kind_VIEW:
		kind = "View"
	case snapshotsapi.Kind_ACTIVE:
		kind = "Active"
	case snapshotsapi.Kind_COMMITTED:
		kind = "Committed"
	}
	return snapshotView{Kind: kind, Name: i.Name, Parent: i.Parent, Labels: i.Labels, Created: i.CreatedAt.AsTime(), Updated: i.UpdatedAt.AsTime()}
}

func (sn snapshotter) list(ctx context.Context) ([]snapshotView, error) {
	stream, err := sn.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: sn.name})
	if err != nil {
		return nil, err
	}
	var out []snapshotView
	err = receive(stream.Recv, func(resp *snapshotsapi.ListSnapshotsResponse) error {
		for _, i := range resp.Info {
			out = append(out, viewSnapshotInfo(i))
		}
		return nil
	})
	return out, err
}

func listSnapshots(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	rows, err := sn.list(ctx)
	if err != nil {
		return err
	}
	return output.List(cmd.String("format"), rows, output.Narrow, "KEY\tPARENT\tKIND\t", func(v snapshotView) string {
		return fmt.Sprintf("%s\t%s\t%s\t", v.Name, v.Parent, v.Kind)
	})
}

func (sn snapshotter) stat(ctx context.Context, key string) (snapshotView, error) {
	resp, err := sn.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: sn.name, Key: key})
	if err != nil {
		return snapshotView{}, err
	}
	return viewSnapshotInfo(resp.Info), nil
}

func snapshotInfo(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a snapshot key"); err != nil {
		return err
	}
	v, err := sn.stat(ctx, cmd.Args().First())
	if err != nil {
		return err
	}
	return output.One(cmd.String("format"), v)
}

// keptLabel keeps a snapshot that nothing refers to.
func keptLabel() map[string]string {
	return map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)}
}

func prepareSnapshot(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a snapshot key"); err != nil {
		return err
	}
	resp, err := sn.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{
		Snapshotter: sn.name, Key: cmd.Args().First(), Parent: cmd.Args().Get(1), Labels: keptLabel(),
	})
	if err != nil {
		return err
	}
	return showMounts(cmd, resp.Mounts)
}

func viewSnapshot(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a snapshot key"); err != nil {
		return err
	}
	// Differs from containerd, whose views go with the next garbage collection.
	resp, err := sn.View(ctx, &snapshotsapi.ViewSnapshotRequest{
		Snapshotter: sn.name, Key: cmd.Args().First(), Parent: cmd.Args().Get(1), Labels: keptLabel(),
	})
	if err != nil {
		return err
	}
	return showMounts(cmd, resp.Mounts)
}

func showMounts(cmd *cli.Command, mounts []*types.Mount) error {
	if target := cmd.String("target"); target != "" {
		printMounts(target, mounts)
	}
	if cmd.Bool("mounts") {
		return output.JSON(wire.MountsFromProto(mounts))
	}
	return nil
}

// printMounts prints commands for a shell.
func printMounts(target string, mounts []*types.Mount) {
	for _, m := range mounts {
		output.Line("mount -t %s %s %s -o %s", m.Type, m.Source, target, strings.Join(m.Options, ","))
	}
}

func printSnapshotMounts(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "the directory to mount at", "a snapshot key"); err != nil {
		return err
	}
	target, key := cmd.Args().First(), cmd.Args().Get(1)
	resp, err := sn.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: sn.name, Key: key})
	if err != nil {
		return err
	}
	mounts := resp.Mounts
	// Mounts that the kernel does not know by itself are prepared by the daemon; it
	// says when there is nothing to prepare. Compat: the name of the activation.
	active, err := mountsapi.NewMountsClient(sn.s).Activate(ctx, &mountsapi.ActivateRequest{
		Name: "ctr" + key, Mounts: mounts, Temporary: cmd.Bool("temp"),
	})
	switch {
	case err == nil:
		mounts = active.Info.System
	case !errdefs.IsNotImplemented(err):
		return fmt.Errorf("activating the mounts of %s: %w", key, err)
	case cmd.Bool("temp"):
		return fmt.Errorf("--temp: the daemon does not mount snapshots of %s by itself: %w", sn.name, err)
	}
	printMounts(target, mounts)
	return nil
}

func commitSnapshot(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a name", "the key of an active snapshot"); err != nil {
		return err
	}
	_, err := sn.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{
		Snapshotter: sn.name, Name: cmd.Args().First(), Key: cmd.Args().Get(1), Labels: keptLabel(),
	})
	return err
}

func removeSnapshots(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if !anyArgs(cmd, "snapshot key") {
		return nil
	}
	for _, key := range cmd.Args().Slice() {
		if _, err := sn.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: sn.name, Key: key}); err != nil {
			return fmt.Errorf("failed to remove %q: %w", key, err)
		}
	}
	return nil
}

func labelSnapshot(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a snapshot key"); err != nil {
		return err
	}
	key, labels := cmd.Args().First(), labelArgs(cmd.Args().Tail())
	v, err := sn.stat(ctx, key)
	if len(labels) > 0 {
		set, paths := labelChanges(labels)
		var resp *snapshotsapi.UpdateSnapshotResponse
		resp, err = sn.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{
			Snapshotter: sn.name, Info: &snapshotsapi.Info{Name: key, Labels: set}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
		})
		if err == nil {
			v = viewSnapshotInfo(resp.Info)
		}
	}
	if err != nil {
		return err
	}
	output.Line("%s", output.Labels(v.Labels))
	return nil
}

// labelChanges are the labels to set and the paths of all that change: an empty
// value removes.
func labelChanges(labels map[string]string) (set map[string]string, paths []string) {
	set = map[string]string{}
	for key, value := range labels {
		paths = append(paths, "labels."+key)
		if value != "" {
			set[key] = value
		}
	}
	return set, paths
}

func snapshotTree(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	list, err := sn.list(ctx)
	if err != nil {
		return err
	}
	children, known := map[string][]string{}, map[string]bool{}
	for _, v := range list {
		children[v.Parent] = append(children[v.Parent], v.Name)
		known[v.Name] = true
	}
	var show func(name string, level int)
	show = func(name string, level int) {
		branch := strings.Repeat("  ", level)
		if level > 0 {
			branch += `\_`
		}
		output.Line("%s %s", branch, name)
		for _, c := range children[name] {
			show(c, level+1)
		}
	}
	for _, v := range list {
		if v.Parent == "" || !known[v.Parent] {
			show(v.Name, 0)
		}
	}
	return nil
}

func snapshotUsage(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	keys := cmd.Args().Slice()
	if len(keys) == 0 {
		list, err := sn.list(ctx)
		if err != nil {
			return err
		}
		for _, v := range list {
			keys = append(keys, v.Name)
		}
	}
	rows, errs := make([]usageView, len(keys)), make([]error, len(keys))
	forAll(len(keys), func(i int) {
		var resp *snapshotsapi.UsageResponse
		resp, errs[i] = sn.Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: sn.name, Key: keys[i]})
		rows[i] = usageView{Key: keys[i], Size: resp.GetSize(), Inodes: resp.GetInodes()}
	})
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	size := output.Size
	if cmd.Bool("b") {
		size = func(n int64) string { return strconv.FormatInt(n, 10) }
	}
	return output.List(cmd.String("format"), rows, output.Narrow, "KEY\tSIZE\tINODES\t", func(u usageView) string {
		return fmt.Sprintf("%s\t%s\t%d\t", u.Key, size(u.Size), u.Inodes)
	})
}

func unpackByDigest(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "the digest of an image"); err != nil {
		return err
	}
	dgst, err := digest.Parse(cmd.Args().First())
	if err != nil {
		return invalid("%q is not a digest such as sha256:…: %v", cmd.Args().First(), err)
	}
	list, err := listImages(ctx, sn.s, nil)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(i *imagesapi.Image) bool { return i.Target.GetDigest() == dgst.String() })
	if i < 0 {
		return fmt.Errorf("no image has the digest %s; 'ctr images ls' shows those that there are", dgst)
	}
	lease := leaseID()
	if err := createLease(ctx, sn.s, lease); err != nil {
		return err
	}
	defer sn.s.later(ctx, func(ctx context.Context) error { return deleteLease(ctx, sn.s, lease, false) })
	ctx = withLease(ctx, lease)
	img := resolved{name: list[i].Name, target: wire.DescriptorFromProto(list[i].Target)}
	if err := img.read(ctx, sn.s, platforms.Default()); err != nil {
		return err
	}
	fmt.Printf("unpacking %s (%s)...", dgst, img.target.MediaType)
	if err := unpackImage(ctx, sn.s, sn.name, img, cmd.Bool("sync-fs")); err != nil {
		fmt.Println()
		return err
	}
	fmt.Println("done")
	return nil
}

func diffSnapshots(ctx context.Context, cmd *cli.Command, sn snapshotter) error {
	if err := needArgs(cmd, "a snapshot key"); err != nil {
		return err
	}
	a, b := cmd.Args().First(), cmd.Args().Get(1)
	lease := leaseID()
	if err := createLease(ctx, sn.s, lease); err != nil {
		return err
	}
	defer sn.s.later(ctx, func(ctx context.Context) error { return deleteLease(ctx, sn.s, lease, false) })
	ctx = withLease(ctx, lease)
	upper, err := sn.readable(ctx, a)
	if err != nil {
		return err
	}
	defer upper.remove()
	lower := readable{}
	// Compat: given two, the diff leads from the first to the second.
	if b == "" {
		if upper.info.Parent != "" {
			if lower, err = sn.readable(ctx, upper.info.Parent); err != nil {
				return err
			}
			defer lower.remove()
		}
	} else {
		lower = upper
		if upper, err = sn.readable(ctx, b); err != nil {
			return err
		}
		defer upper.remove()
	}
	labels := labelArgs(cmd.StringSlice("label"))
	if cmd.Bool("keep") {
		for key, value := range keptLabel() {
			labels[key] = value
		}
	}
	resp, err := diffapi.NewDiffClient(sn.s).Diff(ctx, &diffapi.DiffRequest{
		Left: lower.mounts, Right: upper.mounts, MediaType: cmd.String("media-type"), Ref: cmd.String("ref"), Labels: labels,
	})
	if err != nil {
		return err
	}
	return sn.s.streamBlob(ctx, wire.DescriptorFromProto(resp.Diff), func(b []byte) error {
		_, err := os.Stdout.Write(b)
		return err
	})
}

// readable is a snapshot that can be mounted; remove takes back the view that was
// made for that.
type readable struct {
	info   snapshotView
	mounts []*types.Mount
	remove func()
}

func (sn snapshotter) readable(ctx context.Context, key string) (r readable, err error) {
	if r.info, err = sn.stat(ctx, key); err != nil {
		return r, err
	}
	r.remove = func() {}
	if r.info.Kind != "Committed" {
		resp, err := sn.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: sn.name, Key: key})
		r.mounts = resp.GetMounts()
		return r, err
	}
	view := "diff-" + uuid.NewString()
	resp, err := sn.View(ctx, &snapshotsapi.ViewSnapshotRequest{Snapshotter: sn.name, Key: view, Parent: key})
	r.mounts = resp.GetMounts()
	r.remove = func() { removeSnapshot(ctx, sn.s, sn.name, view) }
	return r, err
}
