package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/image"
	"berth/internal/spec"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// store is what a daemon has, gathered namespace by namespace.
type store struct {
	*checker
	cmd        *cli.Command
	s          *session
	files      bool // compare them with their layers
	blobs      map[string]*storedBlob
	namespaces []*storedNamespace
}

// storedBlob is one that some namespaces have. What is wrong with it is found once.
type storedBlob struct {
	desc   ispec.Descriptor
	labels map[string]map[string]string // by namespace
	refs   []string                     // names of images that need it
	bad    *finding
}

type storedNamespace struct {
	name      string
	lease     string // keeps views that are made for looking from the collector
	s         *session
	images    []storedImage
	snapshots map[string]map[string]snapshotView // by snapshotter and key
}

type storedImage struct {
	name   string
	target ispec.Descriptor
}

func (n *storedNamespace) in(ctx context.Context) context.Context {
	return withLease(withNamespace(ctx, n.name), n.lease)
}

// close ends the leases.
func (st *store) close(ctx context.Context) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	for _, n := range st.namespaces {
		deleteLease(withNamespace(ctx, n.name), n.s, n.lease, false)
	}
}

// gather lists what a namespace has.
func (st *store) gather(ctx context.Context, name string) error {
	n := &storedNamespace{
		name: name, lease: leaseID(), s: &session{ClientConn: st.s.ClientConn, namespace: name}, snapshots: map[string]map[string]snapshotView{},
	}
	if err := createLease(withNamespace(ctx, name), n.s, n.lease); err != nil {
		return err
	}
	ctx = n.in(ctx)
	st.namespaces = append(st.namespaces, n)
	if err := n.s.walkBlobs(ctx, nil, func(b blobView) error {
		blob := st.blobs[b.Digest]
		if blob == nil {
			blob = &storedBlob{desc: ispec.Descriptor{Digest: digest.Digest(b.Digest), Size: b.Size}, labels: map[string]map[string]string{}}
			st.blobs[b.Digest] = blob
		}
		blob.labels[name] = b.Labels
		return nil
	}); err != nil {
		return fmt.Errorf("listing blobs: %w", err)
	}
	images, err := listImages(ctx, n.s, nil)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	for _, img := range images {
		n.images = append(n.images, storedImage{img.Name, wire.DescriptorFromProto(img.Target)})
	}
	for _, sn := range snapshotterNames(ctx, n.s) {
		list, err := newSnapshotter(n.s, sn).list(ctx)
		if err != nil {
			return fmt.Errorf("listing snapshots of %s: %w", sn, err)
		}
		n.snapshots[sn] = map[string]snapshotView{}
		for _, v := range list {
			n.snapshots[sn][v.Name] = v
		}
	}
	return nil
}

// check looks at everything, what others are made of first.
func (st *store) check(ctx context.Context) error {
	if err := st.checkBlobs(ctx); err != nil {
		return err
	}
	for _, n := range st.namespaces {
		for _, fn := range []func(context.Context, *storedNamespace) error{
			st.checkImages, st.checkSnapshots, st.checkContainers, st.checkLeases, st.checkDownloads,
		} {
			if err := fn(n.in(ctx), n); err != nil {
				return fmt.Errorf("namespace %s: %w", n.name, err)
			}
		}
	}
	return nil
}

// checkBlobs hashes every blob once.
func (st *store) checkBlobs(ctx context.Context) error {
	var total, done int64
	for _, b := range st.blobs {
		total += b.desc.Size
	}
	for i, name := range slices.Sorted(maps.Keys(st.blobs)) {
		b := st.blobs[name]
		namespace := slices.Sorted(maps.Keys(b.labels))[0]
		st.status.At("blob %d of %d, %s of %s", i+1, len(st.blobs), output.Size(done), output.Size(total))
		problem, err := st.hash(withNamespace(ctx, namespace), b.desc)
		if err == nil && problem == fileMissing {
			// One that nothing needs may have been collected since it was listed.
			listed := false
			err = st.s.walkBlobs(withNamespace(ctx, namespace), []string{"digest==" + strconv.Quote(name)}, func(blobView) error {
				listed = true
				return nil
			})
			if err == nil && !listed {
				delete(st.blobs, name)
				continue
			}
		}
		if err != nil {
			return err
		}
		done += b.desc.Size
		if problem != "" {
			st.badBlob(b, problem)
		}
	}
	return nil
}

