package main

import (
	"context"
	"slices"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types/task"
)

// nameSource lists the names of one kind of thing that the daemon has, for
// completion and suggestions. What cannot be asked has no names.
type nameSource func(context.Context, *session) []string

const (
	tasksService  = "containerd.services.tasks.v1.Tasks"
	imagesService = "containerd.services.images.v1.Images"
)

// sourceOf lists what a gRPC service keeps, nil for one that keeps nothing with
// a name.
func sourceOf(service string) nameSource {
	return map[string]nameSource{
		"containerd.services.containers.v1.Containers": containerIDs,
		"containerd.services.content.v1.Content":       blobDigests,
		imagesService:                                  imageNames,
		"containerd.services.leases.v1.Leases":         leaseIDs,
		"containerd.services.namespaces.v1.Namespaces": namespaceNames,
		"containerd.services.sandbox.v1.Store":         sandboxIDs,
		"containerd.services.snapshots.v1.Snapshots":   snapshotKeys,
		tasksService: taskIDs,
	}[service]
}

// collect is what get returns for each of list.
func collect[T any](list []T, get func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = get(v)
	}
	return out
}

func imageNames(ctx context.Context, s *session) []string {
	resp, _ := imagesapi.NewImagesClient(s).List(ctx, &imagesapi.ListImagesRequest{})
	return collect(resp.GetImages(), (*imagesapi.Image).GetName)
}

func containerIDs(ctx context.Context, s *session) []string {
	list, _ := listContainers(ctx, s)
	return collect(list, (*containersapi.Container).GetID)
}

func taskIDs(ctx context.Context, s *session) []string {
	list, _ := listTasks(ctx, s)
	return collect(list, (*task.Process).GetID)
}

func sandboxIDs(ctx context.Context, s *session) []string {
	list, _ := listSandboxes(ctx, s)
	return collect(list, func(sb sandboxView) string { return sb.ID })
}

func namespaceNames(ctx context.Context, s *session) []string {
	resp, _ := namespacesapi.NewNamespacesClient(s).List(ctx, &namespacesapi.ListNamespacesRequest{})
	return collect(resp.GetNamespaces(), (*namespacesapi.Namespace).GetName)
}

func leaseIDs(ctx context.Context, s *session) []string {
	resp, _ := leasesapi.NewLeasesClient(s).List(ctx, &leasesapi.ListRequest{})
	return collect(resp.GetLeases(), (*leasesapi.Lease).GetID)
}

func snapshotKeys(ctx context.Context, s *session) []string {
	name, err := defaultSnapshotter(ctx, s)
	if err != nil {
		return nil
	}
	list, _ := newSnapshotter(s, name).list(ctx)
	return collect(list, func(v snapshotView) string { return v.Name })
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
