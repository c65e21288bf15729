package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"berth/cmd/ctr/output"
	"berth/cmd/ctr/progress"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/remote"
	"berth/internal/snapshot"
	"berth/internal/transfer"
	"berth/internal/wire"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	progressapi "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/connectivity"
)

// locally runs a transfer in ctr itself, over the daemon's stores and, where it
// unpacks, into the snapshotter sn, and shows its progress on out. Ctrl-C ends it
// as an error does: what was unfinished is taken back, and the lease goes.
func (s *session) locally(ctx context.Context, cmd *cli.Command, sn remote.Snapshotter, out *os.File, fn func(context.Context, *transfer.Service, transfer.ProgressFunc) error) error {
	return undoing(func(ctx context.Context, cmd *cli.Command) error { return s.transferLocally(ctx, cmd, sn, out, fn) })(ctx, cmd)
}

func (s *session) transferLocally(ctx context.Context, cmd *cli.Command, sn remote.Snapshotter, out *os.File, fn func(context.Context, *transfer.Service, transfer.ProgressFunc) error) (err error) {
	engine := transfer.New(transfer.Options{
		Scope: s.remoteStores(sn), MaxDownloads: cmd.Int("max-concurrent-downloads"), MaxUploads: cmd.Int("max-concurrent-uploaded-layers"), SyncFS: cmd.Bool("sync-fs"), TempDir: os.TempDir(),
	})
	display := progress.New(out)
	defer func() { display.Close(err != nil) }()
	err = fn(ctx, engine, func(p transfer.Progress) {
		m := &progressapi.Progress{Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total}
		if p.Desc != nil {
			m.Desc = wire.DescriptorToProto(*p.Desc)
		}
		display.Update(m)
	})
	if errdefs.IsUnavailable(err) && s.GetState() != connectivity.Ready {
		return fmt.Errorf("%w; begin again when it is back", err)
	}
	return err
}

// remoteStores are the daemon's stores, as the engine wants them.
func (s *session) remoteStores(sn remote.Snapshotter) transfer.Scope {
	return func(namespace, lease string) transfer.Stores {
		conn := remote.Scope(s, namespace, lease)
		return transfer.Stores{
			Namespace: namespace, Images: remote.NewImages(conn), Leases: remote.NewLeases(conn),
			Content: remote.NewContent(conn), Applier: remote.NewDiff(conn),
			Snapshotter: func(string) (snapshot.Backend, error) { return remote.NewSnapshots(conn, sn), nil },
		}
	}
}

// unpackInto asks the daemon about the snapshotter that the flags or the
// namespace name, when there is something to unpack.
func (s *session) unpackInto(ctx context.Context, cmd *cli.Command, unpack bool) (remote.Snapshotter, error) {
	if !unpack {
		return remote.Snapshotter{}, nil
	}
	name, err := chooseSnapshotter(ctx, cmd, s)
	if err != nil {
		return remote.Snapshotter{}, err
	}
	resp, err := introspectionapi.NewIntrospectionClient(s).Plugins(ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==io.containerd.snapshotter.v1,id==" + name},
	})
	if err != nil {
		return remote.Snapshotter{}, err
	}
	for _, p := range resp.Plugins {
		if p.InitErr == nil {
			return remote.Snapshotter{Name: name, Capabilities: p.Capabilities, Root: p.Exports["root"]}, nil
		}
		err = fmt.Errorf(": %s", p.InitErr.Message)
	}
	if err == nil {
		err = errors.New("; 'ctr plugins ls type==io.containerd.snapshotter.v1' lists them")
	}
	return remote.Snapshotter{}, fmt.Errorf("the daemon has no snapshotter %q%w", name, err)
}

// pullLocally fetches an image for the platforms, all when there is none, and
// unpacks it if asked for.
func (s *session) pullLocally(ctx context.Context, cmd *cli.Command, ps []ispec.Platform, unpack bool) error {
	ref := cmd.Args().First()
	from, err := openRemote(cmd, ref)
	if err != nil {
		return err
	}
	to := transfer.ImageTarget{
		Name: ref, Labels: labelArgs(cmd.StringSlice("label")), Platforms: ps,
		AllMetadata: !cmd.Bool("skip-metadata"), MetadataOnly: cmd.Bool("metadata-only"),
	}
	if to.MetadataOnly {
		to.Platforms = nil
	}
	sn, err := s.unpackInto(ctx, cmd, unpack)
	if err != nil {
		return err
	}
	for _, p := range ps {
		if unpack {
			to.Unpacks = append(to.Unpacks, transfer.UnpackTarget{Platform: p, Snapshotter: sn.Name})
		}
	}
	return s.locally(ctx, cmd, sn, os.Stdout, func(ctx context.Context, engine *transfer.Service, report transfer.ProgressFunc) error {
		img, err := engine.Pull(ctx, s.namespace, "", from, to, report)
		if err != nil || !unpack || len(ps) > 0 {
			return err
		}
		// Only now is it known for which platforms the image is.
		names, err := imagePlatforms(ctx, s, img.Target)
		if err != nil {
			return err
		}
		for _, name := range names {
			p, err := platforms.Parse(name)
			if err != nil {
				return err
			}
			if err := engine.Unpack(ctx, s.namespace, "", img, transfer.UnpackTarget{Platform: p, Snapshotter: sn.Name}, report); err != nil {
				return err
			}
		}
		return nil
	})
}

