package compat

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshottest "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

// suite runs containerd's own tests of snapshotters on one of a daemon's, which
// is of a kind that the suite knows.
func suite(t *testing.T, s snapshotClient, name, kind string) {
	n := 0
	snapshottest.SnapshotterSuite(t, kind, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		n++
		return inNamespace{s.c.SnapshotService(name), fmt.Sprint(name, "-", n)}, func() error { return nil }, nil
	})
}

// TestProxySnapshotter has our daemon use containerd's snapshotter in another
// process.
func TestProxySnapshotter(t *testing.T) {
	g := newGround(t, "[proxy_plugins.theirs]\ntype = 'snapshot'\naddress = 'DIR/proxy.sock'\n")
	remote, err := overlay.NewSnapshotter(filepath.Join(g.dir, "remote"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(g.dir, "proxy.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(remote))
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { // after the suite, whose tests are parallel
		server.Stop()
		serving.Wait()
		remote.Close()
	})
	suite(t, g.start(oursBin), "theirs", "overlayfs")
}

// TestSnapshotSuiteOfImages runs the suite on the snapshotters whose layers are images.
func TestSnapshotSuiteOfImages(t *testing.T) {
	programs(t, "mkfs.erofs", "mkfs.ext4")
	g := newGround(t, "[plugins.'io.containerd.snapshotter.v1.blockfile']\nscratch_file = 'DIR/scratch'\n")
	makeImage(t, g.dir+"/scratch", "16M", "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0")
	m := []mount.Mount{{Type: "ext4", Source: g.dir + "/scratch", Options: []string{"loop"}}}
	if err := mount.WithTempMount(t.Context(), m, func(root string) error { return os.Remove(root + "/lost+found") }); err != nil {
		t.Fatal(err)
	}
	s := g.start(oursBin)
	for _, name := range []string{"erofs", "blockfile"} {
		t.Run(name, func(t *testing.T) {
			if name == "erofs" {
				has(t, "erofs")
			}
			suite(t, s, name, name)
		})
	}
}
