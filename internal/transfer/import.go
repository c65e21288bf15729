package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions refines Import.
type ImportOptions struct {
	// MediaType of the stream; a tar archive, perhaps compressed, when empty.
	MediaType string
	// ForceCompress compresses uncompressed layers of a docker-save archive.
	ForceCompress bool
	// DiscardLayers lets the collector have the layers once they are unpacked.
	DiscardLayers bool
}

// Import reads an OCI layout or docker-save archive, unpacks its images, and
// records them under the names that the target makes of those in the archive.
// errdefs.ErrInvalidArgument when the archive is neither, is damaged, or when
// none of its images gets a name.
func (s *Service) Import(ctx context.Context, namespace, lease string, r io.Reader, opts ImportOptions, to ImageTarget, progress ProgressFunc) ([]object.Image, error) {
	rep := report.New(progress, to.Name, "importing")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, lease, rep)
	if err != nil {
		return nil, err
	}
	defer end()
	rep.Say("Importing")
	a, err := x.readArchive(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	i := &importer{session: x, to: to, opts: opts, match: platforms.All}
	if len(to.Platforms) > 0 {
		i.match = platforms.Ordered(to.Platforms...)
	}
	target, idx, err := i.index(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if err := i.images(ctx, target, idx); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	records := i.names(target, idx)
	if len(records) == 0 {
		return nil, fmt.Errorf("import: no image of the archive has a name to be kept under; give one (--base-name, --index-name or --digests): %w", errdefs.ErrInvalidArgument)
	}
	if err := x.barrier(ctx); err != nil {
		return nil, err
	}
	var out []object.Image
	for _, img := range records {
		img, err := x.record(ctx, img)
		if err != nil {
			return out, fmt.Errorf("record image %q: %w", img.Name, err)
		}
		rep.Image("saved", img.Name, &img.Target)
		out = append(out, img)
	}
	rep.Say("Completed import")
	return out, nil
}

type importer struct {
	*session
	to    ImageTarget
	opts  ImportOptions
	match platforms.MatchComparer
	count image.Count
}

// index finds or makes the index of an archive and stores it.
func (i *importer) index(ctx context.Context, a *archiveContents) (ispec.Descriptor, ispec.Index, error) {
	doc := a.index
	switch {
	case a.layout.Version != "" && a.layout.Version != ispec.ImageLayoutVersion:
		return ispec.Descriptor{}, ispec.Index{}, fmt.Errorf("archive is an OCI layout of version %.20q; %s is understood: %w", a.layout.Version, ispec.ImageLayoutVersion, errdefs.ErrInvalidArgument)
	case a.layout.Version != "" && doc == nil:
		return ispec.Descriptor{}, ispec.Index{}, fmt.Errorf("archive is an OCI layout without %s: %w", ispec.ImageIndexFile, errdefs.ErrInvalidArgument)
	case a.layout.Version == "" && a.docker == nil:
		return ispec.Descriptor{}, ispec.Index{}, fmt.Errorf("archive is neither an OCI layout nor one of docker save: it has no %s and no manifest.json: %w", ispec.ImageLayoutFile, errdefs.ErrInvalidArgument)
	case a.layout.Version == "":
		idx := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex}
		for n, img := range a.docker {
			descs, err := i.dockerImage(ctx, a, img)
			if err != nil {
				return ispec.Descriptor{}, ispec.Index{}, fmt.Errorf("image %d of manifest.json: %w", n, err)
			}
			idx.Manifests = append(idx.Manifests, descs...)
		}
		var err error
		if doc, err = json.Marshal(idx); err != nil {
			return ispec.Descriptor{}, ispec.Index{}, err
		}
	}
	idx, err := image.ParseIndex(doc, ispec.MediaTypeImageIndex)
	if err != nil {
		return ispec.Descriptor{}, ispec.Index{}, fmt.Errorf("%s: %w", ispec.ImageIndexFile, err)
	}
	desc := ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	return desc, idx, i.writeBytes(ctx, desc, doc, image.ChildLabels(idx.Manifests))
}

