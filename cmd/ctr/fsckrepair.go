package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/registry"
	"berth/internal/remote"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetchAgain replaces a blob by what the registry has that it came from.
//
// Blobs are never written over: the damaged one is deleted in every namespace and
// collected first. What it refers to would be collected with it, and is held by a
// lease meanwhile.
func (st *store) fetchAgain(ctx context.Context, b *storedBlob) (string, error) {
	sources := st.sources(b)
	if len(sources) == 0 {
		return "", errors.New("nothing tells where it came from: import or pull its image again")
	}
	var errs []error
	for _, source := range sources {
		from, err := openRemote(st.cmd, source)
		if err == nil {
			err = st.replace(ctx, b, from)
			from.Close()
		}
		if err == nil {
			return "fetched again from " + source, nil
		}
		if ctx.Err() != nil {
			return "", err
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// sources are references to a blob: what its images are named after, and what its
// labels say (which do not tell the registry's port).
func (st *store) sources(b *storedBlob) []string {
	var out []string
	add := func(host, repository string) {
		ref := registry.Reference{Host: host, Repository: repository, Digest: b.desc.Digest}.String()
		if !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	for _, name := range b.refs {
		if ref, err := registry.ParseReference(name); err == nil {
			add(ref.Host, ref.Repository)
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(b.labels)) {
		for key, repos := range image.SourceLabels(b.labels[namespace]) {
			host := strings.TrimPrefix(key, "containerd.io/distribution.source.")
			for repo := range strings.SplitSeq(repos, ",") {
				add(host, repo)
			}
		}
	}
	return out
}

func (st *store) replace(ctx context.Context, b *storedBlob, from *registry.Remote) error {
	if b.desc.MediaType == "" {
		b.desc.MediaType = ispec.MediaTypeImageLayer // anything that is fetched as a blob
	}
	// Asked for before anything is deleted.
	r, err := from.Fetch(ctx, b.desc, 0)
	if err != nil {
		return err
	}
	r.Close()
	namespaces := slices.Sorted(maps.Keys(b.labels))
	for _, namespace := range namespaces {
		lease := leaseID()
		s := &session{ClientConn: st.s.ClientConn, namespace: namespace}
		inside := withNamespace(ctx, namespace)
		if err := st.hold(inside, s, lease, b.labels[namespace]); err != nil {
			return err
		}
		defer func() {
			ctx, cancel := afterwards(inside)
			defer cancel()
			deleteLease(ctx, s, lease, false)
		}()
		_, err := contentapi.NewContentClient(s).Delete(inside, &contentapi.DeleteContentRequest{Digest: b.desc.Digest.String()})
		if err := ignoreNotFound(err); err != nil {
			return fmt.Errorf("deleting the damaged blob: %w", err)
		}
	}
	if err := st.collect(withNamespace(ctx, namespaces[0])); err != nil {
		return err
	}
	for _, namespace := range namespaces {
		if err := b.write(ctx, remote.NewContent(remote.Scope(st.s, namespace, "")), namespace, from); err != nil {
			return fmt.Errorf("writing it in namespace %s: %w", namespace, err)
		}
	}
	return nil
}

// write writes the blob anew in a namespace, with the labels that it had.
func (b *storedBlob) write(ctx context.Context, to *remote.Content, namespace string, from *registry.Remote) error {
	w, err := to.Writer(ctx, content.WriteOptions{Ref: "fsck-" + b.desc.Digest.String(), Size: b.desc.Size, Expected: b.desc.Digest})
	if err != nil {
		return ignoreExists(err)
	}
	defer w.Close()
	status, err := w.Status()
	if err != nil {
		return err
	}
	r, err := from.Fetch(ctx, b.desc, status.Offset) // all of it is there when namespaces share it
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return ignoreExists(w.Commit(ctx, b.desc.Size, b.desc.Digest, b.labels[namespace]))
}

// hold keeps what labels refer to, and what that refers to, from the collector.
func (st *store) hold(ctx context.Context, s *session, lease string, labels map[string]string) error {
	if err := createLease(ctx, s, lease); err != nil {
		return err
	}
	leases := leasesapi.NewLeasesClient(s)
	seen := map[string]bool{}
	var add func(labels map[string]string) error
	add = func(labels map[string]string) error {
		for key, value := range labels {
			r := &leasesapi.Resource{ID: value}
			if sn, ok := strings.CutPrefix(key, image.SnapshotLabel("")); ok {
				r.Type = "snapshots/" + sn
			} else if strings.HasPrefix(key, "containerd.io/gc.ref.content") {
				r.Type = "content"
			}
			if r.Type == "" || seen[r.Type+value] {
				continue
			}
			seen[r.Type+value] = true
			_, err := leases.AddResource(ctx, &leasesapi.AddResourceRequest{ID: lease, Resource: r})
			if err := ignoreNotFound(err); err != nil {
				return fmt.Errorf("holding %s: %w", value, err)
			}
			if below := st.blobs[value]; below != nil && r.Type == "content" {
				if err := add(below.labels[s.namespace]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return add(labels)
}

// collect runs the collector.
func (st *store) collect(ctx context.Context) error {
	lease := leaseID()
	if err := createLease(ctx, st.s, lease); err != nil {
		return err
	}
	return deleteLease(ctx, st.s, lease, true)
}

// unpackAgain removes a committed snapshot, and those on it, and unpacks the
// images again that they are of. A container on one of them forbids it.
func (st *store) unpackAgain(ctx context.Context, n *storedNamespace, snapshotterName, key string) (string, error) {
	sn := newSnapshotter(n.s, snapshotterName)
	list, err := sn.list(ctx)
	if err != nil {
		return "", err
	}
	doomed, users := above(list, key)
	if len(users) > 0 {
		return "", fmt.Errorf("%s uses it; remove that, and repair again", strings.Join(users, ", "))
	}
	again, err := st.imagesOn(ctx, n, doomed)
	if err != nil {
		return "", err
	}
	if len(again) == 0 {
		return "", errors.New("it is of no image that is here: it can be removed by hand")
	}
	for _, name := range doomed {
		if _, err := sn.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotterName, Key: name}); ignoreNotFound(err) != nil {
			return "", fmt.Errorf("removing %s: %w", name, err)
		}
	}
	lease := leaseID()
	if err := createLease(ctx, n.s, lease); err != nil {
		return "", err
	}
	defer func() {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		deleteLease(ctx, n.s, lease, false)
	}()
	for _, img := range again {
		if err := unpackImage(withLease(ctx, lease), n.s, snapshotterName, img, true); err != nil {
			return "", fmt.Errorf("unpacking %s: %w", img.name, err)
		}
	}
	return "unpacked again", nil
}

// above lists a snapshot and the committed ones that stand on it, the uppermost
// first, and the others that do.
func above(list []snapshotView, key string) (committed, users []string) {
	for _, v := range list {
		switch {
		case v.Parent != key:
		case v.Kind == "Committed":
			c, u := above(list, v.Name)
			committed, users = append(committed, c...), append(users, u...)
		default:
			users = append(users, v.Name)
		}
	}
	return append(committed, key), users
}

// imagesOn are the images of a namespace whose uppermost snapshot is one of those.
func (st *store) imagesOn(ctx context.Context, n *storedNamespace, chains []string) ([]resolved, error) {
	var out []resolved
	seen := map[string]bool{}
	for _, img := range n.images {
		manifests := []ispec.Descriptor{img.target}
		if image.IsIndex(img.target.MediaType) {
			var err error
			if manifests, err = image.Children(ctx, n.s.readBlob, img.target); err != nil {
				return nil, err
			}
		}
		for _, m := range manifests {
			if !image.IsManifest(m.MediaType) || !st.whole(m.Digest) {
				continue
			}
			r, err := n.manifestOf(ctx, img, m)
			if err != nil {
				continue // of that platform there is no more than the manifest
			}
			if chain := r.chain(); slices.Contains(chains, chain) && !seen[chain] {
				seen[chain] = true
				out = append(out, r)
			}
		}
	}
	return out, nil
}