// pushLocally sends the image local, or what --manifest names, as ref.
func (s *session) pushLocally(ctx context.Context, cmd *cli.Command, ref, local string, ps []ispec.Platform) error {
	to, err := openRemote(cmd, ref)
	if err != nil {
		return err
	}
	defer to.Close()
	conn := remote.Scope(s, s.namespace, "")
	opts := transfer.PushOptions{Platforms: ps, NonDistributable: cmd.Bool("allow-non-distributable-blobs")}
	var img object.Image
	if manifest := cmd.String("manifest"); manifest != "" {
		d, err := parseDigest(manifest)
		if err != nil {
			return err
		}
		info, err := remote.NewContent(conn).Info(ctx, d)
		if err != nil {
			return err
		}
		img = object.Image{Name: ref, Target: ispec.Descriptor{MediaType: cmd.String("manifest-type"), Digest: d, Size: info.Size}}
	} else {
		if img, err = remote.NewImages(conn).Get(ctx, local); err != nil {
			return err
		}
		if len(ps) == 1 {
			// Compat: one platform of an index is sent as if it were the image.
			if img.Target, err = s.manifestFor(ctx, img.Target, ps[0]); err != nil {
				return err
			}
		}
	}
	return s.locally(ctx, cmd, remote.Snapshotter{}, os.Stdout, func(ctx context.Context, engine *transfer.Service, report transfer.ProgressFunc) error {
		return engine.PushTarget(ctx, s.namespace, "", img, opts, to, report)
	})
}

// manifestFor is the manifest of an index for a platform; the target itself when
// it is no index, or has none for it.
func (s *session) manifestFor(ctx context.Context, target ispec.Descriptor, p ispec.Platform) (ispec.Descriptor, error) {
	if !image.IsIndex(target.MediaType) {
		return target, nil
	}
	children, err := image.Children(ctx, s.readBlob, target)
	if err != nil {
		return target, err
	}
	match := platforms.NewMatcher(p)
	for _, m := range children {
		if m.Platform == nil || !match.Match(*m.Platform) {
			continue
		}
		if _, err := image.Children(ctx, s.readBlob, m); err != nil {
			return target, fmt.Errorf("the manifest for %s: %w", platforms.Format(p), err)
		}
		return m, nil
	}
	return target, nil
}

// importLocally reads an archive for one platform, or all.
func (s *session) importLocally(ctx context.Context, cmd *cli.Command, in io.Reader, p ispec.Platform) error {
	digests, skip, unpack := cmd.Bool("digests"), cmd.Bool("skip-digest-for-named"), !cmd.Bool("no-unpack")
	discard := cmd.Bool("discard-unpacked-layers")
	switch {
	case skip && !digests:
		return invalid("--skip-digest-for-named needs --digests")
	case discard && !unpack:
		return invalid("--discard-unpacked-layers and --no-unpack cannot be used together")
	}
	name := transfer.Reference{Name: cmd.String("base-name"), IsPrefix: true, AddDigest: digests, SkipNamedDigest: skip}
	if name.Name == "" {
		name.Name, name.AllowOverwrite = "import-"+time.Now().Format("2006-01-02"), true
	}
	sn, err := s.unpackInto(ctx, cmd, unpack)
	if err != nil {
		return err
	}
	to := transfer.ImageTarget{
		Name: cmd.String("index-name"), Labels: labelArgs(cmd.StringSlice("label")), ExtraReferences: []transfer.Reference{name},
	}
	if !cmd.Bool("all-platforms") {
		to.Platforms = []ispec.Platform{p}
	}
	if unpack {
		to.Unpacks = []transfer.UnpackTarget{{Platform: p, Snapshotter: sn.Name}}
	}
	return s.locally(ctx, cmd, sn, os.Stdout, func(ctx context.Context, engine *transfer.Service, report transfer.ProgressFunc) error {
		_, err := engine.Import(ctx, s.namespace, "", in, transfer.ImportOptions{ForceCompress: cmd.Bool("compress-blobs"), DiscardLayers: discard}, to, report)
		return err
	})
}

// exportLocally writes images to out.
func (s *session) exportLocally(ctx context.Context, cmd *cli.Command, out io.Writer, shown *os.File, ps []ispec.Platform) error {
	return s.locally(ctx, cmd, remote.Snapshotter{}, shown, func(ctx context.Context, engine *transfer.Service, report transfer.ProgressFunc) error {
		return engine.Export(ctx, s.namespace, cmd.Args().Tail(), out, transfer.ExportOptions{
			Platforms: ps, AllPlatforms: cmd.Bool("all-platforms"),
			SkipDockerManifest: cmd.Bool("skip-manifest-json"), SkipNonDistributable: cmd.Bool("skip-non-distributable"),
		}, report)
	})
}

// printChains prints the chain ID of an image for each platform, all that it is
// for when there is none.
func (s *session) printChains(ctx context.Context, ref string, ps []ispec.Platform) error {
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = platforms.FormatAll(p)
	}
	if len(names) == 0 {
		img, err := remote.NewImages(s).Get(ctx, ref)
		if err != nil {
			return err
		}
		if names, err = imagePlatforms(ctx, s, img.Target); err != nil {
			return err
		}
	}
	for _, name := range names {
		img, err := resolveImage(ctx, s, ref, name)
		if errdefs.IsNotFound(err) && len(ps) == 0 {
			continue // of this platform there is no more than the manifest
		}
		if err != nil {
			return err
		}
		output.Line("image chain ID: %s", img.chain())
	}
	return nil
}
