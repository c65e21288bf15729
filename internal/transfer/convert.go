package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// LayerFormat is what a conversion makes of layers.
type LayerFormat struct {
	// Name is part of the names of ingests.
	Name string
	// MediaType is that of the layer which one of type mt becomes; mt itself, or
	// empty, leaves a layer as it is.
	MediaType func(mt string) string
	// Write writes the layer whose tar, with the diff ID, it is given, and
	// returns the diff ID of what it wrote.
	Write func(ctx context.Context, tar io.Reader, diffID digest.Digest, w io.Writer) (digest.Digest, error)
	// OSFeature is added to the platform of an image with such layers, unless it
	// is empty.
	OSFeature string
}

// Recompressed is the format of tar layers in a compression.
func Recompressed(c archive.Compression) *LayerFormat {
	name := string(c)
	if c == archive.Uncompressed {
		name = "uncompress"
	}
	return &LayerFormat{
		Name:      name,
		MediaType: func(mt string) string { return image.Recompressed(mt, string(c)) },
		Write: func(_ context.Context, tar io.Reader, diffID digest.Digest, w io.Writer) (digest.Digest, error) {
			z, err := archive.Compress(w, c)
			if err != nil {
				return "", err
			}
			_, err = copyTo(z, tar)
			return diffID, errors.Join(err, z.Close())
		},
	}
}

// ConvertOptions says what a conversion changes.
type ConvertOptions struct {
	// Platforms that are kept of an index; none keeps all.
	Platforms []ispec.Platform
	// OCI turns the media types of Docker into those of OCI.
	OCI bool
	// Layers, unless it is nil, is the format of the layers.
	Layers *LayerFormat
}

// Convert makes another image of an image in the store and records it under the
// name to, in place of what had that name. What need not change is shared with
// the first. The snapshots of both are the same where the diff IDs are.
func (s *Service) Convert(ctx context.Context, namespace, lease, from, to string, opts ConvertOptions, progress ProgressFunc) (object.Image, error) {
	rep := report.New(progress, from, "converting")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, lease, rep)
	if err != nil {
		return object.Image{}, err
	}
	defer end()
	img, err := x.stores.Images.Get(ctx, from)
	if err != nil {
		return object.Image{}, err
	}
	c := &converter{session: x, opts: opts, match: platforms.All}
	if len(opts.Platforms) > 0 {
		c.match = platforms.Ordered(opts.Platforms...)
	}
	target, err := c.document(ctx, img.Target, 0)
	if err != nil {
		return object.Image{}, fmt.Errorf("convert %q: %w", from, err)
	}
	return x.record(ctx, object.Image{Name: to, Labels: img.Labels, Target: target})
}

type converter struct {
	*session
	opts  ConvertOptions
	match platforms.MatchComparer
	count image.Count
}

// mediaType is the type that a document or layer which is otherwise left alone gets.
func (c *converter) mediaType(mt string) string {
	if c.opts.OCI {
		return image.OCIMediaType(mt)
	}
	return mt
}

// document converts a manifest or an index; other things are left alone.
func (c *converter) document(ctx context.Context, desc ispec.Descriptor, depth int) (ispec.Descriptor, error) {
	if err := c.count.Add(1, depth); err != nil {
		return desc, err
	}
	if !image.IsManifest(desc.MediaType) && !image.IsIndex(desc.MediaType) {
		return desc, nil
	}
	doc, err := c.read(ctx, desc, image.MaxManifest)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("%s is not in the store; pull the image with this platform, or convert others with --platform: %w", desc.Digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return desc, err
	}
	if image.IsIndex(desc.MediaType) {
		return c.index(ctx, desc, doc, depth)
	}
	return c.manifest(ctx, desc, doc)
}

