package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/snapshottest"

	"github.com/containerd/errdefs"
)

var (
	_ snapshot.Backend = (*Snapshotter)(nil)
	_ snapshot.Cleaner = (*Snapshotter)(nil)
	_ snapshot.Syncer  = (*Snapshotter)(nil)
)

func open(t testing.TB, root string, opts Options) *Snapshotter {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("snapshots belong to root")
	}
	s, err := New(root, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	for name, opts := range map[string]Options{"default": {}, "sync": {SyncRemove: true, MountOptions: []string{"volatile"}}} {
		t.Run(name, func(t *testing.T) {
			snapshottest.Run(t, snapshottest.Config{
				Rebase: true,
				New:    func(t *testing.T) snapshot.Snapshotter { return open(t, t.TempDir(), opts) },
			})
		})
	}
}

func commit(t testing.TB, s *Snapshotter, name, parent string) {
	t.Helper()
	if _, err := s.Prepare(t.Context(), name+"-", parent, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), name, name+"-", snapshot.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestMountOptions(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, Options{MountOptions: []string{"index=on", "volatile"}})
	defer s.Close()
	commit(t, s, "one", "")
	commit(t, s, "two", "one")
	dir := func(id int, sub string) string { return filepath.Join(root, "snapshots", fmt.Sprint(id), sub) }
	show := func(key, parent string, view bool) string {
		do := s.Prepare
		if view {
			do = s.View
		}
		m, err := do(t.Context(), key, parent, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(m) != 1 {
			t.Fatalf("%v", m)
		}
		return m[0].Type + " " + m[0].Source + " " + strings.Join(m[0].Options, ",")
	}
	for _, c := range []struct{ got, want string }{
		{show("a", "", false), "bind " + dir(3, "fs") + " rw,rbind"},
		{show("b", "", true), "bind " + dir(4, "fs") + " ro,rbind"},
		{show("c", "one", true), "bind " + dir(1, "fs") + " ro,rbind"},
		{show("d", "two", true), "overlay overlay lowerdir=" + dir(2, "fs") + ":" + dir(1, "fs") + ",index=on,volatile"},
		{show("e", "two", false), "overlay overlay workdir=" + dir(7, "work") + ",upperdir=" + dir(7, "fs") + ",lowerdir=" + dir(2, "fs") + ":" + dir(1, "fs") + ",index=on,volatile"},
	} {
		if c.got != c.want {
			t.Errorf("mount\n%s, want\n%s", c.got, c.want)
		}
	}
}

func TestUpperdirLabel(t *testing.T) {
	s := open(t, t.TempDir(), Options{UpperdirLabel: true})
	defer s.Close()
	commit(t, s, "one", "")
	info, err := s.Stat(t.Context(), "one")
	if err != nil || info.Labels[labelUpperdir] != s.fs("1") {
		t.Errorf("%v %v", info, err)
	}
}

func TestRestartKeepsSnapshotsAndRemovesGarbage(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, Options{})
	commit(t, s, "one", "")
	if _, err := s.Prepare(t.Context(), "a", "one", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a crash leaves: a directory whose record was not committed, one of
	// containerd's that had no number yet, one that was being deleted.
	for _, d := range []string{"7", "new-123", "rm-1"} {
		if err := os.MkdirAll(filepath.Join(root, "snapshots", d, "fs"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, root, Options{})
	defer s.Close()
	if _, err := s.Prepare(t.Context(), "b", "one", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(root, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"1", "2", "8"}; !slices.Equal(names, want) {
		t.Errorf("directories %v, want %v", names, want)
	}
}

func TestFailedPrepareLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, Options{})
	defer s.Close()
	_, err := s.Prepare(t.Context(), "a", "", map[string]string{snapshot.LabelUIDMapping: "5:1:1", snapshot.LabelGIDMapping: "0:1:1"})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a mapping without root: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(root, "snapshots")); err != nil || len(entries) > 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

// An image of more layers than a page of mount options has room for.
func TestManyLayers(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), strings.Repeat("long", 30)), Options{})
	defer s.Close()
	const layers = 250
	parent := ""
	for i := range layers {
		name := fmt.Sprint("layer", i)
		commit(t, s, name, parent)
		snap, err := s.store.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.fs(snap.ID), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	for name, do := range map[string]func(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error){"view": s.View, "active": s.Prepare} {
		m, err := do(t.Context(), name, parent, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := mount.WithTemp(t.Context(), m, func(root string) error {
			entries, err := os.ReadDir(root)
			if len(entries) != layers {
				t.Errorf("%s: %d files", name, len(entries))
			}
			return err
		}); err != nil {
			t.Error(name, err)
		}
	}
}

// BenchmarkPrepare makes and removes a snapshot above an image of ten layers.
func BenchmarkPrepare(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			defer s.Close()
			parent := ""
			for i := range 10 {
				name := fmt.Sprint("layer", i)
				commit(b, s, name, parent)
				parent = name
			}
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					for i := c; i < b.N; i += clients {
						key := fmt.Sprint("key", i)
						if _, err := s.Prepare(b.Context(), key, parent, nil); err != nil {
							b.Error(err)
							return
						}
						if err := s.Remove(b.Context(), key); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