// dockerImage makes the manifest of an image of docker save, which has none,
// and returns one descriptor for each of its names.
func (i *importer) dockerImage(ctx context.Context, a *archiveContents, img archiveImage) ([]ispec.Descriptor, error) {
	config, ok := a.file(img.Config)
	if !ok {
		return nil, fmt.Errorf("its config %.512q is not in the archive: %w", img.Config, errdefs.ErrInvalidArgument)
	}
	config.MediaType = image.DockerConfig
	cfg, err := image.ReadConfig(ctx, i.read, config)
	if err != nil {
		return nil, err
	}
	m := ispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: image.DockerManifest, Config: config, Layers: []ispec.Descriptor{}}
	for _, name := range img.Layers {
		l, ok := a.file(name)
		if !ok {
			return nil, fmt.Errorf("its layer %.512q is not in the archive: %w", name, errdefs.ErrInvalidArgument)
		}
		if l, err = i.dockerLayer(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %.512q: %w", name, err)
		}
		m.Layers = append(m.Layers, l)
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	desc := ispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	if err := i.writeBytes(ctx, desc, doc, i.childLabels(append([]ispec.Descriptor{config}, m.Layers...))); err != nil {
		return nil, err
	}
	if cfg.OS != "" || cfg.Architecture != "" {
		p := platforms.Normalize(cfg.Platform)
		desc.Platform = &p
	}
	if len(img.RepoTags) == 0 {
		return []ispec.Descriptor{desc}, nil
	}
	var out []ispec.Descriptor
	for _, tag := range img.RepoTags {
		n, err := image.ParseDockerName(tag)
		if err != nil {
			return nil, err
		}
		if n = n.Tagged(); n.Digest != "" {
			n.Tag = ""
		}
		d := desc
		d.Annotations = map[string]string{image.AnnotationName: n.String(), ispec.AnnotationRefName: image.RefName(n.String())}
		out = append(out, d)
	}
	return out, nil
}

// dockerLayer finds out what a layer of docker save is, which does not say.
func (i *importer) dockerLayer(ctx context.Context, l ispec.Descriptor) (ispec.Descriptor, error) {
	ra, err := i.stores.Content.ReaderAt(ctx, l)
	if err != nil {
		return l, err
	}
	defer ra.Close()
	head := make([]byte, 4)
	n, err := ra.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return l, err
	}
	switch archive.Detect(head[:n]) {
	case archive.Gzip:
		l.MediaType = image.DockerLayerGzip
	case archive.Zstd:
		l.MediaType = image.DockerLayerZstd
	default:
		l.MediaType = image.DockerLayer
		if i.opts.ForceCompress {
			return i.compress(ctx, l, ra)
		}
	}
	return l, nil
}

// compress stores the gzip of a layer.
func (i *importer) compress(ctx context.Context, l ispec.Descriptor, ra content.ReaderAt) (ispec.Descriptor, error) {
	ref := "compress-" + l.Digest.String()
	unlock, err := i.locks.Lock(ctx, i.namespace+" "+ref)
	if err != nil {
		return l, err
	}
	defer unlock()
	w, err := i.stores.Content.Writer(ctx, content.WriteOptions{Ref: ref})
	if err != nil {
		return l, err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return l, err
	}
	z, err := archive.Compress(w, archive.Gzip)
	if err != nil {
		return l, err
	}
	if err := copyAt(ctx, z, ra, nil); err != nil {
		return l, errors.Join(err, undo(ctx, func(ctx context.Context) error { w.Close(); return i.stores.Content.Abort(ctx, ref) }))
	}
	if err := z.Close(); err != nil {
		return l, err
	}
	st, err := w.Status()
	if err != nil {
		return l, err
	}
	out := ispec.Descriptor{MediaType: image.DockerLayerGzip, Digest: w.Digest(), Size: st.Offset}
	err = w.Commit(ctx, out.Size, out.Digest, map[string]string{image.LabelUncompressed: l.Digest.String()})
	if errdefs.IsAlreadyExists(err) {
		err = content.AddLabels(ctx, i.stores.Content, out.Digest, map[string]string{image.LabelUncompressed: l.Digest.String()})
	}
	return out, err
}

