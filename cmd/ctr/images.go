package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/image"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:    "images",
		Aliases: []string{"image", "i"},
		Usage:   "Manage images",
		Commands: []*cli.Command{
			{
				Name: "check", Usage: "Check existing images to ensure all content is available locally", ArgsUsage: "[flags] [<filter>, ...]",
				Description: "check existing images to ensure all content is available locally",
				Flags:       []cli.Flag{quietFlag("Print only the ready image refs (fully downloaded and unpacked)"), snapshotterFlag(), formatFlag()},
				Action:      withSession(checkImagesAction),
			},
			{
				Name: "export", Usage: "Export images", ArgsUsage: "[flags] <out> <image> ...",
				Description: "Writes images to an OCI archive that 'docker load' reads, too. The archive is a file, or - for stdout.\n\n" +
					"Example:\n  ctr images export web.tar docker.io/library/nginx:latest",
				Flags: exportFlags(), Action: undoing(withSession(exportAction)),
			},
			{
				Name: "import", Usage: "Import images", ArgsUsage: "[flags] <in>",
				Description: "Reads images from an OCI archive or one of 'docker save'. The archive is a file, or - for stdin.\n" +
					"Names that the archive gives as tags only are put after --base-name.\n\n" +
					"Examples:\n  ctr images import web.tar\n  docker save web | ctr images import -\n" +
					"  ctr images import --base-name example.com/web layout.tar",
				Flags: importFlags(), Action: withSession(importAction),
			},
			{
				Name: "inspect", Aliases: []string{"i"}, Usage: "inspect an image", ArgsUsage: "<image> [flags]", Description: "Inspect an image",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "content", Usage: "Show JSON content"}},
				Action: withSession(inspectImageAction),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "List images known to containerd", ArgsUsage: "[flags] [<filter>, ...]",
				Description: "list images registered with containerd\n\nExamples:\n  ctr images ls 'name~=alpine'\n  ctr images ls --format json",
				Flags:       []cli.Flag{quietFlag("Print only the image refs"), formatFlag()},
				Action:      withSession(listImagesAction),
			},
			{
				Name: "mount", Usage: "Mount an image to a target path", ArgsUsage: "[flags] <ref> [<target>]",
				Description: "Mounts the root filesystem of an image at a directory; 'ctr images unmount' undoes it.",
				Flags: append(registryFlags(), snapshotterFlag(), labelFlag(),
					&cli.BoolFlag{Name: "rw", Usage: "Enable write support on the mount"},
					&cli.StringFlag{Name: "platform", Usage: "Mount the image for the specified platform", Value: platforms.DefaultString()},
					&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
					&cli.DurationFlag{Name: "expiration", Aliases: []string{"x"}, Usage: "Set the expiration time for the mount and snapshots", Value: time.Hour},
				),
				Action: undoing(withSession(mountImageAction)),
			},
			{
				Name: "unmount", Usage: "Unmount the image from the target", ArgsUsage: "[flags] <target>",
				Description: "Undoes 'ctr images mount'.",
				Flags: append(registryFlags(), snapshotterFlag(), labelFlag(),
					&cli.BoolFlag{Name: "rm", Usage: "Remove the snapshot after a successful unmount"}),
				Action: withSession(unmountImageAction),
			},
			{
				Name: "pull", Usage: "Pull an image from a remote", ArgsUsage: "[flags] <ref>",
				Description: "Fetches an image, unpacks it, and stores its name: it is ready to run then.\n\n" +
					"Examples:\n  ctr images pull docker.io/library/alpine:latest\n" +
					"  ctr images pull --plain-http 127.0.0.1:5000/busybox:latest\n" +
					"  ctr images pull --platform linux/arm64 --user me:secret registry.example.com/app:v1",
				Flags: pullFlags(), Action: withSession(pullAction),
			},
			{
				Name: "push", Usage: "Push an image to a remote", ArgsUsage: "[flags] <remote> [<local>]",
				Description: "Sends an image to a registry, under its own name or as <remote>.",
				Flags:       pushFlags(), Action: withSession(pushAction),
			},
			referrersCommand(),
			{
				Name: "prune", Usage: "Remove unused images",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "Remove all unused images, not just dangling ones (if all is not specified no images will be pruned)"}},
				Action: withSession(pruneImagesAction),
			},
			{
				Name: "delete", Aliases: []string{"del", "remove", "rm"}, Usage: "Remove one or more images by reference", ArgsUsage: "[flags] <ref> [<ref>, ...]",
				Description: "remove one or more images by reference",
				Flags:       []cli.Flag{&cli.BoolFlag{Name: "sync", Usage: "Synchronously remove image and all associated resources"}},
				Action:      withSession(removeImagesAction),
			},
			{
				Name: "tag", Usage: "Tag an image", ArgsUsage: "[flags] <source_ref> <target_ref> [<target_ref>, ...]", Description: "Tag an image for use in containerd.",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Usage: "Force target_ref to be created, regardless if it already exists"},
					&cli.BoolFlag{Name: "local", Usage: "Run tag locally rather than through transfer API"},
					&cli.BoolFlag{Name: "skip-reference-check", Usage: "Skip the strict check for reference names"},
				},
				Action: withSession(tagAction),
			},
			{
				Name: "label", Usage: "Set and clear labels for an image", ArgsUsage: "[flags] <name> [<key>=<value>, ...]", Description: "set and clear labels for an image",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "replace-all", Aliases: []string{"r"}, Usage: "Replace all labels"}},
				Action: withSession(labelImageAction),
			},
			convertImageCommand(),
			buildErofsCacheCommand(),
			{
				Name: "usage", Usage: "Display usage of snapshots for a given image ref", ArgsUsage: "[flags] <ref>",
				Flags:  []cli.Flag{snapshotterFlag(), formatFlag()},
				Action: withSession(imageUsageAction),
			},
		},
	}
}

