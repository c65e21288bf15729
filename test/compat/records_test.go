package compat

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestContainerRecords(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(11, 1))}
	containers := func() *containersapi.Container {
		return &containersapi.Container{
			ID: c.id(), Labels: c.labels(), Image: pick(c, "", "image", "other"), Spec: c.any(), Extensions: c.extensions(),
			Runtime:     pick(c, nil, &containersapi.Container_Runtime{}, &containersapi.Container_Runtime{Name: "r", Options: c.any()}, &containersapi.Container_Runtime{Name: "s"}, &containersapi.Container_Runtime{Name: "r"}, &containersapi.Container_Runtime{Name: "r"}),
			Snapshotter: pick(c, "", "overlayfs", "native"), SnapshotKey: pick(c, "", "key"), Sandbox: pick(c, "", "", "pod"),
		}
	}
	service := containersapi.NewContainersClient
	for range 700 {
		ctx, before := namespaced(t, pick(c, "a", "b")), b.bad
		switch c.IntN(6) {
		case 0, 1:
			askBoth(t, b, ctx, "create", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.CreateContainerRequest, ...grpc.CallOption) (*containersapi.CreateContainerResponse, error) {
				return service(conn).Create
			}, &containersapi.CreateContainerRequest{Container: containers()})
		case 2, 3:
			req := &containersapi.UpdateContainerRequest{Container: containers(), UpdateMask: c.mask("labels", "labels.k", "labels.a.b/c", "labels.none", "labels.", "spec", "spec.x", "extensions", "extensions.e.x", "extensions.none", "extensions.",
				"image", "snapshotkey", "snapshotter", "runtime", "runtime.name", "id", "sandbox", "snapshot_key", "", "created_at", "Labels")}
			askBoth(t, b, ctx, "update", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.UpdateContainerRequest, ...grpc.CallOption) (*containersapi.UpdateContainerResponse, error) {
				return service(conn).Update
			}, req)
			// What an update answers with may not be what it has stored.
			if paths := req.UpdateMask.GetPaths(); len(paths) == 0 || slices.Contains(paths, "extensions") {
				// Better: ours stores what it has answered; theirs keeps extensions that were to go.
				for _, conn := range []grpc.ClientConnInterface{b.ours, b.theirs} {
					_, _ = service(conn).Delete(ctx, &containersapi.DeleteContainerRequest{ID: req.Container.ID})
				}
			}
			askBoth(t, b, ctx, "get after "+text(req)+" ", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.GetContainerRequest, ...grpc.CallOption) (*containersapi.GetContainerResponse, error) {
				return service(conn).Get
			}, &containersapi.GetContainerRequest{ID: req.Container.ID})
		case 4:
			req := &containersapi.ListContainersRequest{Filters: c.filters()}
			askBoth(t, b, ctx, "list", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.ListContainersRequest, ...grpc.CallOption) (*containersapi.ListContainersResponse, error) {
				return service(conn).List
			}, req)
			askBoth(t, b, ctx, "list stream", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.ListContainersRequest, ...grpc.CallOption) (*containersapi.ListContainersResponse, error) {
				return func(ctx context.Context, req *containersapi.ListContainersRequest, _ ...grpc.CallOption) (*containersapi.ListContainersResponse, error) {
					s, err := service(conn).ListStream(ctx, req)
					if err != nil {
						return nil, err
					}
					var all containersapi.ListContainersResponse
					for {
						m, err := s.Recv()
						if err != nil {
							if status.Code(err) == codes.Unknown && err.Error() == "EOF" {
								return &all, nil
							}
							return nil, err
						}
						all.Containers = append(all.Containers, m.Container)
					}
				}
			}, req)
		case 5:
			askBoth(t, b, ctx, "delete", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.DeleteContainerRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *containersapi.DeleteContainerRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).Delete(ctx, req)
					return &anypb.Any{}, err
				}
			}, &containersapi.DeleteContainerRequest{ID: c.id()})
		}
		b.forget(t, before, func(ctx context.Context, conn grpc.ClientConnInterface) (ids []string) {
			list, _ := service(conn).List(ctx, &containersapi.ListContainersRequest{})
			for _, r := range list.GetContainers() {
				ids = append(ids, r.ID)
			}
			return ids
		}, func(ctx context.Context, conn grpc.ClientConnInterface, id string) error {
			_, err := service(conn).Delete(ctx, &containersapi.DeleteContainerRequest{ID: id})
			return err
		})
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

