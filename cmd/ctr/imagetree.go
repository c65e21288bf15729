package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"berth/internal/image"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func inspectImageAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image reference"); err != nil {
		return err
	}
	resp, err := imagesapi.NewImagesClient(s).Get(ctx, &imagesapi.GetImageRequest{Name: cmd.Args().First()})
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	fmt.Fprintln(out, resp.Image.Name)
	fmt.Fprintf(out, "│    Created: %s\n│    Updated: %s\n", resp.Image.CreatedAt.AsTime(), resp.Image.UpdatedAt.AsTime())
	for _, key := range slices.Sorted(maps.Keys(resp.Image.Labels)) {
		fmt.Fprintf(out, "│    Label %q: %q\n", key, resp.Image.Labels[key])
	}
	t := treePrinter{w: out, s: s, verbose: cmd.Bool("content")}
	return t.print(ctx, wire.DescriptorFromProto(resp.Image.Target), "└── ", "    ", 0)
}

// treePrinter draws the documents and layers of an image.
type treePrinter struct {
	w       io.Writer
	s       *session
	verbose bool // labels and documents, too
}

func (t treePrinter) print(ctx context.Context, desc ispec.Descriptor, branch, indent string, depth int) error {
	fmt.Fprintf(t.w, "%s%s @%s (%d bytes)\n", branch, desc.MediaType, desc.Digest, desc.Size)
	isDocument := image.IsManifest(desc.MediaType) || image.IsIndex(desc.MediaType)
	var doc []byte
	var children []ispec.Descriptor
	if isDocument || t.verbose && image.IsConfig(desc.MediaType) {
		var err error
		if doc, err = t.s.readBlob(ctx, desc, image.MaxConfig); ignoreNotFound(err) != nil {
			return err
		}
	}
	if isDocument && doc != nil && depth <= image.MaxDepth {
		var err error
		if children, err = image.ChildrenOf(doc, desc.MediaType); err != nil {
			return err
		}
	}
	inner := indent
	if len(children) > 0 {
		inner += "│   "
	}
	if desc.Platform != nil {
		fmt.Fprintf(t.w, "%s│    Platform: %s\n", indent, platforms.Format(*desc.Platform))
	}
	if t.verbose {
		if err := t.details(ctx, desc, doc, inner); err != nil {
			return err
		}
	}
	for i, c := range children {
		b, in := "├── ", "│   "
		if i == len(children)-1 {
			b, in = "└── ", "    "
		}
		if err := t.print(ctx, c, indent+b, indent+in, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t treePrinter) details(ctx context.Context, desc ispec.Descriptor, doc []byte, indent string) error {
	resp, err := contentapi.NewContentClient(t.s).Info(ctx, &contentapi.InfoRequest{Digest: desc.Digest.String()})
	if ignoreNotFound(err) != nil {
		return err
	}
	if labels := resp.GetInfo().GetLabels(); len(labels) > 0 && doc != nil {
		fmt.Fprintf(t.w, "%s┌────────Labels─────────\n", indent)
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			fmt.Fprintf(t.w, "%s│%q: %q\n", indent, key, labels[key])
		}
		fmt.Fprintf(t.w, "%s└───────────────────────\n", indent)
	}
	if doc == nil {
		return nil
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, bytes.TrimSpace(doc), indent+"│", "   "); err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	fmt.Fprintf(t.w, "%s┌────────Content────────\n%s│%s\n%s└───────────────────────\n", indent, indent, pretty.Bytes(), indent)
	return nil
}