func (c *converter) index(ctx context.Context, desc ispec.Descriptor, doc []byte, depth int) (ispec.Descriptor, error) {
	idx, err := image.ParseIndex(doc, desc.MediaType)
	if err != nil {
		return desc, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	kept := []ispec.Descriptor{}
	for _, m := range idx.Manifests {
		if m.Platform != nil && !c.match.Match(*m.Platform) {
			continue
		}
		if m, err = c.document(ctx, m, depth+1); err != nil {
			return desc, err
		}
		kept = append(kept, m)
	}
	if len(kept) == 0 && len(idx.Manifests) > 0 {
		return desc, fmt.Errorf("image has no manifest for %s, only for %s: %w", formatPlatforms(c.opts.Platforms), available(idx.Manifests), errdefs.ErrNotFound)
	}
	mt := c.mediaType(desc.MediaType)
	if mt == desc.MediaType && slices.EqualFunc(kept, idx.Manifests, sameContent) {
		return desc, nil
	}
	idx.Manifests, idx.MediaType = kept, mt
	return c.write(ctx, desc, mt, idx, kept)
}

func sameContent(a, b ispec.Descriptor) bool {
	return a.Digest == b.Digest && a.MediaType == b.MediaType
}

func (c *converter) manifest(ctx context.Context, desc ispec.Descriptor, doc []byte) (ispec.Descriptor, error) {
	m, err := image.ParseManifest(doc, desc.MediaType)
	if err != nil {
		return desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	mt := c.mediaType(desc.MediaType)
	old := m.Config
	m.Config.MediaType = c.mediaType(m.Config.MediaType)
	layers := slices.Clone(m.Layers)
	for i := range layers {
		layers[i].MediaType = c.mediaType(layers[i].MediaType)
	}
	if image.IsConfig(old.MediaType) && c.opts.Layers != nil {
		if err := c.contents(ctx, &desc, &m, layers); err != nil {
			return desc, err
		}
	}
	if mt == desc.MediaType && sameContent(old, m.Config) && slices.EqualFunc(layers, m.Layers, sameContent) {
		return desc, nil
	}
	m.Layers, m.MediaType = layers, mt
	return c.write(ctx, desc, mt, m, append([]ispec.Descriptor{m.Config}, layers...))
}

// contents converts the layers of a manifest and what says so: its config, and
// the platform of its descriptor.
func (c *converter) contents(ctx context.Context, desc *ispec.Descriptor, m *ispec.Manifest, layers []ispec.Descriptor) error {
	config, err := c.read(ctx, m.Config, image.MaxConfig)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	cfg, err := image.ParseConfig(config)
	if err != nil {
		return err
	}
	before := cfg.RootFS.DiffIDs
	if len(before) != len(layers) {
		return fmt.Errorf("manifest has %d layers, but its config %s lists %d diff IDs: %w", len(layers), m.Config.Digest, len(before), errdefs.ErrInvalidArgument)
	}
	after := slices.Clone(before)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, c.Service.opts.MaxUnpacks))
	for i := range layers {
		g.Go(func() (err error) {
			if layers[i], after[i], err = c.layer(gctx, layers[i], before[i]); err != nil {
				return fmt.Errorf("layer %s: %w", m.Layers[i].Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	feature := c.opts.Layers.OSFeature
	if slices.Equal(before, after) && feature == "" {
		return nil
	}
	var features []string
	if feature != "" {
		p := cfg.Platform
		if desc.Platform != nil {
			p = *desc.Platform
		}
		if p = platforms.Normalize(p); !slices.Contains(p.OSFeatures, feature) {
			p.OSFeatures = append(slices.Clone(p.OSFeatures), feature)
		}
		p = platforms.Normalize(p)
		desc.Platform, features = &p, p.OSFeatures
	}
	cfg.RootFS.DiffIDs = after
	fields, err := image.RewriteConfig(config, cfg.RootFS, features, !slices.Equal(before, after))
	if err != nil {
		return fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	m.Config, err = c.write(ctx, m.Config, m.Config.MediaType, fields, nil)
	return err
}

// layer converts one layer and returns its new diff ID, too.
func (c *converter) layer(ctx context.Context, desc ispec.Descriptor, diffID digest.Digest) (ispec.Descriptor, digest.Digest, error) {
	f := c.opts.Layers
	mt := f.MediaType(desc.MediaType)
	if mt == "" || mt == desc.MediaType || !image.IsLayer(desc.MediaType) {
		return desc, diffID, nil
	}
	if err := c.count.Add(1, 0); err != nil {
		return desc, diffID, err
	}
	ref := "convert-" + f.Name + "-from-" + desc.Digest.String()
	unlock, err := c.locks.Lock(ctx, c.namespace+" "+ref)
	if err != nil {
		return desc, diffID, err
	}
	defer unlock()
	j := c.rep.Job(desc)
	ra, err := c.stores.Content.ReaderAt(ctx, desc)
	if err != nil {
		return desc, diffID, err
	}
	defer ra.Close()
	tar, _, err := archive.Decompress(j.Reader(ctx, io.NewSectionReader(ra, 0, ra.Size())))
	if err != nil {
		return desc, diffID, err
	}
	defer tar.Close()
	seen := diffID.Algorithm().Digester()
	out, newDiffID, err := c.store(ctx, ref, func(w io.Writer) (digest.Digest, error) {
		read := io.TeeReader(tar, seen.Hash())
		d, err := f.Write(ctx, read, diffID, w)
		if err == nil {
			_, err = io.Copy(io.Discard, read)
		}
		if got := seen.Digest(); err == nil && got != diffID {
			err = fmt.Errorf("its tar has the digest %s, but the image config says %s: %w", got, diffID, errdefs.ErrFailedPrecondition)
		}
		return d, err
	})
	if err != nil {
		return desc, diffID, err
	}
	desc.MediaType, desc.Digest, desc.Size, desc.URLs, desc.Data = mt, out.Digest, out.Size, nil, nil
	j.Done("complete")
	return desc, newDiffID, nil
}

// store keeps what write writes as a blob.
func (c *converter) store(ctx context.Context, ref string, write func(io.Writer) (digest.Digest, error)) (_ ispec.Descriptor, diffID digest.Digest, err error) {
	w, err := c.stores.Content.Writer(ctx, content.WriteOptions{Ref: ref})
	if err != nil {
		return ispec.Descriptor{}, "", err
	}
	defer func() {
		w.Close()
		if err != nil {
			_ = undo(ctx, func(ctx context.Context) error { return c.stores.Content.Abort(ctx, ref) })
		}
	}()
	if err := w.Truncate(0); err != nil { // what an interrupted conversion left
		return ispec.Descriptor{}, "", err
	}
	if diffID, err = write(w); err != nil {
		return ispec.Descriptor{}, "", err
	}
	st, err := w.Status()
	if err != nil {
		return ispec.Descriptor{}, "", err
	}
	out := ispec.Descriptor{Digest: w.Digest(), Size: st.Offset}
	labels := map[string]string{}
	if diffID != out.Digest {
		labels[image.LabelUncompressed] = diffID.String()
	}
	err = w.Commit(ctx, out.Size, out.Digest, labels)
	if errdefs.IsAlreadyExists(err) {
		err = content.AddLabels(ctx, c.stores.Content, out.Digest, labels)
	}
	return out, diffID, err
}

// write stores a document in the place of another.
func (c *converter) write(ctx context.Context, desc ispec.Descriptor, mediaType string, v any, children []ispec.Descriptor) (ispec.Descriptor, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return desc, err
	}
	desc.MediaType, desc.Digest, desc.Size, desc.Data = mediaType, digest.FromBytes(doc), int64(len(doc)), nil
	if strings.HasPrefix(mediaType, "application/vnd.docker.") {
		desc.Annotations = nil // Docker's manifests have none
	}
	return desc, c.writeBytes(ctx, desc, doc, image.ChildLabels(children))
}
