package compat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// snapshotPair asks both about snapshots.
type snapshotPair struct {
	*testing.T
	*twoDaemons
	choices
}

// TestSnapshotRecords compares snapshots of two snapshotters in two namespaces.
func TestSnapshotRecords(t *testing.T) {
	b := startBoth(t, collectOnDemand)
	p := snapshotPair{t, b, choices{rand.New(rand.NewPCG(31, 1))}}
	for _, ns := range []string{"a", "b"} {
		p.lease(ns)
	}
	for range 1500 {
		p.step()
	}
	t.Logf("%d calls, %d differences", b.calls, b.bad)
}

func (p snapshotPair) lease(ns string) {
	askBoth(p.T, p.twoDaemons, namespaced(p.T, ns), "lease", asked(leasesapi.NewLeasesClient, leasesapi.LeasesClient.Create), &leasesapi.CreateRequest{ID: "l"})
}

func (p snapshotPair) key() string {
	return pick(p.choices, "one", "two", "three", "four", "one", "two", "three", "four", "five", "six", "a/b", "none", strings.Repeat("k", 100))
}

func (p snapshotPair) snapshotter() string {
	if p.IntN(30) == 0 {
		return pick(p.choices, "", "none", "btrfs")
	}
	return pick(p.choices, "overlayfs", "native")
}

func (p snapshotPair) labels() map[string]string {
	labels := p.choices.labels()
	delete(labels, "") // theirs leaves the snapshot in the backend over it
	if p.IntN(3) == 0 {
		labels = map[string]string{"containerd.io/snapshot/own": "1", "containerd.io/snapshot.x": "2", "containerd.io/gc.root": "now", "k": "v"}
	}
	if p.IntN(6) == 0 {
		if labels == nil {
			labels = map[string]string{}
		}
		labels["containerd.io/snapshot.ref"] = pick(p.choices, "one", "two", "three", "", "target")
	}
	if p.IntN(6) == 0 {
		labels = map[string]string{"containerd.io/gc.ref.snapshot.overlayfs": p.key(), "containerd.io/gc.ref.snapshot.native/x": p.key()}
	}
	return labels
}

func (p snapshotPair) filters() []string {
	if p.IntN(2) > 0 {
		return nil
	}
	return []string{pick(p.choices, "name==one", "name~=o", "name", "parent==one", "parent", "parent!=one", "kind==active", "kind==committed", "kind==view", "kind!=view", "kind==Active", "labels.k==v",
		`labels."containerd.io/snapshot.ref"`, `labels."containerd.io/snapshot.ref"==two`, "labels", "", "==", "nothing", "name.x", "kind.x", "kind", "labels.none!=x", "key==one", "size")}
}

var numbered = regexp.MustCompile(`/(root|snapshots)/.*`)

// unplaced takes out of mounts where they are.
func unplaced(mounts []*types.Mount) []*types.Mount {
	for _, m := range mounts {
		m.Source = numbered.ReplaceAllString(m.Source, "/N")
		m.Source = m.Source[strings.LastIndex(m.Source, "/")+1:]
		for i, o := range m.Options {
			if name, value, ok := strings.Cut(o, "="); ok && strings.Contains(value, "/") {
				m.Options[i] = fmt.Sprintf("%s=%d", name, strings.Count(value, ":"))
			}
		}
	}
	return mounts
}

