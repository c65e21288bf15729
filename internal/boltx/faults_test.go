package boltx

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A full disk fails the calls that need room, and nothing else: when there is
// room again, the next ones succeed.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(root, "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	change(t, db, rand.New(rand.NewPCG(1, 2)), 50)
	before := dump(t, db)
	put := func(size int) error {
		return db.Update(t.Context(), func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("v1")).Put([]byte("large"), make([]byte, size))
		})
	}
	for range 2 {
		if err := put(8 << 20); !errors.Is(err, unix.ENOSPC) || errdefs.IsUnavailable(err) {
			t.Fatalf("%v, want ENOSPC", err)
		}
		if dump(t, db) != before {
			t.Fatal("something remains of what failed")
		}
	}
	if err := put(1 << 20); err != nil {
		t.Fatalf("there is room for this: %v", err)
	}
	after := dump(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(path, "test"); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if dump(t, db) != after {
		t.Error("not what was committed")
	}
}

// After a failure that leaves in doubt what the disk has, nothing more is written.
func TestNothingIsWrittenAfterDoubt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	change(t, db, rand.New(rand.NewPCG(1, 2)), 50)
	before := dump(t, db)
	put := func() error {
		return db.Update(t.Context(), func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("v1")).Put([]byte("k"), []byte("v"))
		})
	}
	db.sealer.last.Tx += 100 // the meta page is not what it should be
	for range 2 {
		if err := put(); !errdefs.IsUnavailable(err) {
			t.Errorf("%v, want unavailable", err)
		}
	}
	if dump(t, db) != before {
		t.Error("something was written")
	}
}
