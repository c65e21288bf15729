package transfer

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/failpoint"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/trace"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Labels of the snapshots of layers.
const (
	labelDiffID      = "containerd.io/snapshot/diff-id"
	labelParentChain = "containerd.io/snapshot/parent-chain-id"
	inheritedPrefix  = "containerd.io/snapshot/"
)

// chain is the stack of an image's layers on its way into a snapshotter.
type chain struct {
	x       *session
	name    string // of the snapshotter
	sn      snapshot.Backend
	rebase  bool
	layers  []ispec.Descriptor
	diffIDs []digest.Digest
	ids     []digest.Digest // chain IDs
	from    source          // nil: the layers are in the store
	labels  labelsFor
	// done[i] is closed when layer i is committed.
	done []chan struct{}
}

// unpackChain fetches the layers of a manifest and makes their chain of
// snapshots, all layers at once as far as the snapshotter can do that; what the
// manifest lists among them that is no layer is left alone. A layer
// becomes a snapshot only when its diff ID is right and its parent is there.
func (x *session) unpackChain(ctx context.Context, snapshotter string, config ispec.Descriptor, cfg image.Config, layers []ispec.Descriptor, from source, labels labelsFor) error {
	name, sn, err := x.snapshotter(x.stores, snapshotter)
	if err != nil {
		return err
	}
	layers = slices.DeleteFunc(slices.Clone(layers), func(l ispec.Descriptor) bool { return !image.IsLayer(l.MediaType) })
	if len(layers) != len(cfg.RootFS.DiffIDs) {
		return fmt.Errorf("manifest has %d layers, but its config %s lists %d diff IDs: %w", len(layers), config.Digest, len(cfg.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	c := &chain{
		x: x, name: name, sn: sn, rebase: x.stores.Applier == nil && slices.Contains(sn.Capabilities(), "rebase"),
		layers: layers, diffIDs: cfg.RootFS.DiffIDs, ids: image.ChainIDs(cfg.RootFS.DiffIDs),
		from: from, labels: labels, done: make([]chan struct{}, len(layers)),
	}
	for i := range c.done {
		c.done[i] = make(chan struct{})
	}
	if len(layers) == 0 {
		return nil
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	// The config keeps the chain as long as the image is there.
	x.mustSync(name, sn, chainLabel{config.Digest, map[string]string{image.SnapshotLabel(name): c.ids[len(c.ids)-1].String()}})
	return nil
}

func (c *chain) run(ctx context.Context) error {
	for _, l := range c.layers {
		c.x.rep.Job(l)
	}
	missing := len(c.layers)
	for ; missing > 0; missing-- {
		there, err := holds(ctx, c.sn, c.ids[missing-1].String())
		if err != nil {
			return err
		}
		if there {
			break
		}
	}
	// The largest layers begin first: they take longest, and beside them the
	// small ones fill the gaps.
	order := make([]int, 0, len(c.layers))
	for i := range c.layers {
		if i < missing {
			close(c.done[i])
		}
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(c.layers[b].Size, c.layers[a].Size) })
	g, gctx := errgroup.WithContext(ctx)
	for _, i := range order {
		if err := c.x.downloads.Acquire(gctx, 1); err != nil {
			break // a layer failed, or the transfer was cancelled
		}
		slot := &slot{sem: c.x.downloads, held: true}
		g.Go(func() error {
			defer slot.release()
			if i < missing {
				return c.complete(gctx, i)
			}
			if err := c.layer(gctx, i, slot); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			close(c.done[i])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// complete fetches the blob of a layer whose snapshot is there, so that the
// image can be exported, pushed and checked.
//
// A snapshotter that keeps no files here gets its layers on its own, by
// reference: for it nothing is fetched.
func (c *chain) complete(ctx context.Context, i int) error {
	if c.from == nil || c.sn.Root() == "" {
		return nil
	}
	_, err := c.x.fetch(ctx, fetchPlan{desc: c.layers[i], from: c.from, labels: c.labels, job: c.x.rep.Job(c.layers[i])})
	return err
}

// layer makes one snapshot of the chain.
func (c *chain) layer(ctx context.Context, i int, slot *slot) error {
	id := c.ids[i].String()
	key := "snapshot " + c.x.namespace + " " + c.name + " " + id
	unlock, _, ok := c.x.locks.TryLock(key)
	if !ok {
		// Another transfer makes this very snapshot. Wait without a slot, which
		// its own layers may need.
		slot.release()
		var err error
		if unlock, err = c.x.locks.Lock(ctx, key); err != nil {
			return err
		}
		if err := slot.acquire(ctx); err != nil {
			unlock()
			return err
		}
	}
	defer unlock()

	if !c.rebase && i > 0 && !c.committed(i-1) {
		// The snapshotter can only build upwards: fetch now, unpack when it is
		// this layer's turn.
		if err := c.fetchOnly(ctx, i); err != nil {
			return err
		}
		slot.release()
		if err := c.await(ctx, i-1); err != nil {
			return err
		}
	}
	l := &layerWork{chain: c, i: i, desc: c.layers[i], job: c.x.rep.Job(c.layers[i])}
	exists, err := l.prepare(ctx)
	if err != nil {
		return err
	}
	if exists {
		return c.complete(ctx, i)
	}
	failpoint.Hit("transfer.layer.prepared")
	out, err := l.unpack(ctx)
	failpoint.Hit("transfer.layer.unpacked")
	slot.release()
	if err == nil {
		err = l.commit(ctx, out)
	}
	if err != nil {
		return first(err, undo(ctx, l.remove))
	}
	failpoint.Hit("transfer.layer.committed")
	l.job.Done("extracted")
	return nil
}

func (c *chain) fetchOnly(ctx context.Context, i int) error {
	if c.from == nil {
		return nil
	}
	_, err := c.x.fetch(ctx, fetchPlan{desc: c.layers[i], from: c.from, labels: c.labels, job: c.x.rep.Job(c.layers[i])})
	return err
}

func (c *chain) committed(i int) bool {
	select {
	case <-c.done[i]:
		return true
	default:
		return false
	}
}

func (c *chain) await(ctx context.Context, i int) error {
	select {
	case <-c.done[i]:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// layerWork is one layer being unpacked.
type layerWork struct {
	*chain
	i      int
	desc   ispec.Descriptor
	job    *report.Job
	key    string // of the active snapshot, empty when there is none
	mounts []object.Mount
	// apart: the snapshot has no parent until its commit, though it will get one.
	apart bool
	out   diff.Unpacked
}

// snapshotLabels are what a snapshotter may know of a layer: what the manifest
// says in annotations for snapshotters, the chain ID to come, the diff ID.
// ID mappings are left out: an image must not choose owners on the host.
func (l *layerWork) snapshotLabels() map[string]string {
	labels := map[string]string{}
	for k, v := range l.desc.Annotations {
		if strings.HasPrefix(k, inheritedPrefix) && k != snapshot.LabelUIDMapping && k != snapshot.LabelGIDMapping && len(k)+len(v) <= 4096 {
			labels[k] = v
		}
	}
	labels[snapshot.LabelRef] = l.ids[l.i].String()
	labels[labelDiffID] = l.diffIDs[l.i].String()
	if l.i > 0 {
		labels[labelParentChain] = l.ids[l.i-1].String()
	}
	return labels
}

// holds tells whether the committed snapshot is there, and then has the transfer's
// lease hold it, with its parents: what an earlier transfer left is garbage until
// an image names it, and may go at any time. To be told that what one is about to
// prepare is there already is how a lease takes hold of it.
func holds(ctx context.Context, sn snapshot.Snapshotter, id string) (bool, error) {
	there := func() (bool, error) {
		_, err := sn.Stat(ctx, id)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	if ok, err := there(); !ok {
		return false, err
	}
	key := "hold-" + rand.Text()[:16] + " " + id
	_, err := sn.Prepare(ctx, key, "", map[string]string{snapshot.LabelRef: id})
	if errdefs.IsAlreadyExists(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("hold snapshot %s: %w", id, err)
	}
	// It has gone meanwhile, or the snapshotter knows no leases.
	if err := sn.Remove(context.WithoutCancel(ctx), key); err != nil {
		return false, err
	}
	return there()
}

// prepare makes the active snapshot; exists tells that the committed one is there.
func (l *layerWork) prepare(ctx context.Context) (exists bool, err error) {
	ctx, span := trace.Start(ctx, "snapshot.prepare")
	defer func() { span.End(err) }()
	id := l.ids[l.i].String()
	parent := ""
	if l.i > 0 {
		if l.apart = l.rebase; !l.apart {
			parent = l.ids[l.i-1].String()
		}
	}
	for range 3 {
		if there, err := holds(ctx, l.sn, id); err != nil || there {
			return there, err
		}
		key := "extract-" + rand.Text()[:16] + " " + id
		l.mounts, err = l.sn.Prepare(ctx, key, parent, l.snapshotLabels())
		if err == nil {
			l.key = key
			return false, nil
		}
		if !errdefs.IsAlreadyExists(err) {
			return false, fmt.Errorf("prepare a snapshot for it: %w", err)
		}
	}
	return false, fmt.Errorf("prepare a snapshot for it: %w", err)
}

// unpack fills the snapshot, while the layer is fetched or from the store.
func (l *layerWork) unpack(ctx context.Context) (_ diff.Unpacked, err error) {
	ctx, span := trace.Start(ctx, "unpack.layer", trace.String("digest", l.desc.Digest.String()), trace.Int("size", l.desc.Size), trace.Int("layer", l.i))
	defer func() { span.End(err) }()
	want := l.diffIDs[l.i]
	if l.from == nil {
		return l.unpackStored(ctx)
	}
	if l.x.stores.Applier != nil {
		if err := l.fetchOnly(ctx, l.i); err != nil {
			return diff.Unpacked{}, err
		}
		return l.unpackStored(ctx)
	}
	plan := fetchPlan{desc: l.desc, from: l.from, job: l.job, labels: l.labels}
	if l.x.unpacks.TryAcquire(1) {
		plan.proven = uncompressed(l.desc, want)
		plan.consume = func(ctx context.Context, r io.Reader) (err error) {
			l.out, err = l.x.unpackFrom(ctx, r, l.desc, l.mounts, l.apart, want)
			return err
		}
		plan.reset = func(ctx context.Context) error {
			if err := l.remove(ctx); err != nil {
				return err
			}
			if exists, err := l.prepare(ctx); err != nil || !exists {
				return err
			}
			// A client has made it: there is nothing to unpack into.
			return fmt.Errorf("snapshot %s was made by somebody else meanwhile: %w", l.ids[l.i], errdefs.ErrUnavailable)
		}
		streamed, err := l.x.fetch(ctx, plan)
		l.x.unpacks.Release(1)
		if err != nil || streamed {
			return l.out, err
		}
	} else if _, err := l.x.fetch(ctx, plan); err != nil {
		return diff.Unpacked{}, err
	}
	return l.unpackStored(ctx)
}

func (l *layerWork) unpackStored(ctx context.Context) (diff.Unpacked, error) {
	if err := l.x.unpacks.Acquire(ctx, 1); err != nil {
		return diff.Unpacked{}, err
	}
	defer l.x.unpacks.Release(1)
	want := l.diffIDs[l.i]
	out, err := l.x.unpackStored(ctx, l.desc, l.mounts, l.apart, want, l.job)
	if err != nil {
		return out, err
	}
	return out, content.AddLabels(ctx, l.x.stores.Content, l.desc.Digest, uncompressed(l.desc, want))
}

// uncompressed is the label that remembers a layer's diff ID. It is for a diff
// ID that has been verified: others go by it, and the blob is theirs, too.
func uncompressed(desc ispec.Descriptor, diffID digest.Digest) map[string]string {
	if desc.Digest == diffID {
		return nil
	}
	return map[string]string{image.LabelUncompressed: diffID.String()}
}

// commit puts the layer onto its parent.
func (l *layerWork) commit(ctx context.Context, out diff.Unpacked) (err error) {
	ctx, span := trace.Start(ctx, "snapshot.commit")
	defer func() { span.End(err) }()
	opts := snapshot.CommitOptions{Labels: l.snapshotLabels()}
	if l.apart {
		if err := l.await(ctx, l.i-1); err != nil {
			return err
		}
		opts.Parent = l.ids[l.i-1].String()
		if len(out.Implied) > 0 {
			if err := l.fixImplied(ctx, out.Implied); err != nil {
				return err
			}
		}
	}
	err = l.sn.Commit(ctx, l.ids[l.i].String(), l.key, opts)
	if errdefs.IsAlreadyExists(err) {
		return undo(ctx, l.remove)
	}
	if err != nil {
		return fmt.Errorf("commit its snapshot: %w", err)
	}
	l.key = ""
	return nil
}

// fixImplied gives directories that the layer only passes through the
// attributes that they have below.
func (l *layerWork) fixImplied(ctx context.Context, implied []string) error {
	view := "implied-" + rand.Text()[:16] + " " + l.ids[l.i].String()
	parents, err := l.sn.View(ctx, view, l.ids[l.i-1].String(), nil)
	if err != nil {
		return fmt.Errorf("look at its parents: %w", err)
	}
	err = l.x.opts.Differ.FixImplied(ctx, l.mounts, parents, implied)
	return first(err, undo(ctx, func(ctx context.Context) error { return l.sn.Remove(ctx, view) }))
}

// remove takes the active snapshot away, if there is one.
func (l *layerWork) remove(ctx context.Context) error {
	if l.key == "" {
		return nil
	}
	err := l.sn.Remove(ctx, l.key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the unfinished snapshot: %w", err)
	}
	l.key = ""
	return nil
}

// slot is one of the downloads that may run at a time.
type slot struct {
	sem interface {
		Acquire(context.Context, int64) error
		Release(int64)
	}
	held bool
}

func (s *slot) acquire(ctx context.Context) error {
	if err := s.sem.Acquire(ctx, 1); err != nil {
		return err
	}
	s.held = true
	return nil
}

func (s *slot) release() {
	if s.held {
		s.held = false
		s.sem.Release(1)
	}
}

// Unpack makes the chain of snapshots of an image's manifest for a platform
// from what is in the store. errdefs.ErrNotFound when a part of it is missing.
func (s *Service) Unpack(ctx context.Context, namespace, lease string, img object.Image, target UnpackTarget, progress ProgressFunc) error {
	rep := report.New(progress, img.Name, "downloading")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, lease, rep)
	if err != nil {
		return err
	}
	defer end()
	p := target.Platform
	if p.OS == "" && p.Architecture == "" {
		p = platforms.DefaultSpec()
	}
	_, m, err := image.Manifest(ctx, x.read, img.Target, platforms.Only(p))
	if err != nil {
		return fmt.Errorf("image %q for %s: %w", img.Name, platforms.FormatAll(p), err)
	}
	cfg, err := image.ReadConfig(ctx, x.read, m.Config)
	if err != nil {
		return fmt.Errorf("image %q: %w", img.Name, err)
	}
	if err := x.unpackChain(ctx, target.Snapshotter, m.Config, cfg, m.Layers, nil, nil); err != nil {
		return fmt.Errorf("unpack image %q: %w", img.Name, err)
	}
	return x.barrier(ctx)
}
