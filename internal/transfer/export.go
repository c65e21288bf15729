package transfer

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/transfer/report"
	"berth/internal/transfer/ring"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ExportOptions refines Export.
type ExportOptions struct {
	// MediaType of the stream; a tar archive when empty, and nothing else.
	MediaType string
	// Platforms to export; the one of the host when there is none.
	Platforms    []ispec.Platform
	AllPlatforms bool
	// SkipDockerManifest leaves manifest.json out.
	SkipDockerManifest bool
	// SkipNonDistributable leaves foreign layers out.
	SkipNonDistributable bool
}

// Export writes images as an OCI layout with a docker-save manifest. The
// archive of the same images is the same, byte for byte. Blobs are verified
// while they are written; an error leaves the archive cut short.
func (s *Service) Export(ctx context.Context, namespace string, images []string, w io.Writer, opts ExportOptions, progress ProgressFunc) error {
	if opts.MediaType != "" && opts.MediaType != "application/x-tar" && opts.MediaType != "application/tar" {
		return fmt.Errorf("export as %q: only tar archives are written: %w", opts.MediaType, errdefs.ErrInvalidArgument)
	}
	if len(images) == 0 {
		return fmt.Errorf("export of no image: %w", errdefs.ErrInvalidArgument)
	}
	rep := report.New(progress, images[0], "exporting")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, "", rep)
	if err != nil {
		return err
	}
	defer end()
	rep.Say("Exporting")
	e := &export{session: x, opts: opts, blobs: map[digest.Digest]ispec.Descriptor{}, docker: map[digest.Digest]*dockerImage{}}
	e.match = platforms.DefaultStrict()
	if len(opts.Platforms) > 0 {
		e.match = platforms.Ordered(opts.Platforms...)
	}
	for _, name := range images {
		img, err := x.stores.Images.Get(ctx, name)
		if err != nil {
			return err
		}
		if err := e.add(ctx, img); err != nil {
			return fmt.Errorf("export %q: %w", name, err)
		}
	}
	if err := e.write(ctx, w); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	rep.Say("Completed export")
	return nil
}

type export struct {
	*session
	opts  ExportOptions
	match platforms.MatchComparer

	job    *report.Job
	index  []ispec.Descriptor
	blobs  map[digest.Digest]ispec.Descriptor
	docker map[digest.Digest]*dockerImage // by manifest
	order  []digest.Digest                // of docker
}