const fileMissing = "its file is missing"

// hash reads a blob; problem tells what is wrong with it, err why it is not known.
func (st *store) hash(ctx context.Context, desc ispec.Descriptor) (problem string, err error) {
	if !desc.Digest.Algorithm().Available() {
		return fmt.Sprintf("its digest algorithm %q is unknown", desc.Digest.Algorithm()), nil
	}
	if desc.Size == 0 && desc.Digest == desc.Digest.Algorithm().FromString("") {
		return "", nil // there is nothing to ask for
	}
	digester := desc.Digest.Algorithm().Digester()
	var n int64
	err = st.s.streamBlob(ctx, desc, func(b []byte) error {
		n += int64(len(b))
		_, err := digester.Hash().Write(b)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errdefs.IsUnavailable(err):
		return "", err
	case errdefs.IsNotFound(err):
		return fileMissing, nil
	case err != nil:
		return fmt.Sprintf("%d of its %d bytes can be read: %v", n, desc.Size, err), nil
	case n != desc.Size:
		return fmt.Sprintf("it has %d bytes, not %d", n, desc.Size), nil
	case digester.Digest() != desc.Digest:
		return fmt.Sprintf("its content has the digest %s", digester.Digest()), nil
	}
	return "", nil
}

func (st *store) badBlob(b *storedBlob, problem string) {
	b.bad = st.add(finding{Severity: damaged, Kind: "blob", Name: b.desc.Digest.String(), Problem: problem})
	b.bad.mend = func(ctx context.Context) (string, error) { return st.fetchAgain(ctx, b) }
}

// checkImages follows every image to its layers. An index may lack manifests of
// other platforms, and their layers: a pull fetches no more than the documents of
// those.
func (st *store) checkImages(ctx context.Context, n *storedNamespace) error {
	compared := map[string]bool{}
	for _, img := range n.images {
		st.status.At("image %s", img.name)
		w := walk{store: st, n: n, img: img, compared: compared}
		if err := w.follow(ctx, img.target, false, true); err != nil {
			return err
		}
		if w.found == 0 && st.whole(img.target.Digest) {
			st.add(finding{
				Severity: damaged, Kind: "image", Namespace: n.name, Name: img.name, Problem: "the manifests of all platforms are missing",
				Repair: fmt.Sprintf("pull it again: ctr -n %s images pull %s", n.name, img.name),
			})
		}
	}
	return nil
}

// whole tells whether a blob is there and not damaged.
func (st *store) whole(d digest.Digest) bool {
	b := st.blobs[d.String()]
	return b != nil && b.bad == nil
}

// walk goes through one image.
type walk struct {
	*store
	n        *storedNamespace
	img      storedImage
	found    int             // manifests, and what is no image
	compared map[string]bool // unpacked manifests that were compared with their files
}

// follow goes down from a descriptor. What is optional may be missing; of a
// manifest that is not wanted all but the config may.
func (st *walk) follow(ctx context.Context, desc ispec.Descriptor, optional, wanted bool) error {
	n, img := st.n, st.img
	b := st.blobs[desc.Digest.String()]
	if !b.in(n.name) {
		if optional {
			return nil
		}
		if b == nil {
			b = &storedBlob{desc: desc, labels: map[string]map[string]string{}}
			st.blobs[desc.Digest.String()] = b
		}
		b.labels[n.name] = nil
		if b.bad == nil {
			st.badBlob(b, "image "+img.name+" needs it, and it is missing")
			b.bad.Namespace = n.name
		}
	}
	b.desc.MediaType = desc.MediaType
	if !slices.Contains(b.refs, img.name) {
		b.refs = append(b.refs, img.name)
	}
	if b.bad != nil {
		st.found++ // it is counted there
		return nil
	}
	if !image.IsIndex(desc.MediaType) {
		st.found++
	}
	if !image.IsManifest(desc.MediaType) && !image.IsIndex(desc.MediaType) {
		return nil
	}
	children, err := image.Children(ctx, n.s.readBlob, desc)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		st.add(finding{
			Severity: damaged, Kind: "image", Namespace: n.name, Name: img.name, Problem: fmt.Sprintf("its document %s is no manifest: %v", desc.Digest, err),
			Repair: "it came so; remove the image",
		})
		return nil
	}
	if image.IsIndex(desc.MediaType) {
		fetched := st.fetched(ctx, children)
		for _, child := range children {
			if err := st.follow(ctx, child, true, fetched[child.Digest]); err != nil {
				return err
			}
		}
		return nil
	}
	unpacked := st.unpacked(n, children)
	for _, child := range children {
		// Layers of an unpacked image may have been discarded on purpose.
		optional := !wanted && !image.IsConfig(child.MediaType) || unpacked && image.IsLayer(child.MediaType) || image.IsNonDistributable(child.MediaType)
		if err := st.follow(ctx, child, optional, true); err != nil {
			return err
		}
	}
	if unpacked && st.files && !st.compared[desc.Digest.String()] {
		st.compared[desc.Digest.String()] = true
		return st.compareFiles(ctx, n, img, desc)
	}
	return nil
}

