package compat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestRemains compares which blobs and snapshots are left when images are
// deleted, with all that refer to others by labels.
func TestRemains(t *testing.T) {
	b := startBoth(t, collectOnDemand)
	c := choices{rand.New(rand.NewPCG(41, 1))}
	images, leases := imagesapi.NewImagesClient, leasesapi.NewLeasesClient
	blob := func(i int) string { return fmt.Sprint("blob ", i) }
	sum := func(i int) string { return digest.FromString(blob(i)).String() }
	refs := func() map[string]string {
		labels := map[string]string{}
		for range c.IntN(4) {
			labels[pick(c, "containerd.io/gc.ref.content", "containerd.io/gc.ref.content.0", "containerd.io/gc.ref.content.l.1", "containerd.io/gc.ref.content/x", "containerd.io/gc.bref.content", "containerd.io/gc.bref.content.0")] = pick(c, sum(c.IntN(10)), sum(c.IntN(10)), "nonsense")
		}
		for range c.IntN(3) {
			labels[pick(c, "containerd.io/gc.ref.snapshot.native", "containerd.io/gc.ref.snapshot.native/x", "containerd.io/gc.ref.snapshot.overlayfs", "containerd.io/gc.bref.image", "containerd.io/gc.bref.snapshot.native")] = fmt.Sprint(c.IntN(6))
		}
		if c.IntN(12) == 0 {
			labels["containerd.io/gc.root"] = "now"
		}
		return labels
	}
	target := func() *types.Descriptor {
		return &types.Descriptor{MediaType: "m", Digest: sum(c.IntN(10)), Size: 6}
	}
	for round := range 40 {
		// A namespace each: theirs cannot remove a parent whose child was collected.
		ns := fmt.Sprint("n", round)
		plain, ctx := namespaced(t, ns), namespaced(t, ns, "containerd-lease", "l")
		askBoth(t, b, plain, "lease", asked(leases, leasesapi.LeasesClient.Create), &leasesapi.CreateRequest{ID: "l"})
		for i := range 10 {
			req := &contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Ref: "r", Data: []byte(blob(i)), Total: int64(len(blob(i))), Labels: refs()}
			askBoth(t, b, ctx, "write", func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.WriteContentRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
				return func(ctx context.Context, req *contentapi.WriteContentRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
					s, err := contentapi.NewContentClient(conn).Write(ctx)
					if err == nil {
						err = s.Send(req)
					}
					if err == nil {
						_, err = s.Recv()
					}
					if s != nil {
						_ = s.CloseSend()
						_, _ = s.Recv()
					}
					return new(emptypb.Empty), err
				}
			}, req)
		}
		for _, snapshotter := range []string{"native", "overlayfs"} {
			for i := range 6 {
				req := &snapshotsapi.CommitSnapshotRequest{Snapshotter: snapshotter, Name: fmt.Sprint(i), Key: "k", Labels: refs()}
				parent := ""
				if i > 0 && c.IntN(2) == 0 {
					parent = fmt.Sprint(c.IntN(i))
				}
				askBoth(t, b, ctx, "commit", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.CommitSnapshotRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
					return func(ctx context.Context, req *snapshotsapi.CommitSnapshotRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
						client := snapshotsapi.NewSnapshotsClient(conn)
						if _, err := client.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: req.Snapshotter, Key: req.Key, Parent: parent}); err != nil {
							return nil, err
						}
						return client.Commit(ctx, req)
					}
				}, req)
			}
		}
		for i := range 6 {
			image := &imagesapi.Image{Name: fmt.Sprint(i), Target: target(), Labels: refs()}
			delete(image.Labels, "containerd.io/gc.root")
			if c.IntN(8) == 0 {
				image.Labels["containerd.io/gc.expire"] = pick(c, "2001-01-01T00:00:00Z", "2099-01-01T00:00:00Z")
			}
			askBoth(t, b, ctx, "create", asked(images, imagesapi.ImagesClient.Create), &imagesapi.CreateImageRequest{Image: image})
		}
		askBoth(t, b, plain, "end of lease", asked(leases, leasesapi.LeasesClient.Delete), &leasesapi.DeleteRequest{ID: "l", Sync: true})
		remains(t, b, plain)
		for range 6 {
			askBoth(t, b, plain, "update", asked(images, imagesapi.ImagesClient.Update), &imagesapi.UpdateImageRequest{
				Image:      &imagesapi.Image{Name: fmt.Sprint(c.IntN(6)), Target: target(), Labels: refs()},
				UpdateMask: c.mask("labels", "target", "target.digest", "labels.containerd.io/gc.ref.content", "annotations", "name"),
			})
			askBoth(t, b, plain, "delete", asked(images, imagesapi.ImagesClient.Delete), &imagesapi.DeleteImageRequest{Name: fmt.Sprint(c.IntN(6)), Sync: true, Target: pick(c, nil, nil, target())})
			remains(t, b, plain)
		}
		for i := range 6 {
			askBoth(t, b, plain, "delete", asked(images, imagesapi.ImagesClient.Delete), &imagesapi.DeleteImageRequest{Name: fmt.Sprint(i), Sync: true})
		}
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

// remains compares all that there is.
func remains(t *testing.T, b *twoDaemons, ctx context.Context) {
	t.Helper()
	askBoth(t, b, ctx, "images", asked(imagesapi.NewImagesClient, imagesapi.ImagesClient.List), &imagesapi.ListImagesRequest{})
	askBoth(t, b, ctx, "content", func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.ListContentRequest, ...grpc.CallOption) (*contentapi.ListContentResponse, error) {
		return gathered(contentapi.NewContentClient(conn).List, new(contentapi.ListContentResponse), func(whole, part *contentapi.ListContentResponse) {
			whole.Info = append(whole.Info, part.Info...)
		})
	}, &contentapi.ListContentRequest{})
	for _, snapshotter := range []string{"native", "overlayfs"} {
		askBoth(t, b, ctx, "snapshots", listed, &snapshotsapi.ListSnapshotsRequest{Snapshotter: snapshotter})
	}
}
