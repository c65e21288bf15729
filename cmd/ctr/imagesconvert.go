package main

import (
	"context"
	"os"
	"strings"

	"berth/cmd/ctr/output"
	"berth/internal/archive"
	"berth/internal/remote"
	"berth/internal/transfer"

	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func convertImageCommand() *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "Convert an image", ArgsUsage: "[flags] <source_ref> <target_ref>",
		Description: "Makes another image of one in the store: with OCI's media types, with its layers compressed otherwise,\n" +
			"with only some of its platforms. What does not change is shared.\n\n" +
			"Examples:\n  ctr images convert --oci --zstd example.com/web:1 example.com/web:1-zstd\n" +
			"  ctr images convert --uncompress --platform linux/arm64 example.com/web:1 example.com/web:1-arm",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "uncompress", Usage: "Convert tar.gz layers to uncompressed tar layers"},
			&cli.BoolFlag{Name: "zstd", Usage: "Convert layers to zstd compression"},
			&cli.BoolFlag{Name: "gzip", Usage: "Convert layers to gzip compression"},
			&cli.BoolFlag{Name: "oci", Usage: "Convert Docker media types to OCI media types"},
			&cli.StringFlag{Name: "erofs", Usage: "Convert layers to EROFS format, must specify 'raw' or 'zstd' (e.g. --erofs raw, --erofs zstd)"},
			&cli.StringFlag{Name: "erofs-compressors", Usage: "Specify compression algorithm list when converting EROFS layers"},
			&cli.StringFlag{Name: "erofs-mkfs-options", Usage: "Extra mkfs options applied when converting EROFS layers. (e.g. '-Efragments,dedupe')"},
			&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
			&cli.BoolFlag{Name: "all-platforms", Usage: "Exports content from all platforms"},
		},
		Action: withSession(convertImageAction),
	}
}

func convertImageAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "the image to convert", "the name of the result"); err != nil {
		return err
	}
	opts := transfer.ConvertOptions{OCI: cmd.Bool("oci")}
	var err error
	if opts.Layers, err = layerFormat(cmd); err != nil {
		return err
	}
	if !cmd.Bool("all-platforms") {
		if opts.Platforms, err = platformArgs(cmd.StringSlice("platform")); err != nil {
			return err
		}
		if len(opts.Platforms) == 0 {
			opts.Platforms = []ispec.Platform{platforms.DefaultSpec()}
		}
	}
	return s.locally(ctx, cmd, remote.Snapshotter{}, os.Stderr, func(ctx context.Context, engine *transfer.Service, report transfer.ProgressFunc) error {
		img, err := engine.Convert(ctx, s.namespace, "", cmd.Args().Get(0), cmd.Args().Get(1), opts, report)
		if err == nil {
			output.Line("%s", img.Target.Digest)
		}
		return err
	})
}

// layerFormat is what the flags want of layers, nil for nothing.
func layerFormat(cmd *cli.Command) (*transfer.LayerFormat, error) {
	var formats []*transfer.LayerFormat
	for flag, c := range map[string]archive.Compression{"uncompress": archive.Uncompressed, "zstd": archive.Zstd, "gzip": archive.Gzip} {
		if cmd.Bool(flag) {
			formats = append(formats, transfer.Recompressed(c))
		}
	}
	if cmd.IsSet("erofs") {
		kind := cmd.String("erofs")
		if kind != "raw" && kind != "zstd" {
			return nil, invalid("unsupported erofs format %q, supported: raw, zstd", kind)
		}
		e := erofsImages{compressors: cmd.String("erofs-compressors"), options: strings.Fields(cmd.String("erofs-mkfs-options"))}
		formats = append(formats, e.format(kind == "zstd"))
	}
	switch len(formats) {
	case 0:
		return nil, nil
	case 1:
		return formats[0], nil
	}
	return nil, invalid("only one of --uncompress, --zstd, --gzip and --erofs can be given")
}