func TestImageRecords(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(12, 2))}
	target := func() *types.Descriptor {
		return &types.Descriptor{ // containerd dies of an image without one
			MediaType:   pick(c, "application/vnd.oci.image.index.v1+json", "application/x", "application/x", ""),
			Digest:      pick(c, digest.FromString("a").String(), digest.FromString("a").String(), digest.FromString("b").String(), "", "sha256:1", "x"),
			Size:        pick(c, int64(5), 5, 7, 0, -1),
			Annotations: pick(c, nil, map[string]string{"note": "x"}, map[string]string{"note": "", "k": "v"}),
		}
	}
	image := func() *imagesapi.Image {
		return &imagesapi.Image{Name: c.id(), Labels: c.labels(), Target: target(), CreatedAt: pick(c, nil, timestamppb.New(time.Unix(1e9, 0)))}
	}
	service := imagesapi.NewImagesClient
	for range 700 {
		ctx, before := namespaced(t, pick(c, "a", "b")), b.bad
		switch c.IntN(6) {
		case 0, 1:
			askBoth(t, b, ctx, "create", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.CreateImageRequest, ...grpc.CallOption) (*imagesapi.CreateImageResponse, error) {
				return service(conn).Create
			}, &imagesapi.CreateImageRequest{Image: image()})
		case 2, 3:
			req := &imagesapi.UpdateImageRequest{Image: image(), UpdateMask: c.mask("labels", "labels.k", "labels.a.b/c", "labels.none", "labels.", "target", "target.digest", "target.size", "annotations", "annotations.note", "annotations.none", "name", "", "created_at")}
			askBoth(t, b, ctx, "update", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.UpdateImageRequest, ...grpc.CallOption) (*imagesapi.UpdateImageResponse, error) {
				return service(conn).Update
			}, req)
			askBoth(t, b, ctx, "get after "+text(req)+" ", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.GetImageRequest, ...grpc.CallOption) (*imagesapi.GetImageResponse, error) {
				return service(conn).Get
			}, &imagesapi.GetImageRequest{Name: req.Image.Name})
		case 4:
			askBoth(t, b, ctx, "list", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.ListImagesRequest, ...grpc.CallOption) (*imagesapi.ListImagesResponse, error) {
				return service(conn).List
			}, &imagesapi.ListImagesRequest{Filters: c.filters()})
		case 5:
			askBoth(t, b, ctx, "delete", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.DeleteImageRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *imagesapi.DeleteImageRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).Delete(ctx, req)
					return &anypb.Any{}, err
				}
			}, &imagesapi.DeleteImageRequest{Name: c.id(), Sync: c.IntN(3) == 0, Target: pick(c, nil, nil, target())})
		}
		b.forget(t, before, func(ctx context.Context, conn grpc.ClientConnInterface) (ids []string) {
			list, _ := service(conn).List(ctx, &imagesapi.ListImagesRequest{})
			for _, r := range list.GetImages() {
				ids = append(ids, r.Name)
			}
			return ids
		}, func(ctx context.Context, conn grpc.ClientConnInterface, id string) error {
			_, err := service(conn).Delete(ctx, &imagesapi.DeleteImageRequest{Name: id})
			return err
		})
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

