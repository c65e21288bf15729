package main

import (
	"context"
	"fmt"
	"io"

	"berth/internal/archive"
	"berth/internal/image"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resolved is an image as far as running and unpacking it needs.
type resolved struct {
	name     string
	labels   map[string]string
	target   ispec.Descriptor
	manifest ispec.Manifest
	config   image.Config
}

// chain names the snapshot of all its layers, empty when it has none.
func (r resolved) chain() string {
	ids := image.ChainIDs(r.config.RootFS.DiffIDs)
	if len(ids) == 0 {
		return ""
	}
	return ids[len(ids)-1].String()
}

// platformMatch is the matcher of a --platform flag, the host's when empty.
func platformMatch(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return platforms.Default(), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, invalid("--platform %s: %v", platform, err)
	}
	return platforms.Only(p), nil
}

// resolveImage reads manifest and config of an image for a platform.
func resolveImage(ctx context.Context, s *session, name, platform string) (r resolved, err error) {
	match, err := platformMatch(platform)
	if err != nil {
		return r, err
	}
	resp, err := imagesapi.NewImagesClient(s).Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return r, err
	}
	r = resolved{name: name, labels: resp.Image.Labels, target: wire.DescriptorFromProto(resp.Image.Target)}
	return r, r.read(ctx, s, match)
}

func (r *resolved) read(ctx context.Context, s *session, match platforms.MatchComparer) (err error) {
	if _, r.manifest, err = image.Manifest(ctx, s.readBlob, r.target, match); err != nil {
		return fmt.Errorf("image %s: %w", r.name, err)
	}
	doc, err := s.readBlob(ctx, r.manifest.Config, image.MaxConfig)
	if err != nil {
		return fmt.Errorf("image %s: %w", r.name, err)
	}
	if r.config, err = image.ParseConfig(doc); err != nil {
		return fmt.Errorf("image %s: %w", r.name, err)
	}
	if n, m := len(r.config.RootFS.DiffIDs), len(r.manifest.Layers); n != m {
		return fmt.Errorf("image %s: its config lists %d layers and its manifest %d: %w", r.name, n, m, errdefs.ErrInvalidArgument)
	}
	return nil
}

// readBlob returns a blob of the content store; it is an image.ReadFunc.
func (s *session) readBlob(ctx context.Context, desc ispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read: %w", desc.Digest, desc.Size, limit, errdefs.ErrInvalidArgument)
	}
	var out []byte
	err := s.streamBlob(ctx, desc, func(b []byte) error {
		out = append(out, b...)
		if int64(len(out)) > limit {
			return fmt.Errorf("%s has more than the %d bytes that are read: %w", desc.Digest, limit, errdefs.ErrInvalidArgument)
		}
		return nil
	})
	return out, err
}

// openLayer reads a layer's tar, whatever it is compressed with.
func (s *session) openLayer(ctx context.Context, desc ispec.Descriptor) (io.ReadCloser, error) {
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(s.streamBlob(ctx, desc, func(b []byte) error {
			_, err := pw.Write(b)
			return err
		}))
	}()
	r, _, err := archive.Decompress(pr)
	if err != nil {
		pr.Close()
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return layerReader{r, pr}, nil
}

// layerReader closes the pipe with what reads from it.
type layerReader struct {
	io.ReadCloser
	pipe *io.PipeReader
}

func (r layerReader) Close() error {
	r.pipe.Close()
	return r.ReadCloser.Close()
}

// streamBlob hands a blob to fn piece by piece; fn must not keep them.
func (s *session) streamBlob(ctx context.Context, desc ispec.Descriptor, fn func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := contentapi.NewContentClient(s).Read(ctx, &contentapi.ReadContentRequest{Digest: desc.Digest.String(), Size: desc.Size})
	if err != nil {
		return err
	}
	return receive(stream.Recv, func(resp *contentapi.ReadContentResponse) error { return fn(resp.Data) })
}