// dockerImage is an element of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func blobName(d digest.Digest) string {
	return path.Join(ispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// add collects an image: its descriptor for index.json and its blobs.
func (e *export) add(ctx context.Context, img object.Image) error {
	info, err := e.stores.Content.Info(ctx, img.Target.Digest)
	if err != nil {
		return err
	}
	desc := img.Target
	desc.Annotations = maps.Clone(desc.Annotations)
	if desc.Annotations == nil {
		desc.Annotations = map[string]string{}
	}
	maps.Copy(desc.Annotations, image.SourceLabels(info.Labels))
	desc.Annotations[image.AnnotationName] = img.Name
	desc.Annotations[ispec.AnnotationRefName] = image.RefName(img.Name)
	e.index = append(e.index, desc)

	switch {
	case image.IsManifest(desc.MediaType):
		if err := e.tree(ctx, img.Target); err != nil {
			return err
		}
		return e.dockerTag(ctx, img.Target, img.Name)
	case image.IsIndex(desc.MediaType):
		return e.addIndex(ctx, img)
	}
	return fmt.Errorf("%s is of type %q: only images can be exported: %w", desc.Digest, desc.MediaType, errdefs.ErrInvalidArgument)
}

func (e *export) addIndex(ctx context.Context, img object.Image) error {
	doc, err := e.read(ctx, img.Target, image.MaxManifest)
	if err != nil {
		return err
	}
	idx, err := image.ParseIndex(doc, img.Target.MediaType)
	if err != nil {
		return err
	}
	e.blobs[img.Target.Digest] = img.Target
	chosen := image.Choose(idx.Manifests, e.match)
	if len(chosen) == 0 && !e.opts.AllPlatforms {
		return fmt.Errorf("it has no manifest for the wanted platform, only for %s: %w", available(idx.Manifests), errdefs.ErrNotFound)
	}
	all := chosen
	if e.opts.AllPlatforms {
		all = idx.Manifests
	}
	for _, m := range all {
		if err := e.tree(ctx, m); err != nil {
			return err
		}
	}
	for _, m := range chosen {
		if image.IsManifest(m.MediaType) {
			return e.dockerTag(ctx, m, img.Name)
		}
	}
	return nil
}

// tree collects the blobs below a descriptor.
func (e *export) tree(ctx context.Context, desc ispec.Descriptor) error {
	return image.Walk(ctx, e.read, desc, func(d ispec.Descriptor) error {
		if e.opts.SkipNonDistributable && image.IsNonDistributable(d.MediaType) {
			return nil
		}
		info, err := e.stores.Content.Info(ctx, d.Digest)
		if err != nil {
			return err
		}
		d.Size = info.Size
		e.blobs[d.Digest] = d
		return nil
	})
}

// dockerTag lists an image in manifest.json as well.
func (e *export) dockerTag(ctx context.Context, desc ispec.Descriptor, name string) error {
	di := e.docker[desc.Digest]
	if di == nil {
		doc, err := e.read(ctx, desc, image.MaxManifest)
		if err != nil {
			return err
		}
		m, err := image.ParseManifest(doc, desc.MediaType)
		if err != nil {
			return err
		}
		di = &dockerImage{Config: blobName(m.Config.Digest)}
		for _, l := range m.Layers {
			di.Layers = append(di.Layers, blobName(l.Digest))
		}
		e.docker[desc.Digest], e.order = di, append(e.order, desc.Digest)
	}
	// A name that Docker would not take is left out there; index.json has it.
	if n, err := image.ParseDockerName(name); err == nil {
		di.RepoTags = append(di.RepoTags, n.Tagged().Familiar())
	}
	return nil
}

func (e *export) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	algorithms, size := map[string]bool{}, int64(0)
	for d, desc := range e.blobs {
		algorithms[d.Algorithm().String()] = true
		size += desc.Size
	}
	e.job = e.rep.Stream("", size)
	dir := func(name string) error {
		return tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir})
	}
	if err := dir(ispec.ImageBlobsDir + "/"); err != nil {
		return err
	}
	for _, a := range slices.Sorted(maps.Keys(algorithms)) {
		if err := dir(ispec.ImageBlobsDir + "/" + a + "/"); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(e.blobs)) {
		if err := e.writeBlob(ctx, tw, e.blobs[d]); err != nil {
			return err
		}
	}
	index := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: e.index}
	if err := writeJSON(tw, ispec.ImageIndexFile, 0o644, index); err != nil {
		return err
	}
	if !e.opts.SkipDockerManifest && len(e.order) > 0 {
		var list []*dockerImage
		for _, d := range e.order {
			list = append(list, e.docker[d])
		}
		if err := writeJSON(tw, "manifest.json", 0o644, list); err != nil {
			return err
		}
	}
	if err := writeJSON(tw, ispec.ImageLayoutFile, 0o444, ispec.ImageLayout{Version: ispec.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	e.job.Done("complete")
	return nil
}

func (e *export) writeBlob(ctx context.Context, tw *tar.Writer, desc ispec.Descriptor) error {
	ra, err := e.stores.Content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	if err := tw.WriteHeader(&tar.Header{Name: blobName(desc.Digest), Mode: 0o444, Size: ra.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	verify := desc.Digest.Verifier()
	if err := copyAt(ctx, io.MultiWriter(tw, verify), ra, e.job); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	if !verify.Verified() {
		return fmt.Errorf("blob %s in the store is damaged: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	return nil
}

func copyAt(ctx context.Context, w io.Writer, ra content.ReaderAt, job *report.Job) error {
	buf := make([]byte, ring.Size)
	_, err := io.CopyBuffer(w, struct{ io.Reader }{job.Reader(ctx, io.NewSectionReader(ra, 0, ra.Size()))}, buf)
	return err
}

func writeJSON(tw *tar.Writer, name string, mode int64, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err = tw.Write(b)
	return err
}