func (p snapshotPair) step() {
	t, b, before := p.T, p.twoDaemons, p.bad
	ns := pick(p.choices, "a", "b")
	ctx := pick(p.choices, namespaced(t, ns), namespaced(t, ns), namespaced(t, ns, "containerd-lease", "l"), namespaced(t, ns, "containerd-lease", "l"), namespaced(t, ns, "containerd-lease", "none"))
	client := snapshotsapi.NewSnapshotsClient
	sn := p.snapshotter()
	switch p.IntN(16) {
	case 0, 1, 2:
		askBoth(t, b, ctx, "prepare", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.PrepareSnapshotRequest, ...grpc.CallOption) (*snapshotsapi.PrepareSnapshotResponse, error) {
			return func(ctx context.Context, req *snapshotsapi.PrepareSnapshotRequest, _ ...grpc.CallOption) (*snapshotsapi.PrepareSnapshotResponse, error) {
				resp, err := client(conn).Prepare(ctx, req)
				unplaced(resp.GetMounts())
				return resp, err
			}
		}, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: sn, Key: p.key(), Parent: pick(p.choices, "", "", p.key()), Labels: p.labels()})
	case 3:
		askBoth(t, b, ctx, "view", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.ViewSnapshotRequest, ...grpc.CallOption) (*snapshotsapi.ViewSnapshotResponse, error) {
			return func(ctx context.Context, req *snapshotsapi.ViewSnapshotRequest, _ ...grpc.CallOption) (*snapshotsapi.ViewSnapshotResponse, error) {
				resp, err := client(conn).View(ctx, req)
				unplaced(resp.GetMounts())
				return resp, err
			}
		}, &snapshotsapi.ViewSnapshotRequest{Snapshotter: sn, Key: p.key(), Parent: pick(p.choices, "", p.key(), p.key()), Labels: p.labels()})
	case 4, 5, 6:
		req := &snapshotsapi.CommitSnapshotRequest{Snapshotter: sn, Name: p.key(), Key: p.key(), Labels: p.labels()}
		if req.Name == req.Key {
			break // theirs loses the snapshot over it
		}
		askBoth(t, b, ctx, "commit", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.CommitSnapshotRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
			return func(ctx context.Context, req *snapshotsapi.CommitSnapshotRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
				resp, err := client(conn).Commit(ctx, req)
				if status.Code(err) == codes.Unknown && strings.Contains(err.Error(), "no such file") {
					err = status.Error(codes.FailedPrecondition, "theirs looks for the files of a snapshot that is not active")
				}
				return resp, err
			}
		}, req)
	case 7:
		askBoth(t, b, ctx, "remove", asked(client, snapshotsapi.SnapshotsClient.Remove), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: sn, Key: p.key()})
	case 8:
		askBoth(t, b, ctx, "stat", asked(client, snapshotsapi.SnapshotsClient.Stat), &snapshotsapi.StatSnapshotRequest{Snapshotter: sn, Key: p.key()})
	case 9, 10:
		info := &snapshotsapi.Info{Name: p.key(), Parent: pick(p.choices, "", "one"), Kind: pick(p.choices, snapshotsapi.Kind_UNKNOWN, snapshotsapi.Kind_VIEW), Labels: p.labels()}
		askBoth(t, b, ctx, "update", asked(client, snapshotsapi.SnapshotsClient.Update), &snapshotsapi.UpdateSnapshotRequest{Snapshotter: sn, Info: info,
			UpdateMask: p.mask("labels", "labels.k", "labels.k", "labels.a.b/c", "labels.none", "labels.containerd.io/snapshot/own", "labels.containerd.io/snapshot.x", "labels.", "parent", "name", "kind", "", "Labels")})
		askBoth(t, b, ctx, "stat after the update", asked(client, snapshotsapi.SnapshotsClient.Stat), &snapshotsapi.StatSnapshotRequest{Snapshotter: sn, Key: info.Name})
	case 11:
		askBoth(t, b, ctx, "mounts", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.MountsRequest, ...grpc.CallOption) (*snapshotsapi.MountsResponse, error) {
			return func(ctx context.Context, req *snapshotsapi.MountsRequest, _ ...grpc.CallOption) (*snapshotsapi.MountsResponse, error) {
				resp, err := client(conn).Mounts(ctx, req)
				unplaced(resp.GetMounts())
				return resp, err
			}
		}, &snapshotsapi.MountsRequest{Snapshotter: sn, Key: p.key()})
	case 12:
		askBoth(t, b, ctx, "usage", asked(client, snapshotsapi.SnapshotsClient.Usage), &snapshotsapi.UsageRequest{Snapshotter: sn, Key: p.key()})
	case 13:
		askBoth(t, b, ctx, "cleanup", func(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.CleanupRequest, ...grpc.CallOption) (*emptypb.Empty, error) {
			return func(ctx context.Context, req *snapshotsapi.CleanupRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
				resp, err := client(conn).Cleanup(ctx, req)
				if status.Code(err) == codes.Unimplemented {
					return new(emptypb.Empty), nil // of theirs, whose snapshotters have none through the metadata
				}
				return resp, err
			}
		}, &snapshotsapi.CleanupRequest{Snapshotter: sn})
	case 14:
		if p.IntN(4) == 0 { // and all that only it held
			p.removeChildren()
			askBoth(t, b, namespaced(t, ns), "end of lease", asked(leasesapi.NewLeasesClient, leasesapi.LeasesClient.Delete), &leasesapi.DeleteRequest{ID: "l", Sync: true})
			p.lease(ns)
		}
	}
	p.lists(ctx, sn)
	if p.bad > before {
		p.forgetAll()
	}
}