// fetched tells which parts of an index were fetched with their layers: those that
// have one which is in no other part (the empty layer is in many). When there is
// none it is the part for this host.
func (st *walk) fetched(ctx context.Context, parts []ispec.Descriptor) map[digest.Digest]bool {
	layers, users := map[digest.Digest][]ispec.Descriptor{}, map[digest.Digest]int{}
	for _, part := range parts {
		if !image.IsManifest(part.MediaType) || !st.blobs[part.Digest.String()].in(st.n.name) {
			continue
		}
		children, err := image.Children(ctx, st.n.s.readBlob, part)
		if err != nil {
			continue // follow reports it
		}
		layers[part.Digest] = children
		for _, child := range children {
			users[child.Digest]++
		}
	}
	out := map[digest.Digest]bool{}
	for part, children := range layers {
		for _, child := range children {
			if !image.IsConfig(child.MediaType) && users[child.Digest] == 1 && st.blobs[child.Digest.String()].in(st.n.name) {
				out[part] = true
			}
		}
		if st.unpacked(st.n, children) {
			out[part] = true
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, part := range parts {
		if layers[part.Digest] != nil && part.Platform != nil && platforms.Default().Match(*part.Platform) {
			out[part.Digest] = true
		}
	}
	return out
}

// in tells whether a namespace has the blob.
func (b *storedBlob) in(namespace string) bool {
	if b == nil {
		return false
	}
	_, ok := b.labels[namespace]
	return ok
}

// unpacked tells whether a manifest's config says that its layers are snapshots.
func (st *store) unpacked(n *storedNamespace, children []ispec.Descriptor) bool {
	for _, child := range children {
		b := st.blobs[child.Digest.String()]
		if b == nil || !image.IsConfig(child.MediaType) {
			continue
		}
		for label, chain := range b.labels[n.name] {
			if sn, ok := strings.CutPrefix(label, image.SnapshotLabel("")); ok {
				if _, ok := n.snapshots[sn][chain]; ok {
					return true
				}
			}
		}
	}
	return false
}

// checkSnapshots looks for parents and for directories.
func (st *store) checkSnapshots(ctx context.Context, n *storedNamespace) error {
	for _, name := range slices.Sorted(maps.Keys(n.snapshots)) {
		sn := newSnapshotter(n.s, name)
		parents := map[string]bool{}
		for _, v := range n.snapshots[name] {
			parents[v.Parent] = true
		}
		for _, key := range slices.Sorted(maps.Keys(n.snapshots[name])) {
			v := n.snapshots[name][key]
			st.status.At("snapshot %s of %s", key, name)
			problem := ""
			if _, ok := n.snapshots[name][v.Parent]; v.Parent != "" && !ok {
				problem = fmt.Sprintf("its parent %s is missing", v.Parent)
			} else if v.Kind != "Committed" || !parents[key] {
				// One that others stand on is seen through them.
				problem = st.checkDirectories(ctx, sn, key)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if problem != "" {
				f := st.add(finding{Severity: damaged, Kind: "snapshot", Namespace: n.name, Name: name + "/" + key, Problem: problem})
				if v.Kind == "Committed" {
					f.mend = func(ctx context.Context) (string, error) { return st.unpackAgain(n.in(ctx), n, name, v.Name) }
				} else {
					f.Repair = "what was written there is lost; remove the container that uses it, and this snapshot: ctr -n " + n.name + " snapshots --snapshotter " + name + " rm " + key
				}
			}
		}
	}
	return nil
}

// checkDirectories opens the directories of a snapshot, if it consists of some.
func (st *store) checkDirectories(ctx context.Context, sn snapshotter, key string) string {
	r, err := sn.readable(ctx, key)
	if errdefs.IsNotFound(err) && r.info.Name == "" {
		return "" // removed meanwhile
	}
	if err != nil {
		return fmt.Sprintf("it cannot be mounted: %v", err)
	}
	defer r.remove()
	root, err := spec.OpenRootfs(wire.MountsFromProto(r.mounts))
	if errdefs.IsNotImplemented(err) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	root.Close()
	return ""
}

// checkContainers looks for what records refer to.
func (st *store) checkContainers(ctx context.Context, n *storedNamespace) error {
	list, err := listContainers(ctx, n.s)
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, c := range list {
		bad := func(format string, args ...any) {
			st.add(finding{
				Severity: damaged, Kind: "container", Namespace: n.name, Name: c.ID, Problem: fmt.Sprintf(format, args...),
				Repair: fmt.Sprintf("remove it: ctr -n %s containers rm %s", n.name, c.ID),
			})
		}
		if c.SnapshotKey != "" {
			if snapshots, known := n.snapshots[c.Snapshotter]; !known {
				bad("it uses the snapshotter %q, which this daemon does not have", c.Snapshotter)
			} else if _, ok := snapshots[c.SnapshotKey]; !ok {
				bad("its snapshot %s of %s is missing", c.SnapshotKey, c.Snapshotter)
			}
		}
		if c.Spec == nil {
			bad("it has no spec")
		} else if c.Spec.TypeUrl == spec.TypeURL {
			if _, err := containerSpec(c); err != nil {
				bad("%v", err)
			}
		}
		if c.Sandbox != "" {
			if _, err := getSandbox(ctx, n.s, c.Sandbox); errdefs.IsNotFound(err) {
				bad("its sandbox %s is missing", c.Sandbox)
			}
		}
	}
	return nil
}

// checkLeases notes what leases hold that is not there: it does no harm.
func (st *store) checkLeases(ctx context.Context, n *storedNamespace) error {
	leases := leasesapi.NewLeasesClient(n.s)
	resp, err := leases.List(ctx, &leasesapi.ListRequest{})
	if err != nil {
		return fmt.Errorf("listing leases: %w", err)
	}
	for _, l := range resp.Leases {
		held, err := leases.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: l.ID})
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("resources of lease %s: %w", l.ID, err)
		}
		for _, r := range held.Resources {
			missing := false
			if sn, ok := strings.CutPrefix(r.Type, "snapshots/"); ok {
				_, there := n.snapshots[sn][r.ID]
				missing = !there
			} else if r.Type == "content" {
				missing = st.blobs[r.ID] == nil
			}
			if missing {
				st.add(finding{Severity: noted, Kind: "lease", Namespace: n.name, Name: l.ID, Problem: fmt.Sprintf("it holds the %s %s, which is not there", r.Type, r.ID)})
			}
		}
	}
	return nil
}

