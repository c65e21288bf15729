package daemon

import (
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
)

// After a reboot the layers that an unfinished transfer committed are gone: their
// files may be. Those that somebody else holds stay, and so do all of them when
// only the daemon was killed.
func TestDistrust(t *testing.T) {
	for boot, trusted := range map[string]bool{"another boot": false, bootID(): true} {
		cfg := testConfig(t, t.TempDir())
		d := start(t, cfg)
		expires := map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)}
		for lease, labels := range map[string]map[string]string{"transfer": expires, "kept": nil} {
			if _, err := d.db.Scope("test", "").Leases().Create(t.Context(), object.Lease{ID: lease, Labels: labels}); err != nil {
				t.Fatal(err)
			}
			sn, err := d.db.Scope("test", lease).Snapshotter("native")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sn.Prepare(t.Context(), "active-"+lease, "", nil); err != nil {
				t.Fatal(err)
			}
			if err := sn.Commit(t.Context(), "layer-"+lease, "active-"+lease, snapshot.CommitOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.stop(); err != nil {
			t.Fatal(err)
		}
		if err := (mark{Boot: boot, Started: time.Now().Add(-time.Hour)}).write(cfg.Root); err != nil {
			t.Fatal(err)
		}
		d = start(t, cfg)
		sn, err := d.db.Scope("test", "").Snapshotter("native")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sn.Stat(t.Context(), "layer-kept"); err != nil {
			t.Errorf("boot %s: %v", boot, err)
		}
		_, err = sn.Stat(t.Context(), "layer-transfer")
		if trusted && err != nil || !trusted && !errdefs.IsNotFound(err) {
			t.Errorf("boot %s: the layer of an unfinished transfer: %v", boot, err)
		}
		if err := d.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
