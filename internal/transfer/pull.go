package transfer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/trace"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// maxDocuments bounds how many manifests and configs are fetched at a time.
const maxDocuments = 6

// Pull fetches the image that the remote names, unpacks it, and records it. The
// record is made last, when everything is there and on disk. A failure leaves
// no record, no unfinished snapshot, and only such ingests as another pull can
// resume while the lease lives.
func (s *Service) Pull(ctx context.Context, namespace, lease string, from *registry.Remote, to ImageTarget, progress ProgressFunc) (_ object.Image, err error) {
	if to.Name == "" {
		to.Name = from.Reference().String()
	}
	ctx, span := trace.Start(ctx, "pull", trace.String("namespace", namespace), trace.String("image", to.Name))
	defer func() { span.End(err) }()
	rep := report.New(progress, to.Name, "downloading")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, lease, rep)
	if err != nil {
		return object.Image{}, err
	}
	defer end()
	defer from.Close()

	rep.Say("Resolving from " + from.String())
	target, err := resolve(ctx, from)
	if err != nil {
		return object.Image{}, err
	}
	switch {
	case target.MediaType == image.DockerSchema1 || target.MediaType == image.DockerSchema1Unsigned:
		return object.Image{}, fmt.Errorf("%s is a schema 1 image, a format that is no longer supported: push it again with a current tool: %w", from.Reference(), errdefs.ErrInvalidArgument)
	case !image.IsManifest(target.MediaType) && !image.IsIndex(target.MediaType):
		return object.Image{}, fmt.Errorf("%s is of type %q, not an image: %w", from.Reference(), target.MediaType, errdefs.ErrInvalidArgument)
	}
	if s.opts.Verify != nil {
		if err := s.opts.Verify(ctx, to.Name, target); err != nil {
			return object.Image{}, err
		}
	}
	rep.Say("Pulling from " + from.String())
	rep.Image("fetching image content", to.Name, &target)

	p := &pull{session: x, from: from, to: to, match: platforms.All}
	if len(to.Platforms) > 0 {
		p.match = platforms.Ordered(to.Platforms...)
	}
	group, gctx := errgroup.WithContext(ctx)
	p.group, p.documents = group, make(chan struct{}, maxDocuments)
	group.Go(func() error { return p.descend(gctx, target, 0) })
	if err := group.Wait(); err != nil {
		return object.Image{}, fmt.Errorf("pull %s: %w", from.Reference(), err)
	}
	return p.finish(ctx, target)
}

func resolve(ctx context.Context, from *registry.Remote) (ispec.Descriptor, error) {
	ctx, span := trace.Start(ctx, "pull.resolve")
	target, err := from.Resolve(ctx)
	span.Set(trace.String("digest", target.Digest.String()))
	span.End(err)
	return target, err
}

// pull is the walk down one image's tree.
type pull struct {
	*session
	from      *registry.Remote
	to        ImageTarget
	match     platforms.MatchComparer
	group     *errgroup.Group
	documents chan struct{}
	count     image.Count
}

func (p *pull) finish(ctx context.Context, target ispec.Descriptor) (_ object.Image, err error) {
	ctx, span := trace.Start(ctx, "pull.finish")
	defer func() { span.End(err) }()
	// What the record names must be on disk before it: a power cut after the
	// record leaves a whole image, one before it leaves nothing that is listed.
	if err := p.barrier(ctx); err != nil {
		return object.Image{}, err
	}
	records := p.to.records(target)
	for i, img := range records {
		img, err := p.record(ctx, img)
		if err != nil {
			return object.Image{}, fmt.Errorf("record image %q: %w", img.Name, err)
		}
		records[i] = img
		p.rep.Image("saved", img.Name, &img.Target)
	}
	p.rep.Say("Completed pull from " + p.from.String())
	return records[0], nil
}