// abandoned is after how long a download is taken for given up.
const abandoned = 24 * time.Hour

func (st *store) checkDownloads(ctx context.Context, n *storedNamespace) error {
	content := contentapi.NewContentClient(n.s)
	resp, err := content.ListStatuses(ctx, &contentapi.ListStatusesRequest{})
	if err != nil {
		return fmt.Errorf("listing downloads: %w", err)
	}
	for _, i := range resp.Statuses {
		if age := time.Since(i.UpdatedAt.AsTime()); age > abandoned {
			f := st.add(finding{
				Severity: noted, Kind: "download", Namespace: n.name, Name: i.Ref,
				Problem: fmt.Sprintf("nobody has gone on with it for %s; it holds %s", age.Round(time.Hour), output.Size(i.Offset)),
			})
			f.mend = func(ctx context.Context) (string, error) {
				_, err := content.Abort(n.in(ctx), &contentapi.AbortRequest{Ref: i.Ref})
				return "dropped", ignoreNotFound(err)
			}
		}
	}
	return nil
}

// manifestOf reads an image's manifest and config, for comparing and unpacking.
func (n *storedNamespace) manifestOf(ctx context.Context, img storedImage, desc ispec.Descriptor) (resolved, error) {
	r := resolved{name: img.name, target: desc}
	return r, r.read(ctx, n.s, platforms.All)
}
