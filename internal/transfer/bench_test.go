package transfer_test

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"berth/internal/registry"
)

// BenchmarkPull pulls an image from a real registry onto the disk, barrier
// included: with BERTH_BENCH_IMAGE (127.0.0.1:5000/big:latest by default) and
// only when something listens there.
func BenchmarkPull(b *testing.B) {
	ref := os.Getenv("BERTH_BENCH_IMAGE")
	if ref == "" {
		ref = "127.0.0.1:5000/big:latest"
	}
	r, err := registry.ParseReference(ref)
	if err != nil {
		b.Fatal(err)
	}
	if c, err := net.DialTimeout("tcp", r.Host, time.Second); err != nil {
		b.Skip("no registry: ", err)
	} else {
		c.Close()
	}
	if os.Geteuid() != 0 {
		b.Skip("unpacking needs root")
	}
	for b.Loop() {
		b.StopTimer()
		d := newDaemon(b)
		remote, err := registry.NewRemote(ref, registry.Options{})
		if err != nil {
			b.Fatal(err)
		}
		syscall.Sync()
		b.StartTimer()
		if _, err := d.svc.Pull(b.Context(), "test", "", remote, target(true), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(d.root)
		b.StartTimer()
	}
}
