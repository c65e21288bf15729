package transfer

import (
	"context"
	"fmt"
	"io"
	"slices"

	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushOptions refines a push.
type PushOptions struct {
	// Platforms limit what is sent of an index; none means all.
	Platforms []ispec.Platform
	// NonDistributable sends layers that are marked as not to be distributed.
	NonDistributable bool
}

// Push sends an image to the registry that the remote names: blobs first, at
// the same time, then manifests, from the leaves to the root, which gets the
// tag. platforms limit what is sent of an index; none means all.
// errdefs.ErrNotFound, before anything is sent, when a part is neither in the
// store nor at the registry, where it may come from another repository.
func (s *Service) Push(ctx context.Context, namespace, lease string, name string, ps []ispec.Platform, to *registry.Remote, progress ProgressFunc) error {
	img, err := s.opts.Scope(namespace, lease).Images.Get(ctx, name)
	if err != nil {
		to.Close()
		return err
	}
	return s.PushTarget(ctx, namespace, lease, img, PushOptions{Platforms: ps}, to, progress)
}

// PushTarget is Push of what the image names, which need not be recorded; its
// name is for reports and errors.
func (s *Service) PushTarget(ctx context.Context, namespace, lease string, img object.Image, opts PushOptions, to *registry.Remote, progress ProgressFunc) error {
	rep := report.New(progress, img.Name, "uploading")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, lease, rep)
	if err != nil {
		return err
	}
	defer end()
	defer to.Close()
	rep.Say("Pushing to " + to.String())
	rep.Image("pushing content", img.Name, &img.Target)
	var match platforms.MatchComparer = platforms.All
	if len(opts.Platforms) > 0 {
		match = platforms.Any(opts.Platforms...)
	}
	p := &push{session: x, to: to, root: img.Target, everything: opts.NonDistributable}
	if err := p.collect(ctx, img.Target, match); err != nil {
		return fmt.Errorf("push %q: %w", img.Name, err)
	}
	if err := p.send(ctx); err != nil {
		return fmt.Errorf("push %q: %w", img.Name, err)
	}
	rep.Image("pushed content", img.Name, &img.Target)
	rep.Say("Completed push to " + to.String())
	return nil
}

type push struct {
	*session
	to   *registry.Remote
	root ispec.Descriptor
	// everything: non-distributable layers too.
	everything bool
	blobs      []ispec.Descriptor
	// absent are blobs that are not in the store.
	absent []absentBlob
	// documents are manifests and indexes, each after all that it names.
	documents []ispec.Descriptor
}

// absentBlob is one with the document that names it, whose labels tell where it
// came from.
type absentBlob struct {
	desc   ispec.Descriptor
	parent digest.Digest
}

// collect lists what is to be sent.
func (p *push) collect(ctx context.Context, target ispec.Descriptor, match platforms.MatchComparer) error {
	seen := map[digest.Digest]bool{}
	var visit func(desc ispec.Descriptor, parent digest.Digest, depth int) error
	visit = func(desc ispec.Descriptor, parent digest.Digest, depth int) error {
		if depth > image.MaxDepth || len(seen) > image.MaxReferences {
			return fmt.Errorf("image is too deep or names too much: %w", errdefs.ErrResourceExhausted)
		}
		again := seen[desc.Digest]
		seen[desc.Digest] = true
		if !image.IsManifest(desc.MediaType) && !image.IsIndex(desc.MediaType) {
			if again || image.IsNonDistributable(desc.MediaType) && !p.everything {
				return nil
			}
			ok, err := p.exists(ctx, desc.Digest)
			if ok {
				p.blobs = append(p.blobs, desc)
			} else if err == nil {
				p.absent = append(p.absent, absentBlob{desc, parent})
			}
			return err
		}
		if again {
			return nil
		}
		children, err := image.Children(ctx, p.read, desc)
		if errdefs.IsNotFound(err) {
			err = incomplete(desc)
		}
		if err != nil {
			return err
		}
		p.rep.Children(desc, children)
		p.rep.Job(desc)
		for _, c := range children {
			if image.IsIndex(desc.MediaType) && c.Platform != nil && !match.Match(*c.Platform) {
				continue
			}
			if err := visit(c, desc.Digest, depth+1); err != nil {
				return err
			}
		}
		p.documents = append(p.documents, desc)
		return nil
	}
	return visit(target, "", 0)
}

// incomplete is the error of an image of which a part is not here.
func incomplete(desc ispec.Descriptor) error {
	return fmt.Errorf("%s (%s) is not in the store; pull the image with all its platforms, or push a platform that is complete: %w", desc.Digest, desc.MediaType, errdefs.ErrNotFound)
}

func (p *push) send(ctx context.Context) error {
	slices.SortStableFunc(p.blobs, func(a, b ispec.Descriptor) int { return int(min(1, max(-1, b.Size-a.Size))) })
	// What is not here first: the push is in vain if it is not there either.
	err := each(ctx, p.opts.MaxUploads, p.absent, func(ctx context.Context, a absentBlob) error { return p.mount(ctx, a) })
	if err != nil {
		return err
	}
	for _, d := range p.blobs {
		p.rep.Job(d) // all that wait are shown
	}
	err = each(ctx, p.opts.MaxUploads, p.blobs, func(ctx context.Context, d ispec.Descriptor) error { return p.one(ctx, d, p.rep.Job(d)) })
	if err != nil {
		return err
	}
	for _, d := range p.documents {
		if err := p.one(ctx, d, p.rep.Job(d)); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for all, some at a time, until one fails.
func each[T any](ctx context.Context, limit int, all []T, fn func(context.Context, T) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(limit)
	for _, t := range all {
		g.Go(func() error { return fn(gctx, t) })
	}
	return g.Wait()
}

// mount has the registry take a blob that is not here from where it came from,
// as when an image of which one platform was pulled gets another name there.
func (p *push) mount(ctx context.Context, a absentBlob) error {
	var labels map[string]string
	if a.parent != "" {
		info, err := p.stores.Content.Info(ctx, a.parent)
		if err != nil {
			return err
		}
		labels = info.Labels
	}
	ref := p.to.Reference()
	_, err := p.to.Push(ctx, registry.Upload{Desc: a.desc, MountFrom: image.MountCandidate(ref.Hostname(), ref.Repository, labels)})
	if errdefs.IsNotFound(err) {
		return incomplete(a.desc)
	}
	if err == nil {
		p.rep.Job(a.desc).Done("already exists")
	}
	return err
}

// one sends one blob or document, unless the registry has it.
func (p *push) one(ctx context.Context, desc ispec.Descriptor, j *report.Job) error {
	info, err := p.stores.Content.Info(ctx, desc.Digest)
	if err != nil {
		return err
	}
	ref := p.to.Reference()
	existed, err := p.to.Push(ctx, registry.Upload{
		Desc:      desc,
		Tag:       desc.Digest == p.root.Digest,
		MountFrom: image.MountCandidate(ref.Hostname(), ref.Repository, info.Labels),
		Open: func() (io.ReadCloser, error) {
			ra, err := p.stores.Content.ReaderAt(ctx, desc)
			if err != nil {
				return nil, err
			}
			j.Set(0)
			return &upload{Reader: j.Reader(ctx, io.NewSectionReader(ra, 0, desc.Size)), Closer: ra}, nil
		},
	})
	if err != nil {
		return err
	}
	if existed {
		j.Done("already exists")
	} else {
		j.Done("complete")
	}
	return nil
}

type upload struct {
	io.Reader
	io.Closer
}