func TestLeaseRecords(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(13, 3))}
	service := leasesapi.NewLeasesClient
	resource := func() *leasesapi.Resource {
		return &leasesapi.Resource{ // containerd dies of a request without one
			Type: pick(c, "content", "content", "images", "ingests", "snapshots/overlayfs", "snapshots/overlayfs", "snapshots", "snapshots/", "snapshots/a/b", "content/x", "ingests/x", "other", "", "snapshots/none", "images/x", "containers"),
			ID:   pick(c, digest.FromString("a").String(), digest.FromString("a").String(), "key", "key", "", "sha256:1"),
		}
	}
	for range 600 {
		ctx, before := namespaced(t, pick(c, "a", "b")), b.bad
		id := c.id()
		switch c.IntN(6) {
		case 0:
			if id == "" {
				continue // a random one, as the next test has it
			}
			askBoth(t, b, ctx, "create", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.CreateRequest, ...grpc.CallOption) (*leasesapi.CreateResponse, error) {
				return service(conn).Create
			}, &leasesapi.CreateRequest{ID: id, Labels: pick(c, c.labels(), map[string]string{"containerd.io/gc.expire": pick(c, "2099-01-01T00:00:00Z", "nonsense", "")})})
		case 1:
			askBoth(t, b, ctx, "delete", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.DeleteRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *leasesapi.DeleteRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).Delete(ctx, req)
					return &anypb.Any{}, err
				}
			}, &leasesapi.DeleteRequest{ID: id, Sync: c.IntN(3) == 0})
		case 2:
			askBoth(t, b, ctx, "list", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.ListRequest, ...grpc.CallOption) (*leasesapi.ListResponse, error) {
				return service(conn).List
			}, &leasesapi.ListRequest{Filters: c.filters()})
		case 3:
			askBoth(t, b, ctx, "add", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.AddResourceRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *leasesapi.AddResourceRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).AddResource(ctx, req)
					return &anypb.Any{}, err
				}
			}, &leasesapi.AddResourceRequest{ID: id, Resource: resource()})
		case 4:
			askBoth(t, b, ctx, "remove", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.DeleteResourceRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *leasesapi.DeleteResourceRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).DeleteResource(ctx, req)
					return &anypb.Any{}, err
				}
			}, &leasesapi.DeleteResourceRequest{ID: id, Resource: resource()})
		case 5:
			askBoth(t, b, ctx, "resources", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.ListResourcesRequest, ...grpc.CallOption) (*leasesapi.ListResourcesResponse, error) {
				return func(ctx context.Context, req *leasesapi.ListResourcesRequest, _ ...grpc.CallOption) (*leasesapi.ListResourcesResponse, error) {
					resp, err := service(conn).ListResources(ctx, req)
					slices.SortFunc(resp.GetResources(), func(a, b *leasesapi.Resource) int {
						return strings.Compare(a.Type+" "+a.ID, b.Type+" "+b.ID)
					})
					return resp, err
				}
			}, &leasesapi.ListResourcesRequest{ID: id})
		}
		b.forget(t, before, func(ctx context.Context, conn grpc.ClientConnInterface) (ids []string) {
			list, _ := service(conn).List(ctx, &leasesapi.ListRequest{})
			for _, r := range list.GetLeases() {
				ids = append(ids, r.ID)
			}
			return ids
		}, func(ctx context.Context, conn grpc.ClientConnInterface, id string) error {
			_, err := service(conn).Delete(ctx, &leasesapi.DeleteRequest{ID: id})
			return err
		})
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

func TestNamespaceRecords(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(14, 4))}
	service := namespacesapi.NewNamespacesClient
	for range 400 {
		ctx, before := t.Context(), b.bad
		ns := &namespacesapi.Namespace{Name: c.id(), Labels: c.labels()}
		switch c.IntN(7) {
		case 0:
			askBoth(t, b, ctx, "create", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.CreateNamespaceRequest, ...grpc.CallOption) (*namespacesapi.CreateNamespaceResponse, error) {
				return service(conn).Create
			}, &namespacesapi.CreateNamespaceRequest{Namespace: ns})
		case 1:
			askBoth(t, b, ctx, "get", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.GetNamespaceRequest, ...grpc.CallOption) (*namespacesapi.GetNamespaceResponse, error) {
				return service(conn).Get
			}, &namespacesapi.GetNamespaceRequest{Name: ns.Name})
		case 2:
			askBoth(t, b, ctx, "list", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.ListNamespacesRequest, ...grpc.CallOption) (*namespacesapi.ListNamespacesResponse, error) {
				return service(conn).List
			}, &namespacesapi.ListNamespacesRequest{Filter: pick(c, "", "name==one")})
		case 3:
			askBoth(t, b, ctx, "delete", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.DeleteNamespaceRequest, ...grpc.CallOption) (*anypb.Any, error) {
				return func(ctx context.Context, req *namespacesapi.DeleteNamespaceRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
					_, err := service(conn).Delete(ctx, req)
					return &anypb.Any{}, err
				}
			}, &namespacesapi.DeleteNamespaceRequest{Name: ns.Name})
		case 4, 5:
			// Better: containerd makes namespaces of any name so.
			if ns.Name = pick(c, "one", "two", "three", "four"); c.IntN(3) == 0 {
				ns.Labels = nil
			}
			req := &namespacesapi.UpdateNamespaceRequest{Namespace: ns, UpdateMask: c.mask("labels", "labels.k", "labels.a.b/c", "labels.none", "name", "labels.", "")}
			askBoth(t, b, ctx, "update", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.UpdateNamespaceRequest, ...grpc.CallOption) (*namespacesapi.UpdateNamespaceResponse, error) {
				return service(conn).Update
			}, req)
			askBoth(t, b, ctx, "get after "+text(req)+" ", func(conn grpc.ClientConnInterface) func(context.Context, *namespacesapi.GetNamespaceRequest, ...grpc.CallOption) (*namespacesapi.GetNamespaceResponse, error) {
				return service(conn).Get
			}, &namespacesapi.GetNamespaceRequest{Name: ns.Name})
		case 6:
			// Something that keeps it from being deleted, or not.
			ctx := namespaced(t, ns.Name)
			switch c.IntN(3) {
			case 0:
				askBoth(t, b, ctx, "image in", func(conn grpc.ClientConnInterface) func(context.Context, *imagesapi.CreateImageRequest, ...grpc.CallOption) (*imagesapi.CreateImageResponse, error) {
					return imagesapi.NewImagesClient(conn).Create
				}, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: "i", Target: &types.Descriptor{MediaType: "x", Digest: digest.FromString("a").String(), Size: 1}}})
			case 1:
				askBoth(t, b, ctx, "lease in", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.CreateRequest, ...grpc.CallOption) (*leasesapi.CreateResponse, error) {
					return leasesapi.NewLeasesClient(conn).Create
				}, &leasesapi.CreateRequest{ID: "l"})
			case 2:
				askBoth(t, b, ctx, "snapshot in", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.PrepareSnapshotRequest, ...grpc.CallOption) (*anypb.Any, error) {
					return func(ctx context.Context, req *snapshotsapi.PrepareSnapshotRequest, _ ...grpc.CallOption) (*anypb.Any, error) {
						_, err := snapshotsapi.NewSnapshotsClient(conn).Prepare(ctx, req)
						return &anypb.Any{}, err
					}
				}, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "k"})
			}
		}
		if b.bad > before {
			for _, conn := range []grpc.ClientConnInterface{b.ours, b.theirs} {
				_, _ = service(conn).Delete(ctx, &namespacesapi.DeleteNamespaceRequest{Name: ns.Name})
			}
		}
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

