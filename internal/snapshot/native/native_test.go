package native

import (
	"testing"

	"berth/internal/snapshot"
	"berth/internal/snapshot/snapshottest"
)

var (
	_ snapshot.Backend = (*Snapshotter)(nil)
	_ snapshot.Cleaner = (*Snapshotter)(nil)
	_ snapshot.Syncer  = (*Snapshotter)(nil)
)

func TestContract(t *testing.T) {
	snapshottest.Run(t, snapshottest.Config{New: func(t *testing.T) snapshot.Snapshotter {
		s, err := New(t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}})
}
