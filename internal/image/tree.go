package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ReadFunc reads a whole blob. errdefs.ErrNotFound when it is not there. It
// must refuse blobs larger than limit bytes.
type ReadFunc func(ctx context.Context, desc ispec.Descriptor, limit int64) ([]byte, error)

// SkipChildren, returned by the function given to Walk, leaves the children of
// a descriptor out.
var SkipChildren = errors.New("skip the children")

// ChildrenOf returns the descriptors that a document names, in order: the
// config and the layers of a manifest, the manifests of an index.
func ChildrenOf(doc []byte, mediaType string) ([]ispec.Descriptor, error) {
	if IsIndex(mediaType) {
		idx, err := ParseIndex(doc, mediaType)
		return idx.Manifests, err
	}
	m, err := ParseManifest(doc, mediaType)
	if err != nil {
		return nil, err
	}
	return append([]ispec.Descriptor{m.Config}, m.Layers...), nil
}

// Children reads a descriptor's document and returns what it names; nothing
// for configs, layers and whatever else is not a manifest or an index.
func Children(ctx context.Context, read ReadFunc, desc ispec.Descriptor) ([]ispec.Descriptor, error) {
	if !IsManifest(desc.MediaType) && !IsIndex(desc.MediaType) {
		return nil, nil
	}
	doc, err := read(ctx, desc, MaxManifest)
	if err != nil {
		return nil, err
	}
	ch, err := ChildrenOf(doc, desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return ch, nil
}

// Walk calls fn for a descriptor and then for everything below it, each
// mention once, parents first. fn may return SkipChildren. A child whose
// document is not there ends the walk with errdefs.ErrNotFound.
// errdefs.ErrResourceExhausted when the tree is too deep or too large.
func Walk(ctx context.Context, read ReadFunc, desc ispec.Descriptor, fn func(desc ispec.Descriptor) error) error {
	w := walker{read: read, fn: fn}
	return w.walk(ctx, desc, 0)
}

type walker struct {
	read  ReadFunc
	fn    func(ispec.Descriptor) error
	count Count
}

func (w *walker) walk(ctx context.Context, desc ispec.Descriptor, depth int) error {
	if err := w.count.Add(1, depth); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.fn(desc); err != nil {
		if errors.Is(err, SkipChildren) {
			return nil
		}
		return err
	}
	children, err := Children(ctx, w.read, desc)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := w.walk(ctx, c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Count bounds how much one image may name: who walks a tree on their own adds
// what they meet. It is safe for concurrent use; the zero value is ready.
type Count struct{ n atomic.Int64 }

// Add counts n more descriptors at a depth below the root, which has 0.
// errdefs.ErrResourceExhausted when they are too many, or too deep.
func (c *Count) Add(n, depth int) error {
	if c.n.Add(int64(n)) > MaxReferences {
		return fmt.Errorf("image names more than %d objects: %w", MaxReferences, errdefs.ErrResourceExhausted)
	}
	if depth > MaxDepth {
		return fmt.Errorf("image nests indexes more than %d deep: %w", MaxDepth, errdefs.ErrResourceExhausted)
	}
	return nil
}

// Choose returns the manifests of an index that the matcher accepts, best
// first. Those that do not say their platform come last.
func Choose(manifests []ispec.Descriptor, match platforms.MatchComparer) []ispec.Descriptor {
	var out []ispec.Descriptor
	for _, m := range manifests {
		if m.Platform == nil || match.Match(*m.Platform) {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b ispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1
		case b.Platform == nil:
			return -1
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return out
}

// Manifest finds the manifest of a platform below target and returns it with
// its descriptor. A target that is a manifest itself is taken as it is; in an
// index, a manifest that does not say its platform is asked for its config's.
// errdefs.ErrNotFound when no manifest fits, or when the one that fits is not
// there.
func Manifest(ctx context.Context, read ReadFunc, target ispec.Descriptor, match platforms.MatchComparer) (ispec.Descriptor, ispec.Manifest, error) {
	return findManifest(ctx, read, target, match, 0)
}

func findManifest(ctx context.Context, read ReadFunc, desc ispec.Descriptor, match platforms.MatchComparer, depth int) (ispec.Descriptor, ispec.Manifest, error) {
	none := func(err error) (ispec.Descriptor, ispec.Manifest, error) {
		return ispec.Descriptor{}, ispec.Manifest{}, err
	}
	if !IsManifest(desc.MediaType) && !IsIndex(desc.MediaType) {
		return none(fmt.Errorf("%s is of type %q, not an image: %w", desc.Digest, desc.MediaType, errdefs.ErrNotFound))
	}
	if depth > MaxDepth {
		return none(fmt.Errorf("image nests indexes more than %d deep: %w", MaxDepth, errdefs.ErrResourceExhausted))
	}
	doc, err := read(ctx, desc, MaxManifest)
	if err != nil {
		return none(err)
	}
	if IsManifest(desc.MediaType) {
		m, err := ParseManifest(doc, desc.MediaType)
		if err != nil {
			return none(fmt.Errorf("manifest %s: %w", desc.Digest, err))
		}
		if depth > 0 && desc.Platform == nil {
			p, err := configPlatform(ctx, read, m.Config)
			if err != nil {
				return none(err)
			}
			if !match.Match(p) {
				return none(fmt.Errorf("manifest %s is for %s: %w", desc.Digest, platforms.FormatAll(p), errdefs.ErrNotFound))
			}
		}
		return desc, m, nil
	}
	idx, err := ParseIndex(doc, desc.MediaType)
	if err != nil {
		return none(fmt.Errorf("index %s: %w", desc.Digest, err))
	}
	var missing error
	for _, c := range Choose(idx.Manifests, match) {
		if !IsManifest(c.MediaType) && !IsIndex(c.MediaType) {
			continue
		}
		d, m, err := findManifest(ctx, read, c, match, depth+1)
		if err == nil {
			return d, m, nil
		}
		if !errdefs.IsNotFound(err) {
			return none(err)
		}
		missing = cmpOr(missing, err)
	}
	if missing != nil {
		return none(missing)
	}
	return none(fmt.Errorf("index %s has no manifest for the wanted platform: %w", desc.Digest, errdefs.ErrNotFound))
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func configPlatform(ctx context.Context, read ReadFunc, desc ispec.Descriptor) (ispec.Platform, error) {
	c, err := ReadConfig(ctx, read, desc)
	if err != nil {
		return ispec.Platform{}, err
	}
	return platforms.Normalize(c.Platform), nil
}

// ReadConfig reads and parses the config that a manifest names.
func ReadConfig(ctx context.Context, read ReadFunc, desc ispec.Descriptor) (Config, error) {
	doc, err := read(ctx, desc, MaxConfig)
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(doc)
	if err != nil {
		return Config{}, fmt.Errorf("config %s: %w", desc.Digest, err)
	}
	return c, nil
}

// Platforms lists what an image was built for; attestations and the like
// ("unknown/unknown") are left out.
func Platforms(ctx context.Context, read ReadFunc, target ispec.Descriptor) ([]ispec.Platform, error) {
	var out []ispec.Platform
	err := Walk(ctx, read, target, func(d ispec.Descriptor) error {
		switch {
		case d.Platform != nil:
			if d.Platform.OS != "unknown" && d.Platform.Architecture != "unknown" {
				out = append(out, *d.Platform)
			}
			return SkipChildren
		case IsConfig(d.MediaType):
			p, err := configPlatform(ctx, read, d)
			if err != nil {
				return err
			}
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

// Size adds up the bytes of the index, the manifest, the config and the layers
// of an image for a platform.
func Size(ctx context.Context, read ReadFunc, target ispec.Descriptor, match platforms.MatchComparer) (int64, error) {
	d, m, err := Manifest(ctx, read, target, match)
	if err != nil {
		return 0, err
	}
	size := d.Size + m.Config.Size
	if d.Digest != target.Digest {
		size += target.Size
	}
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}