// source are the labels that say where a blob came from.
func (p *pull) source(existing map[string]string) map[string]string {
	ref := p.from.Reference()
	var had string
	for k, v := range existing {
		if strings.HasSuffix(k, "distribution.source."+ref.Hostname()) {
			had = v
		}
	}
	k, v, ok := image.SourceLabel(ref.Hostname(), ref.Repository, had)
	if !ok {
		return nil
	}
	return map[string]string{k: v}
}

// descend fetches what a descriptor names and goes on with its children.
func (p *pull) descend(ctx context.Context, desc ispec.Descriptor, depth int) error {
	if err := p.count.Add(1, depth); err != nil {
		return err
	}
	j := p.rep.Job(desc)
	switch {
	case image.IsIndex(desc.MediaType):
		doc, err := p.document(ctx, desc, j)
		if err != nil {
			return err
		}
		idx, err := image.ParseIndex(doc, desc.MediaType)
		if err != nil {
			return fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		return p.index(ctx, desc, idx, depth)
	case image.IsManifest(desc.MediaType):
		doc, err := p.document(ctx, desc, j)
		if err != nil {
			return err
		}
		m, err := image.ParseManifest(doc, desc.MediaType)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		if p.to.MetadataOnly {
			if !image.IsConfig(m.Config.MediaType) {
				return nil
			}
			return p.config(ctx, m.Config)
		}
		return p.manifest(ctx, desc, m)
	default:
		// An index may name thousands of blobs.
		if err := p.downloads.Acquire(ctx, 1); err != nil {
			return err
		}
		defer p.downloads.Release(1)
		_, err := p.fetch(ctx, fetchPlan{desc: desc, from: p.from, labels: p.source, job: j})
		return err
	}
}

// document gets a manifest or an index into the store, with the labels that
// keep its children, and returns it.
func (p *pull) document(ctx context.Context, desc ispec.Descriptor, j *report.Job) ([]byte, error) {
	select {
	case p.documents <- struct{}{}:
		defer func() { <-p.documents }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	unlock, err := p.locks.Lock(ctx, blobLock(desc.Digest))
	if err != nil {
		return nil, err
	}
	defer unlock()
	var doc []byte
	held, err := p.exists(ctx, desc.Digest)
	if held {
		if doc, err = p.read(ctx, desc, image.MaxManifest); errdefs.IsNotFound(err) {
			held, err = false, nil // collected in between, though it was held: a store without leases
		}
	}
	if err == nil && !held {
		doc, err = p.from.FetchAll(ctx, desc, image.MaxManifest)
	}
	if err != nil {
		return nil, err
	}
	children, err := image.ChildrenOf(doc, desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	labels := func(existing map[string]string) map[string]string {
		l := image.ChildLabels(children)
		maps.Copy(l, p.source(existing))
		return l
	}
	event := "complete"
	if held {
		event = "already exists"
		err = p.updateLabels(ctx, desc.Digest, labels)
	} else {
		err = p.writeBytes(ctx, desc, doc, labels(nil))
	}
	if err != nil {
		return nil, err
	}
	p.rep.Children(desc, children)
	j.Done(event)
	return doc, nil
}

// index goes on with those manifests of an index that are wanted.
func (p *pull) index(ctx context.Context, desc ispec.Descriptor, idx ispec.Index, depth int) error {
	wanted := image.Choose(idx.Manifests, p.match)
	if len(p.to.Platforms) == 0 {
		wanted = idx.Manifests
	}
	if len(wanted) == 0 && len(idx.Manifests) > 0 && !(p.to.AllMetadata && len(p.to.Unpacks) == 0) {
		return fmt.Errorf("image has no manifest for %s, only for %s: %w", formatPlatforms(p.to.Platforms), available(idx.Manifests), errdefs.ErrNotFound)
	}
	if n := p.to.ManifestLimit; n > 0 && len(wanted) > n {
		wanted = wanted[:n]
	}
	for _, m := range idx.Manifests {
		chosen := slices.ContainsFunc(wanted, func(w ispec.Descriptor) bool { return w.Digest == m.Digest })
		if !chosen && !p.to.AllMetadata {
			continue
		}
		p.group.Go(func() error {
			if chosen {
				return p.descend(ctx, m, depth+1)
			}
			return p.metadata(ctx, m)
		})
	}
	return nil
}

// metadata fetches the manifest and the config of a platform that is not
// wanted itself.
func (p *pull) metadata(ctx context.Context, desc ispec.Descriptor) error {
	if err := p.count.Add(1, 0); err != nil {
		return err
	}
	if !image.IsManifest(desc.MediaType) {
		return nil
	}
	doc, err := p.document(ctx, desc, p.rep.Job(desc))
	if err != nil {
		return err
	}
	m, err := image.ParseManifest(doc, desc.MediaType)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if !image.IsConfig(m.Config.MediaType) {
		return nil
	}
	return p.config(ctx, m.Config)
}

// config gets a config into the store.
func (p *pull) config(ctx context.Context, desc ispec.Descriptor) error {
	if desc.Size > image.MaxConfig {
		return fmt.Errorf("config %s is %d bytes: at most %d are accepted: %w", desc.Digest, desc.Size, image.MaxConfig, errdefs.ErrInvalidArgument)
	}
	select {
	case p.documents <- struct{}{}:
		defer func() { <-p.documents }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err := p.fetch(ctx, fetchPlan{desc: desc, from: p.from, labels: p.source, job: p.rep.Job(desc)})
	return err
}

// manifest fetches config and layers, and unpacks them where that is asked for.
func (p *pull) manifest(ctx context.Context, desc ispec.Descriptor, m ispec.Manifest) error {
	if err := p.count.Add(1+len(m.Layers), 0); err != nil {
		return err
	}
	if !image.IsConfig(m.Config.MediaType) {
		// An artifact, not an image to run.
		return p.blobs(ctx, append([]ispec.Descriptor{m.Config}, m.Layers...))
	}
	if err := p.config(ctx, m.Config); err != nil {
		return err
	}
	var layers, others []ispec.Descriptor
	for _, l := range m.Layers {
		if image.IsLayer(l.MediaType) {
			layers = append(layers, l)
		} else {
			others = append(others, l)
		}
	}
	if err := p.blobs(ctx, others); err != nil {
		return err
	}
	if len(p.to.Unpacks) == 0 || len(layers) == 0 {
		return p.blobs(ctx, layers)
	}
	cfg, err := image.ReadConfig(ctx, p.read, m.Config)
	if err != nil {
		return err
	}
	platform := platforms.Normalize(cfg.Platform)
	if desc.Platform != nil && cfg.OS == "" && cfg.Architecture == "" {
		platform = platforms.Normalize(*desc.Platform)
	}
	if t := cfg.RootFS.Type; t == "" || t == "layers" {
		for _, u := range p.to.Unpacks {
			if platforms.Only(u.Platform).Match(platform) {
				return p.unpackChain(ctx, u.Snapshotter, m.Config, cfg, layers, p.from, p.source)
			}
		}
	}
	return p.blobs(ctx, layers)
}

// blobs fetches blobs that are not unpacked.
func (p *pull) blobs(ctx context.Context, descs []ispec.Descriptor) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, d := range descs {
		j := p.rep.Job(d)
		if err := p.downloads.Acquire(gctx, 1); err != nil {
			break
		}
		g.Go(func() error {
			defer p.downloads.Release(1)
			_, err := p.fetch(gctx, fetchPlan{desc: d, from: p.from, labels: p.source, job: j})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func formatPlatforms(ps []ispec.Platform) string {
	var s []string
	for _, p := range ps {
		s = append(s, platforms.FormatAll(p))
	}
	return strings.Join(s, " or ")
}

// available lists the platforms of an index, for errors.
func available(manifests []ispec.Descriptor) string {
	var s []string
	for _, m := range manifests {
		if m.Platform != nil && m.Platform.OS != "unknown" && len(s) < 20 {
			s = append(s, platforms.FormatAll(*m.Platform))
		}
	}
	if len(s) == 0 {
		return "platforms it does not name"
	}
	return strings.Join(s, ", ")
}
