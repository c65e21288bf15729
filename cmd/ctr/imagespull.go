package main

import (
	"context"
	"os"

	"berth/internal/wire"

	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func pullFlags() []cli.Flag {
	return append(registryFlags(), snapshotterFlag(), labelFlag(),
		&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Pull content and metadata from all platforms"},
		&cli.BoolFlag{Name: "all-metadata", Usage: "(Deprecated: use skip-metadata) Pull metadata for all platforms", Hidden: true},
		&cli.BoolFlag{Name: "skip-metadata", Usage: "Skips metadata for unused platforms (Image may be unable to be pushed without metadata)"},
		&cli.BoolFlag{Name: "print-chainid", Usage: "Print the resulting image's chain ID"},
		&cli.IntFlag{Name: "max-concurrent-downloads", Usage: "Set the max concurrent downloads for each pull"},
		&cli.BoolFlag{Name: "local", Usage: "Fetch content from local client rather than using transfer service"},
		&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
	)
}

// pullPlatforms are those of the flags, this host's when nothing is said, none
// for all.
func pullPlatforms(cmd *cli.Command) ([]ispec.Platform, error) {
	ps, err := platformArgs(cmd.StringSlice("platform"))
	switch {
	case err != nil:
		return nil, err
	case !cmd.Bool("all-platforms") && len(ps) == 0:
		return []ispec.Platform{platforms.DefaultSpec()}, nil
	case cmd.Bool("all-platforms") && len(ps) > 0:
		return nil, invalid("--platform and --all-platforms cannot be used together")
	}
	return ps, nil
}

func pullAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "max-concurrent-downloads", "skip-verify", "tlscacert", "tlscert", "tlskey"); err != nil {
		return err
	}
	ref := cmd.Args().First()
	ps, err := pullPlatforms(cmd)
	if err != nil {
		return err
	}
	if cmd.Bool("local") {
		err = s.pullLocally(ctx, cmd, ps, true)
	} else {
		err = s.pull(ctx, cmd, ref, ps)
	}
	if err != nil || !cmd.Bool("print-chainid") {
		return err
	}
	return s.printChains(ctx, ref, ps)
}

// pull has the daemon fetch and unpack an image.
func (s *session) pull(ctx context.Context, cmd *cli.Command, ref string, ps []ispec.Platform) error {
	source, err := s.registry(ctx, cmd, ref)
	if err != nil {
		return err
	}
	store := &transfer.ImageStore{
		Name: ref, Labels: labelArgs(cmd.StringSlice("label")),
		Platforms: platformsToProto(ps), AllMetadata: !cmd.Bool("skip-metadata"),
	}
	for _, p := range ps {
		store.Unpacks = append(store.Unpacks, &transfer.UnpackConfiguration{Platform: wire.PlatformToProto(p), Snapshotter: cmd.String("snapshotter")})
	}
	return s.transfer(ctx, source, store, os.Stdout)
}

func pushFlags() []cli.Flag {
	return append(registryFlags(),
		&cli.StringFlag{Name: "manifest", Usage: "Digest of manifest"},
		&cli.StringFlag{Name: "manifest-type", Usage: "Media type of manifest digest", Value: ispec.MediaTypeImageManifest},
		&cli.StringSliceFlag{Name: "platform", Usage: "Push content from a specific platform"},
		&cli.IntFlag{Name: "max-concurrent-uploaded-layers", Usage: "Set the max concurrent uploaded layers for each push"},
		&cli.BoolFlag{Name: "local", Usage: "Push content from local client rather than using transfer service"},
		&cli.BoolFlag{Name: "allow-non-distributable-blobs", Usage: "Allow pushing blobs that are marked as non-distributable"},
	)
}

func pushAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "manifest", "manifest-type", "max-concurrent-uploaded-layers", "allow-non-distributable-blobs",
		"skip-verify", "tlscacert", "tlscert", "tlskey"); err != nil {
		return err
	}
	ref, local := cmd.Args().First(), cmd.Args().Get(1)
	if local == "" {
		local = ref
	}
	ps, err := platformArgs(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	if cmd.Bool("local") {
		return s.pushLocally(ctx, cmd, ref, local, ps)
	}
	destination, err := s.registry(ctx, cmd, ref)
	if err != nil {
		return err
	}
	return s.transfer(ctx, &transfer.ImageStore{Name: local, Platforms: platformsToProto(ps)}, destination, os.Stdout)
}