// listed is all that a snapshotter has, in the order of names.
func listed(conn grpc.ClientConnInterface) func(context.Context, *snapshotsapi.ListSnapshotsRequest, ...grpc.CallOption) (*snapshotsapi.ListSnapshotsResponse, error) {
	return func(ctx context.Context, req *snapshotsapi.ListSnapshotsRequest, opts ...grpc.CallOption) (*snapshotsapi.ListSnapshotsResponse, error) {
		all, err := gathered(snapshotsapi.NewSnapshotsClient(conn).List, new(snapshotsapi.ListSnapshotsResponse), func(whole, part *snapshotsapi.ListSnapshotsResponse) {
			whole.Info = append(whole.Info, part.Info...)
		})(ctx, req, opts...)
		slices.SortFunc(all.Info, func(a, b *snapshotsapi.Info) int { return strings.Compare(a.Name, b.Name) })
		return all, err
	}
}

func (p snapshotPair) lists(ctx context.Context, snapshotter string) {
	askBoth(p.T, p.twoDaemons, ctx, "list", listed, &snapshotsapi.ListSnapshotsRequest{Snapshotter: snapshotter, Filters: p.filters()})
	askBoth(p.T, p.twoDaemons, ctx, "resources", func(conn grpc.ClientConnInterface) func(context.Context, *leasesapi.ListResourcesRequest, ...grpc.CallOption) (*leasesapi.ListResourcesResponse, error) {
		return func(ctx context.Context, req *leasesapi.ListResourcesRequest, _ ...grpc.CallOption) (*leasesapi.ListResourcesResponse, error) {
			resp, err := leasesapi.NewLeasesClient(conn).ListResources(ctx, req)
			slices.SortFunc(resp.GetResources(), func(a, b *leasesapi.Resource) int { return strings.Compare(a.Type+a.ID, b.Type+b.ID) })
			return resp, err
		}
	}, &leasesapi.ListResourcesRequest{ID: "l"})
}

// removeChildren removes the snapshots with a parent that a collection may take:
// theirs takes them without telling the parent, which can never be removed then.
func (p snapshotPair) removeChildren() {
	p.removeAll(func(info *snapshotsapi.Info) bool { return info.Parent != "" })
}

// forgetAll removes everything, so that a difference has no others for a consequence.
func (p snapshotPair) forgetAll() {
	p.removeAll(func(*snapshotsapi.Info) bool { return true })
	for _, conn := range []grpc.ClientConnInterface{p.ours, p.theirs} {
		for _, ns := range []string{"a", "b"} {
			leases := leasesapi.NewLeasesClient(conn)
			_, _ = leases.Delete(namespaced(p.T, ns), &leasesapi.DeleteRequest{ID: "l", Sync: true})
			_, _ = leases.Create(namespaced(p.T, ns), &leasesapi.CreateRequest{ID: "l"})
		}
	}
}

// removeAll removes those, children before parents.
func (p snapshotPair) removeAll(these func(*snapshotsapi.Info) bool) {
	for _, conn := range []grpc.ClientConnInterface{p.ours, p.theirs} {
		for _, ns := range []string{"a", "b"} {
			for _, snapshotter := range []string{"overlayfs", "native"} {
				for left := true; left; {
					all, err := listed(conn)(namespaced(p.T, ns), &snapshotsapi.ListSnapshotsRequest{Snapshotter: snapshotter})
					if err != nil {
						p.Fatal(err)
					}
					left = false
					for _, info := range all.Info {
						if !these(info) {
							continue
						}
						_, err := snapshotsapi.NewSnapshotsClient(conn).Remove(namespaced(p.T, ns), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: info.Name})
						left = left || err == nil
					}
				}
			}
		}
	}
}