// imageView is an image as lists show it.
type imageView struct {
	Name      string
	Target    ispec.Descriptor
	Size      int64
	Platforms []string
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

func listImages(ctx context.Context, s *session, filters []string) ([]*imagesapi.Image, error) {
	resp, err := imagesapi.NewImagesClient(s).List(ctx, &imagesapi.ListImagesRequest{Filters: filters})
	return resp.GetImages(), err
}

func listImagesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	list, err := listImages(ctx, s, cmd.Args().Slice())
	if err != nil {
		return err
	}
	if cmd.Bool("quiet") {
		return output.Names(list, func(i *imagesapi.Image) string { return i.Name })
	}
	rows := make([]imageView, len(list))
	forAll(len(list), func(i int) {
		img := list[i]
		row := &rows[i]
		*row = imageView{Name: img.Name, Target: wire.DescriptorFromProto(img.Target), Labels: img.Labels, CreatedAt: img.CreatedAt.AsTime(), UpdatedAt: img.UpdatedAt.AsTime()}
		var err error
		if row.Size, err = image.Size(ctx, s.readBlob, row.Target, platforms.Default()); err != nil {
			output.Warn("size of %s: %v", img.Name, err)
		}
		if row.Platforms, err = imagePlatforms(ctx, s, row.Target); err != nil {
			output.Warn("platforms of %s: %v", img.Name, err)
		}
	})
	return output.List(cmd.String("format"), rows, output.Narrow, "REF\tTYPE\tDIGEST\tSIZE\tPLATFORMS\tLABELS\t", func(i imageView) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t", i.Name, i.Target.MediaType, i.Target.Digest, output.Size(i.Size),
			output.Dash(strings.Join(i.Platforms, ",")), output.Dash(output.Labels(i.Labels)))
	})
}

