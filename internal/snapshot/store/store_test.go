package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mkdir(dir string, _ Snapshot) error { return os.Mkdir(dir, 0o700) }

func nothing(string) (object.SnapshotUsage, error) {
	return object.SnapshotUsage{Inodes: 7, Size: 4096}, nil
}

// TestFormat pins the bytes on disk, which are containerd's.
func TestFormat(t *testing.T) {
	s := open(t)
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	s.now = func() time.Time { return when }
	for _, step := range []struct{ key, name, parent string }{{"a", "one", ""}, {"b", "two", "one"}} {
		if _, err := s.Create(t.Context(), object.SnapshotActive, step.key, step.parent, nil, mkdir); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), step.name, step.key, snapshot.CommitOptions{Labels: map[string]string{"l": "v", "empty": ""}}, true, nothing); err != nil {
			t.Fatal(err)
		}
	}
	stamp, err := when.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.View(func(tx *bolt.Tx) error {
		snapshots, parents := buckets(tx)
		if snapshots.Sequence() != 2 {
			t.Errorf("sequence %d", snapshots.Sequence())
		}
		b := snapshots.Bucket([]byte("two"))
		for k, want := range map[string][]byte{
			"id": {2}, "kind": {3}, "parent": []byte("one"), "inodes": {14}, "size": {0x80, 0x40}, "createdat": stamp, "updatedat": stamp,
		} {
			if got := b.Get([]byte(k)); !bytes.Equal(got, want) {
				t.Errorf("%s: %x, want %x", k, got, want)
			}
		}
		if l := b.Bucket([]byte("labels")); string(l.Get([]byte("l"))) != "v" || l.Stats().KeyN != 1 {
			t.Error("labels")
		}
		if got := parents.Get([]byte{1, 0, 2}); string(got) != "two" || parents.Stats().KeyN != 1 {
			t.Errorf("link %q", got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestFailedCreateLeavesNoDirectory(t *testing.T) {
	s := open(t)
	own := errors.New("own")
	_, err := s.Create(t.Context(), object.SnapshotActive, "a", "", nil, func(dir string, snap Snapshot) error {
		if err := mkdir(dir, snap); err != nil {
			return err
		}
		return own
	})
	if !errors.Is(err, own) {
		t.Fatal(err)
	}
	// The key is taken between the check and the transaction.
	_, err = s.Create(t.Context(), object.SnapshotActive, "a", "", nil, func(dir string, snap Snapshot) error {
		if _, err := s.Create(t.Context(), object.SnapshotActive, "a", "", nil, mkdir); err != nil {
			return err
		}
		return mkdir(dir, snap)
	})
	if !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	names, err := dirNames(filepath.Join(s.root, "snapshots"))
	if err != nil || len(names) != 1 {
		t.Errorf("directories %v, %v", names, err)
	}
}

func TestCleanupSparesWhatIsBeingMade(t *testing.T) {
	s := open(t)
	snap, err := s.Create(t.Context(), object.SnapshotActive, "a", "", nil, func(dir string, snap Snapshot) error {
		if err := mkdir(dir, snap); err != nil {
			return err
		}
		return s.Cleanup(t.Context())
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Dir(snap.ID)); err != nil {
		t.Error(err)
	}
}

// TestDamagedRecord: nothing is deleted as long as it is not known whose it is.
func TestDamagedRecord(t *testing.T) {
	s := open(t)
	snap, err := s.Create(t.Context(), object.SnapshotActive, "a", "", nil, mkdir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(t.Context(), func(tx *bolt.Tx) error {
		snapshots, _ := buckets(tx)
		return snapshots.Bucket([]byte("a")).Delete([]byte("id"))
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("a"); !errors.Is(err, errDamaged) {
		t.Errorf("%v", err)
	}
	if err := s.Cleanup(t.Context()); !errors.Is(err, errDamaged) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(s.Dir(snap.ID)); err != nil {
		t.Error(err)
	}
}

// FuzzRecord reads records of whatever bytes.
func FuzzRecord(f *testing.F) {
	f.Add([]byte{1}, []byte{3}, []byte("a"), []byte{1, 0, 0}, []byte{14}, []byte{0x80})
	s := open(f)
	f.Fuzz(func(t *testing.T, id, kind, parent, created, size, inodes []byte) {
		if err := s.db.Update(t.Context(), func(tx *bolt.Tx) error {
			snapshots, _, err := makeBuckets(tx)
			if err != nil {
				return err
			}
			b, err := snapshots.CreateBucketIfNotExists([]byte("a"))
			if err != nil {
				return err
			}
			for k, v := range map[string][]byte{"id": id, "kind": kind, "parent": parent, "createdat": created, "size": size, "inodes": inodes} {
				if err := b.Put([]byte(k), v); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		_, _ = s.Get("a")
		_ = s.Walk(t.Context(), func(Snapshot) error { return nil })
	})
}

// One directory that cannot be removed costs that one.
func TestSweepGoesOn(t *testing.T) {
	s, err := Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := filepath.Join(s.Root(), "snapshots")
	for _, name := range []string{"7", "8", "9"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	stuck := errors.New("stuck")
	err = s.Sweep(t.Context(), Place{Dir: dir, Remove: func(path string) error {
		if filepath.Base(path) == "8" {
			return stuck
		}
		return os.Remove(path)
	}})
	if !errors.Is(err, stuck) {
		t.Errorf("error %v", err)
	}
	if left, err := dirNames(dir); err != nil || !slices.Equal(left, []string{"8"}) {
		t.Errorf("left: %v %v", left, err)
	}
}

// What a rescue keeps has an identifier that must not be given again, wherever it is.
func TestKeptIdentifiers(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, keptName), []byte("12\n7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(root, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	snap, err := s.Create(t.Context(), object.SnapshotActive, "a", "", nil, mkdir)
	if err != nil || snap.ID != "13" {
		t.Errorf("identifier %q, %v; want 13", snap.ID, err)
	}
}

func TestCopyTreeCopiesSockets(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	if err := unix.Mknod(filepath.Join(src, "socket"), unix.S_IFSOCK|0o640, 0); err != nil {
		t.Fatal(err)
	}
	if err := CopyTree(t.Context(), src, dst); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(filepath.Join(dst, "socket")); err != nil || st.Mode() != os.ModeSocket|0o640 {
		t.Errorf("%v, %v", st, err)
	}
}

// A directory that goes while it is measured is not counted, and no failure.
func TestMeasureGoneDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, dirFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	w := walk{ctx: t.Context(), linked: map[inode]struct{}{}, buf: make([]byte, 4<<10)}
	if err := w.dir(fd, -1, 0); err != nil {
		t.Error(err)
	}
}
