package main

import (
	"context"
	"fmt"

	"berth/cmd/ctr/output"
	"berth/internal/registry"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func referrersCommand() *cli.Command {
	return &cli.Command{
		Name: "referrers", Usage: "List what a registry has about an image: signatures, SBOMs, attestations", ArgsUsage: "[flags] <ref>",
		Description: "Lists the artifacts that name the image as their subject. No daemon is needed.\n" +
			"'ctr content fetch <repository>@<digest>' fetches one of them.\n\n" +
			"Examples:\n  ctr images referrers registry.example.com/app:v1\n" +
			"  ctr images referrers --artifact-type application/spdx+json --format json registry.example.com/app:v1",
		Flags: append(registryFlags(), formatFlag(),
			&cli.StringFlag{Name: "artifact-type", Usage: "Only artifacts of this type"}),
		Action: referrersAction,
	}
}

func referrersAction(ctx context.Context, cmd *cli.Command) error {
	return withRemote(ctx, cmd, func(r *registry.Remote, desc ispec.Descriptor) error {
		list, err := r.Referrers(ctx, desc.Digest, cmd.String("artifact-type"))
		if err != nil {
			return err
		}
		return output.List(cmd.String("format"), list, output.Narrow, "DIGEST\tARTIFACT TYPE\tSIZE\tANNOTATIONS\t", func(d ispec.Descriptor) string {
			return fmt.Sprintf("%s\t%s\t%s\t%s\t", d.Digest, output.Dash(d.ArtifactType), output.Size(d.Size), output.Dash(output.Labels(d.Annotations)))
		})
	})
}