// forAll calls fn for 0 to n-1, several at a time.
func forAll(n int, fn func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(n, 8) {
		wg.Go(func() {
			for i := range next {
				fn(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// imagePlatforms lists the platforms that an image is for, each once.
func imagePlatforms(ctx context.Context, s *session, target ispec.Descriptor) ([]string, error) {
	all, err := image.Platforms(ctx, s.readBlob, target)
	var out []string
	for _, p := range all {
		if p.OS != "" {
			out = append(out, platforms.Format(p))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), err
}

// checkView is what is there of an image.
type checkView struct {
	Name     string
	Target   ispec.Descriptor
	Status   string
	Size     string
	Unpacked bool
	complete bool
}

func checkImagesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	list, err := listImages(ctx, s, cmd.Args().Slice())
	if err != nil || len(list) == 0 {
		return err
	}
	snapshotter, err := chooseSnapshotter(ctx, cmd, s)
	if err != nil {
		return err
	}
	rows, errs := make([]checkView, len(list)), make([]error, len(list))
	forAll(len(list), func(i int) {
		rows[i], errs[i] = checkImage(ctx, s, snapshotter, list[i])
		if errs[i] != nil {
			errs[i] = fmt.Errorf("unable to check %s: %w", list[i].Name, errs[i])
		}
	})
	err = errors.Join(errs...)
	if cmd.Bool("quiet") {
		ready := slices.DeleteFunc(rows, func(r checkView) bool { return !r.complete || !r.Unpacked })
		return errors.Join(err, output.Names(ready, func(r checkView) string { return r.Name }))
	}
	return errors.Join(err, output.List(cmd.String("format"), rows, output.Narrow, "REF\tTYPE\tDIGEST\tSTATUS\tSIZE\tUNPACKED\t", func(r checkView) string {
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%t", r.Name, r.Target.MediaType, r.Target.Digest, r.Status, r.Size, r.Unpacked)
	}))
}

func checkImage(ctx context.Context, s *session, snapshotter string, img *imagesapi.Image) (checkView, error) {
	v := checkView{Name: img.Name, Target: wire.DescriptorFromProto(img.Target), Status: "error", Size: "-"}
	r := resolved{name: img.Name, target: v.Target}
	_, manifest, err := image.Manifest(ctx, s.readBlob, r.target, platforms.Default())
	if errdefs.IsNotFound(err) {
		v.Status, v.Size = "unavailable (0/?)", output.Size(0)+"/?"
		return v, nil
	}
	if err != nil {
		return v, err
	}
	required := append([]ispec.Descriptor{manifest.Config}, manifest.Layers...)
	var want, have int64
	present := 0
	for _, d := range required {
		want += d.Size
		_, err := contentapi.NewContentClient(s).Info(ctx, &contentapi.InfoRequest{Digest: d.Digest.String()})
		if err == nil {
			present, have = present+1, have+d.Size
		} else if !errdefs.IsNotFound(err) {
			return v, err
		}
	}
	v.complete = present == len(required)
	v.Status = "complete"
	if !v.complete {
		v.Status = "incomplete"
	}
	v.Status += fmt.Sprintf(" (%d/%d)", present, len(required))
	v.Size = output.Size(have) + "/" + output.Size(want)
	if err := r.read(ctx, s, platforms.Default()); err != nil {
		return v, ignoreNotFound(err)
	}
	v.Unpacked, err = isUnpacked(ctx, s, snapshotter, r)
	return v, err
}

func isUnpacked(ctx context.Context, s *session, snapshotter string, img resolved) (bool, error) {
	if img.chain() == "" {
		return true, nil
	}
	_, err := snapshotsapi.NewSnapshotsClient(s).Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: img.chain()})
	return err == nil, ignoreNotFound(err)
}

// usageView is what a snapshot takes.
type usageView struct {
	Key    string
	Size   int64
	Inodes int64
}

func imageUsageAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image reference"); err != nil {
		return err
	}
	ref := cmd.Args().First()
	snapshotter, err := chooseSnapshotter(ctx, cmd, s)
	if err != nil {
		return err
	}
	img, err := resolveImage(ctx, s, ref, "")
	if err != nil {
		return err
	}
	chain := image.ChainIDs(img.config.RootFS.DiffIDs)
	rows := make([]usageView, len(chain))
	var g errgroup.Group
	for i, id := range chain {
		row := &rows[len(chain)-1-i] // the uppermost first
		g.Go(func() error {
			resp, err := snapshotsapi.NewSnapshotsClient(s).Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: snapshotter, Key: id.String()})
			if errdefs.IsNotFound(err) {
				return fmt.Errorf("image %s is not unpacked in snapshotter %s: %w", ref, snapshotter, err)
			}
			*row = usageView{Key: id.String(), Size: resp.GetSize(), Inodes: resp.GetInodes()}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return output.List(cmd.String("format"), rows, output.Narrow, "KEY\tSIZE\tINODES\t", func(u usageView) string {
		return fmt.Sprintf("%s\t%s\t%d\t", u.Key, output.Size(u.Size), u.Inodes)
	})
}

func removeImagesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if !anyArgs(cmd, "image reference") {
		return nil
	}
	refs := cmd.Args().Slice()
	last := len(refs) - 1
	return forEach(refs, "unable to delete", func(ref string) error {
		sync := cmd.Bool("sync") && ref == refs[last]
		_, err := imagesapi.NewImagesClient(s).Delete(ctx, &imagesapi.DeleteImageRequest{Name: ref, Sync: sync})
		switch {
		case errdefs.IsNotFound(err): // Compat: not a failure
			output.Warn("%s: image not found", ref)
			return nil
		case err == nil:
			output.Line("%s", ref)
		}
		return err
	})
}

func pruneImagesAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if !cmd.Bool("all") {
		output.Warn("nothing is pruned without --all, which removes every image that no container uses")
		return nil
	}
	list, err := listImages(ctx, s, nil)
	if err != nil {
		return err
	}
	containers, err := listContainers(ctx, s)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range containers {
		used[c.Image] = true
	}
	list = slices.DeleteFunc(list, func(i *imagesapi.Image) bool { return used[i.Name] })
	for i, img := range list {
		// The last one waits for the collector.
		_, err := imagesapi.NewImagesClient(s).Delete(ctx, &imagesapi.DeleteImageRequest{Name: img.Name, Sync: i == len(list)-1})
		if ignoreNotFound(err) != nil {
			output.Warn("unable to delete %s: %v", img.Name, err)
		} else if err == nil {
			fmt.Fprintf(os.Stderr, "deleted image: %s\n", img.Name)
		}
	}
	return nil
}

func tagAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "the image to tag", "its new reference"); err != nil {
		return err
	}
	source, targets := cmd.Args().First(), cmd.Args().Tail()
	if !cmd.Bool("skip-reference-check") {
		for _, t := range targets {
			if _, err := image.ParseDockerName(t); err != nil && digest.Digest(t).Validate() != nil && digest.Digest("sha256:"+t).Validate() != nil {
				return invalid("%v; --skip-reference-check takes it all the same", err)
			}
		}
	}
	for _, t := range targets {
		var err error
		if cmd.Bool("local") {
			err = tagLocally(ctx, cmd, s, source, t)
		} else {
			err = s.transfer(ctx, &transfer.ImageStore{Name: source}, &transfer.ImageStore{Name: t}, nil)
		}
		if err != nil {
			return err
		}
		output.Line("%s", t)
	}
	return nil
}