func TestSandboxRecords(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(15, 5))}
	service := sandboxapi.NewStoreClient
	sandbox := func() *types.Sandbox {
		return &types.Sandbox{
			SandboxID: c.id(), Labels: c.labels(), Spec: c.any(), Extensions: c.extensions(), Sandboxer: pick(c, "", "s"),
			// containerd dies of a sandbox without one
			Runtime: pick(c, &types.Sandbox_Runtime{}, &types.Sandbox_Runtime{Name: "r"}, &types.Sandbox_Runtime{Name: "q", Options: c.any()}),
		}
	}
	for range 500 {
		ctx, before := namespaced(t, pick(c, "a", "b")), b.bad
		switch c.IntN(6) {
		case 0, 1:
			askBoth(t, b, ctx, "create", func(conn grpc.ClientConnInterface) func(context.Context, *sandboxapi.StoreCreateRequest, ...grpc.CallOption) (*sandboxapi.StoreCreateResponse, error) {
				return service(conn).Create
			}, &sandboxapi.StoreCreateRequest{Sandbox: sandbox()})
		case 2, 3:
			req := &sandboxapi.StoreUpdateRequest{Sandbox: sandbox()}
			if m := c.mask("labels", "labels.k", "labels.none", "labels.", "extensions", "extensions.e.x", "extensions.none", "spec", "runtime", "id", "sandboxer", "", "runtime.options"); m != nil {
				req.Fields = m.Paths
			}
			askBoth(t, b, ctx, "update", func(conn grpc.ClientConnInterface) func(context.Context, *sandboxapi.StoreUpdateRequest, ...grpc.CallOption) (*sandboxapi.StoreUpdateResponse, error) {
				return service(conn).Update
			}, req)
			// Better: ours stores what it has answered; theirs keeps extensions, runtime
			// options and a spec that were to go.
			for _, conn := range []grpc.ClientConnInterface{b.ours, b.theirs} {
				_, _ = service(conn).Delete(ctx, &sandboxapi.StoreDeleteRequest{SandboxID: req.Sandbox.SandboxID})
			}
		case 4:
			askBoth(t, b, ctx, "list", func(conn grpc.ClientConnInterface) func(context.Context, *sandboxapi.StoreListRequest, ...grpc.CallOption) (*sandboxapi.StoreListResponse, error) {
				return service(conn).List
			}, &sandboxapi.StoreListRequest{Filters: c.filters()})
		case 5:
			askBoth(t, b, ctx, "delete", func(conn grpc.ClientConnInterface) func(context.Context, *sandboxapi.StoreDeleteRequest, ...grpc.CallOption) (*sandboxapi.StoreDeleteResponse, error) {
				return service(conn).Delete
			}, &sandboxapi.StoreDeleteRequest{SandboxID: c.id()})
		}
		b.forget(t, before, func(ctx context.Context, conn grpc.ClientConnInterface) (ids []string) {
			list, _ := service(conn).List(ctx, &sandboxapi.StoreListRequest{})
			for _, r := range list.GetList() {
				ids = append(ids, r.SandboxID)
			}
			return ids
		}, func(ctx context.Context, conn grpc.ClientConnInterface, id string) error {
			_, err := service(conn).Delete(ctx, &sandboxapi.StoreDeleteRequest{SandboxID: id})
			return err
		})
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

// filter is a text that may be a filter.
func (c choices) filter() string {
	name := func() string {
		return pick(c, "id", "image", "labels", "runtime", "name", "k", "v", "a", "_x", "0", "ä", "", `"a.b/c"`, `"k"`, `""`, `"quo\"ted"`, "`raw`", `"\x41"`, `"\u00e4"`, `"bad\q"`, `"open`, "labels.k", "x-y", "labels.empty")
	}
	value := func() string {
		return pick(c, "one", "two", "v", "w", "", `"v"`, `"one"`, `""`, `"a b"`, "`v`", "/v/", "|v|", "/o$/", "^o", ".*", "[", "(a", "v w", "é", "a.b", "a-b", "1", "==", "~", "v)", `"v`, `/v`, `|v`, `"\n"`, "sha256:abc", "docker.io/library/x:1", "*", "+", "a,b", `\`, "'v'")
	}
	selector := func() string {
		path := name()
		for range c.IntN(3) {
			path += "." + name()
		}
		if c.IntN(2) == 0 {
			path = pick(c, "id", "image", "labels.k", `labels."a.b/c"`, "runtime.name")
		}
		if c.IntN(6) == 0 {
			return path
		}
		space := func() string { return pick(c, "", "", "", "", "", "", "", "", " ", "\t", "\n") }
		op := pick(c, "==", "!=", "~=")
		if c.IntN(12) == 0 {
			op = pick(c, "=", "!", "~", "<", "===")
		}
		return space() + path + space() + op + space() + value()
	}
	text := selector()
	for range c.IntN(3) {
		text += pick(c, ",", ",", ",", ",", ", ", ",,", " ", ";") + selector()
	}
	if c.IntN(5) == 0 && text != "" { // damage
		i := c.IntN(len(text))
		text = text[:i] + pick(c, "", ",", ".", `"`, "=", " ", "\x00", "/") + text[i+c.IntN(2):]
	}
	return strings.ToValidUTF8(text, "?")
}

// Both take the same filters and find the same with them.
func TestFilters(t *testing.T) {
	b := startBoth(t, "")
	c := choices{rand.New(rand.NewPCG(6, 6))}
	service := containersapi.NewContainersClient
	for _, conn := range []grpc.ClientConnInterface{b.ours, b.theirs} {
		for id, labels := range map[string]map[string]string{
			"one": {"k": "v", "a.b/c": "1"}, "two": {"k": "w", "a": "b", "ä": "é"}, "three": nil, "four": {"v": "v", "0": "1", "_x": "a b", "quo\"ted": "x"},
		} {
			if _, err := service(conn).Create(namespaced(t, "a"), &containersapi.CreateContainerRequest{Container: &containersapi.Container{
				ID: id, Labels: labels, Image: "docker.io/library/x:1", Runtime: &containersapi.Container_Runtime{Name: "r"}, Spec: &anypb.Any{TypeUrl: "x"},
			}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	accepted := 0
	for range 3000 {
		req := &containersapi.ListContainersRequest{Filters: []string{c.filter()}}
		if c.IntN(5) == 0 {
			req.Filters = append(req.Filters, c.filter())
		}
		if _, ok := askBoth(t, b, namespaced(t, "a"), "list", func(conn grpc.ClientConnInterface) func(context.Context, *containersapi.ListContainersRequest, ...grpc.CallOption) (*containersapi.ListContainersResponse, error) {
			return service(conn).List
		}, req); ok {
			accepted++
		}
	}
	t.Logf("%d filters, %d accepted, %d differences", b.calls, accepted, b.bad)
	if accepted < 300 || accepted > 2700 {
		t.Error("nearly all or nearly none were accepted")
	}
}
