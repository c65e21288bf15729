package meta

import (
	"os"
	"path/filepath"
	"testing"

	"berth/internal/snapshot"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"
	"berth/internal/snapshot/snapshottest"
)

func TestSnapshotContract(t *testing.T) {
	for name, open := range map[string]func(root string) (snapshot.Backend, error){
		"overlay": func(root string) (snapshot.Backend, error) { return overlay.New(root, overlay.Options{}) },
		"native":  func(root string) (snapshot.Backend, error) { return native.New(root, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("snapshots belong to root")
			}
			backend, err := open(filepath.Join(t.TempDir(), "probe"))
			if err != nil {
				t.Skipf("not usable here: %v", err)
			}
			capabilities := backend.Capabilities()
			if err := backend.Close(); err != nil {
				t.Fatal(err)
			}
			rebase := false
			for _, c := range capabilities {
				rebase = rebase || c == "rebase"
			}
			snapshottest.Run(t, snapshottest.Config{Rebase: rebase, New: func(t *testing.T) snapshot.Snapshotter {
				var backend snapshot.Backend
				f := newFixture(t, func(o *Options) {
					var err error
					if backend, err = open(filepath.Join(t.TempDir(), name)); err != nil {
						t.Fatal(err)
					}
					o.Snapshotters[name] = backend
				})
				t.Cleanup(func() {
					f.close(t) // before its backend
					if err := backend.Close(); err != nil {
						t.Error(err)
					}
				})
				s, err := f.Scope("ns", "").Snapshotter(name)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}})
		})
	}
}
