package compat

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// TestMountsAreCollected: what nothing refers to goes with the garbage, also over
// the end of a daemon; what a lease or a container holds stays.
func TestMountsAreCollected(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	task := w.create("holder", forever, nullIO, false)
	defer func() { _ = task }()
	source := t.TempDir()
	activate := func(name, lease string, labels map[string]string) {
		t.Helper()
		ctx := w.ctx
		if lease != "" {
			ctx = leases.WithLease(ctx, lease)
		}
		_, err := w.c.MountManager().Activate(ctx, name, []mount.Mount{{Type: "bind", Source: source, Options: []string{"rbind"}}}, mount.WithTemporary, mount.WithLabels(labels))
		w.try(err)
	}
	activate("leased", "kept", nil)
	activate("held", "", map[string]string{"containerd.io/gc.bref.container": "holder"})
	activate("loose", "", nil)
	mounts := func() int {
		b, _ := os.ReadFile("/proc/self/mountinfo")
		return strings.Count(string(b), n.dir+"/state/io.containerd.mount-manager.v1.bolt/t/")
	}
	if mounts() != 3 {
		t.Errorf("%d mounts, want 3", mounts())
	}
	collect := func() {
		t.Helper()
		l, err := w.c.LeasesService().Create(w.ctx, leases.WithRandomID())
		w.try(err)
		w.try(w.c.LeasesService().Delete(w.ctx, l, leases.SynchronousDelete))
	}
	gone := func(name string) {
		t.Helper()
		waitFor(t, func() bool {
			_, err := w.c.MountManager().Info(w.ctx, name)
			return errdefs.IsNotFound(err)
		}, name+" is collected")
	}
	collect()
	gone("loose")
	n.stop(9)
	w.c = n.start(oursBin)
	for _, name := range []string{"leased", "held"} {
		if _, err := w.c.MountManager().Info(w.ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.kill("holder")
	collect()
	gone("held")
	w.try(w.c.LeasesService().Delete(w.ctx, leases.Lease{ID: "kept"}, leases.SynchronousDelete))
	gone("leased")
	waitFor(t, func() bool { return mounts() == 0 }, "all mounts are undone")
}
