package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

func listed(id string) *containersapi.Container {
	return &containersapi.Container{
		ID: id, Image: "example.com/hello:1", Snapshotter: "overlayfs", SnapshotKey: id,
		Labels:  map[string]string{"io.kubernetes.pod.name": "pod", "io.kubernetes.pod.namespace": "default"},
		Runtime: &containersapi.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec:    &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: make([]byte, 1000)},
	}
}

func BenchmarkRecordCreate(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			conn, ctx := connect(b)
			client := containersapi.NewContainersClient(conn)
			each := func(fn func(id string) error) {
				var wg sync.WaitGroup
				for w := range clients {
					wg.Go(func() {
						for i := w; i < b.N; i += clients {
							if err := fn(fmt.Sprintf("record-%d-%d", clients, i)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			b.ResetTimer()
			each(func(id string) error {
				_, err := client.Create(ctx, &containersapi.CreateContainerRequest{Container: listed(id)})
				return err
			})
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
			each(func(id string) error {
				_, err := client.Delete(ctx, &containersapi.DeleteContainerRequest{ID: id})
				return err
			})
		})
	}
}

func BenchmarkRecordList10000(b *testing.B) {
	conn, _ := connect(b)
	ctx := metadata.AppendToOutgoingContext(b.Context(), "containerd-namespace", namespace+"-list")
	client := containersapi.NewContainersClient(conn)
	const n = 10000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				_, _ = client.Create(ctx, &containersapi.CreateContainerRequest{Container: listed(fmt.Sprintf("listed-%d", i))})
			}
		})
	}
	wg.Wait()
	for b.Loop() {
		list, err := client.List(ctx, &containersapi.ListContainersRequest{}, grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil || len(list.Containers) != n {
			b.Fatal(len(list.GetContainers()), err)
		}
	}
}

// BenchmarkPrepareWhileCollecting is how long Prepare takes, in its slowest
// hundredth, while nothing else happens and while garbage is collected without
// end, with 20,000 snapshots in the store.
func BenchmarkPrepareWhileCollecting(b *testing.B) {
	conn, _ := connect(b)
	ns := namespace + "-gc"
	ctx := metadata.AppendToOutgoingContext(b.Context(), "containerd-namespace", ns)
	client, leases := snapshotsapi.NewSnapshotsClient(conn), leasesapi.NewLeasesClient(conn)
	prepare := func(key string, root bool) error {
		labels := map[string]string{}
		if root {
			labels["containerd.io/gc.root"] = "x"
		}
		_, err := client.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: key, Labels: labels})
		return err
	}
	const n = 20000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				_ = prepare(fmt.Sprintf("base-%d", i), true)
			}
		})
	}
	wg.Wait()
	round := 0
	p99 := func() float64 {
		const samples = 400
		took := make([]time.Duration, 0, samples)
		round++
		for i := range samples {
			start := time.Now()
			if err := prepare(fmt.Sprintf("sample-%d-%d", round, i), true); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		for i := range samples {
			_, _ = client.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: "overlayfs", Key: fmt.Sprintf("sample-%d-%d", round, i)})
		}
		slices.Sort(took)
		return float64(took[samples*99/100].Microseconds()) / 1000
	}
	var idle, busy []float64
	collections := 0
	for b.Loop() {
		idle = append(idle, p99())
		stop, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; stop.Err() == nil; i++ {
				id := fmt.Sprintf("collect-%d-%d", round, i)
				if _, err := leases.Create(ctx, &leasesapi.CreateRequest{ID: id}); err != nil {
					b.Error(err)
					return
				}
				// Makes garbage too, so that the backend has something to do.
				_, _ = client.Prepare(metadata.AppendToOutgoingContext(ctx, "containerd-lease", id), &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "overlayfs", Key: id})
				if _, err := leases.Delete(ctx, &leasesapi.DeleteRequest{ID: id, Sync: true}); err != nil {
					b.Error(err)
					return
				}
				collections++
			}
		}()
		busy = append(busy, p99())
		cancel()
		<-done
	}
	slices.Sort(idle)
	slices.Sort(busy)
	b.ReportMetric(idle[len(idle)/2], "p99-idle-ms")
	b.ReportMetric(busy[len(busy)/2], "p99-collecting-ms")
	b.ReportMetric(float64(collections)/float64(len(busy)), "collections")
}