// childLabels keep those children that are to stay.
func (i *importer) childLabels(children []ispec.Descriptor) map[string]string {
	if i.opts.DiscardLayers {
		children = slices.DeleteFunc(slices.Clone(children), func(d ispec.Descriptor) bool { return image.IsLayer(d.MediaType) })
	}
	return image.ChildLabels(children)
}

// images labels what the archive's index leads to and unpacks what is wanted.
func (i *importer) images(ctx context.Context, target ispec.Descriptor, idx ispec.Index) error {
	wanted := 0
	for _, m := range idx.Manifests {
		n, err := i.image(ctx, m, 0)
		if err != nil {
			return fmt.Errorf("image %s: %w", m.Digest, err)
		}
		wanted += n
	}
	if wanted == 0 {
		return fmt.Errorf("the archive holds no image for %s, only for %s: %w", formatPlatforms(i.to.Platforms), available(idx.Manifests), errdefs.ErrNotFound)
	}
	return nil
}

// image goes down one tree and returns how many manifests were wanted in it.
// Manifests that an index names but that are not in the archive are left out:
// an archive may hold an index whole and only some of its platforms.
func (i *importer) image(ctx context.Context, desc ispec.Descriptor, depth int) (int, error) {
	if err := i.count.Add(1, depth); err != nil {
		return 0, err
	}
	if desc.Platform != nil && !i.match.Match(*desc.Platform) {
		return 0, nil
	}
	if !image.IsManifest(desc.MediaType) && !image.IsIndex(desc.MediaType) {
		return 0, nil
	}
	doc, err := i.read(ctx, desc, image.MaxManifest)
	if err != nil {
		if errdefs.IsNotFound(err) && depth > 0 {
			return 0, nil
		}
		return 0, err
	}
	children, err := image.ChildrenOf(doc, desc.MediaType)
	if err != nil {
		return 0, err
	}
	if err := content.AddLabels(ctx, i.stores.Content, desc.Digest, i.childLabels(children)); err != nil {
		return 0, err
	}
	if image.IsManifest(desc.MediaType) {
		return 1, i.unpack(ctx, desc, doc)
	}
	wanted := 0
	for _, c := range children {
		n, err := i.image(ctx, c, depth+1)
		if err != nil {
			return wanted, err
		}
		wanted += n
	}
	return wanted, nil
}

func (i *importer) unpack(ctx context.Context, desc ispec.Descriptor, doc []byte) error {
	m, err := image.ParseManifest(doc, desc.MediaType)
	if err != nil || len(i.to.Unpacks) == 0 || !image.IsConfig(m.Config.MediaType) {
		return err
	}
	cfg, err := image.ReadConfig(ctx, i.read, m.Config)
	if err != nil {
		return err
	}
	platform := platforms.Normalize(cfg.Platform)
	for _, u := range i.to.Unpacks {
		if platforms.Only(u.Platform).Match(platform) {
			return i.unpackChain(ctx, u.Snapshotter, m.Config, cfg, m.Layers, nil, nil)
		}
	}
	return nil
}

// names makes the image records of an archive: the index under the target's
// own name, each image under what its annotations and the references say.
func (i *importer) names(target ispec.Descriptor, idx ispec.Index) []object.Image {
	var out []object.Image
	seen := map[string]bool{}
	add := func(name string, desc ispec.Descriptor, labels map[string]string) {
		if name == "" || seen[name] {
			return
		}
		seen[name] = true
		out = append(out, object.Image{Name: name, Target: desc, Labels: labels})
	}
	for _, img := range i.to.records(target) {
		add(img.Name, img.Target, img.Labels)
	}
	for _, m := range idx.Manifests {
		if _, refers := m.Annotations[image.AnnotationSubject]; refers {
			continue
		}
		if m.Platform != nil && !i.match.Match(*m.Platform) {
			continue
		}
		for _, ref := range i.to.ExtraReferences {
			if !ref.IsPrefix {
				continue
			}
			name := ref.apply(m.Annotations)
			add(name, m, i.to.extraLabels())
			if ref.AddDigest && (name == "" || !ref.SkipNamedDigest) {
				add(ref.Name+"@"+m.Digest.String(), m, i.to.extraLabels())
			}
		}
	}
	return out
}