func tagLocally(ctx context.Context, cmd *cli.Command, s *session, source, target string) error {
	images := imagesapi.NewImagesClient(s)
	resp, err := images.Get(ctx, &imagesapi.GetImageRequest{Name: source})
	if err != nil {
		return err
	}
	img := &imagesapi.Image{Name: target, Labels: resp.Image.Labels, Target: resp.Image.Target}
	_, err = images.Create(ctx, &imagesapi.CreateImageRequest{Image: img})
	if errdefs.IsAlreadyExists(err) && cmd.Bool("force") {
		// In one step: the name is never without an image.
		_, err = images.Update(ctx, &imagesapi.UpdateImageRequest{Image: img, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target", "labels"}}})
	}
	return err
}

func labelImageAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image reference"); err != nil {
		return err
	}
	labels := labelArgs(cmd.Args().Tail())
	var paths []string
	for key := range labels {
		paths = append(paths, "labels."+key)
	}
	if cmd.Bool("replace-all") && len(paths) > 0 {
		paths = []string{"labels"}
	}
	resp, err := imagesapi.NewImagesClient(s).Update(ctx, &imagesapi.UpdateImageRequest{
		// containerd crashes on an update without a target, needed or not.
		Image: &imagesapi.Image{Name: cmd.Args().First(), Labels: labels, Target: &types.Descriptor{}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths},
	})
	if err != nil {
		return err
	}
	output.Line("%s", output.Labels(resp.Image.Labels))
	return nil
}
