package main

import (
	"context"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
)

// nameSource lists the names of one kind of thing that the daemon has, for
// completion and suggestions. What cannot be asked has no names.
type nameSource func(context.Context, *session) []string

const tasksService = "containerd.services.tasks.v1.Tasks"

// sourceOf lists what a gRPC service keeps, nil for one that keeps nothing with
// a name.
func sourceOf(service string) nameSource {
	return map[string]nameSource{
		"containerd.services.containers.v1.Containers": containerIDs,
		"containerd.services.content.v1.Content":       blobDigests,
		"containerd.services.images.v1.Images":         imageNames,
		"containerd.services.leases.v1.Leases":         leaseIDs,
		"containerd.services.namespaces.v1.Namespaces": namespaceNames,
		"containerd.services.sandbox.v1.Store":         sandboxIDs,
		"containerd.services.snapshots.v1.Snapshots":   snapshotKeys,
		tasksService: taskIDs,
	}[service]
}

func imageNames(ctx context.Context, s *session) (out []string) {
	resp, _ := imagesapi.NewImagesClient(s).List(ctx, &imagesapi.ListImagesRequest{})
	for _, i := range resp.GetImages() {
		out = append(out, i.Name)
	}
	return out
}

func containerIDs(ctx context.Context, s *session) (out []string) {
	list, _ := listContainers(ctx, s)
	for _, c := range list {
		out = append(out, c.ID)
	}
	return out
}

func taskIDs(ctx context.Context, s *session) (out []string) {
	list, _ := listTasks(ctx, s)
	for _, t := range list {
		out = append(out, t.ID)
	}
	return out
}

func sandboxIDs(ctx context.Context, s *session) (out []string) {
	list, _ := listSandboxes(ctx, s)
	for _, sb := range list {
		out = append(out, sb.ID)
	}
	return out
}

func namespaceNames(ctx context.Context, s *session) (out []string) {
	resp, _ := namespacesapi.NewNamespacesClient(s).List(ctx, &namespacesapi.ListNamespacesRequest{})
	for _, n := range resp.GetNamespaces() {
		out = append(out, n.Name)
	}
	return out
}

func leaseIDs(ctx context.Context, s *session) (out []string) {
	resp, _ := leasesapi.NewLeasesClient(s).List(ctx, &leasesapi.ListRequest{})
	for _, l := range resp.GetLeases() {
		out = append(out, l.ID)
	}
	return out
}

func snapshotKeys(ctx context.Context, s *session) (out []string) {
	name, err := defaultSnapshotter(ctx, s)
	if err != nil {
		return nil
	}
	list, _ := newSnapshotter(s, name).list(ctx)
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

func blobDigests(ctx context.Context, s *session) (out []string) {
	s.walkBlobs(ctx, nil, func(b blobView) error {
		out = append(out, b.Digest)
		return nil
	})
	return out
}

// pluginIDs are the working plugins of a type.
func pluginIDs(ctx context.Context, s *session, kind string) (out []string) {
	resp, _ := introspectionapi.NewIntrospectionClient(s).Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"type==" + kind}})
	for _, p := range resp.GetPlugins() {
		if p.InitErr == nil {
			out = append(out, p.ID)
		}
	}
	slices.Sort(out)
	return out
}

func snapshotterNames(ctx context.Context, s *session) []string {
	return pluginIDs(ctx, s, "io.containerd.snapshotter.v1")
}
