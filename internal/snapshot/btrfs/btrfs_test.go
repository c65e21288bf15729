package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// filesystem mounts a fresh btrfs and returns where.
func filesystem(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
	dir := t.TempDir()
	image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20), os.Mkdir(root, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.btrfs", "-q", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.btrfs: %v: %s", err, out)
	}
	if err := mount.All([]object.Mount{{Type: "btrfs", Source: image, Options: []string{"loop"}}}, root); err != nil {
		t.Skip("the kernel has no btrfs: ", err)
	}
	t.Cleanup(func() {
		if err := mount.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

func open(t *testing.T, root string) *Snapshotter {
	t.Helper()
	s, err := New(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	dir, n := filesystem(t), 0
	snapshottest.Run(t, snapshottest.Config{New: func(t *testing.T) snapshot.Snapshotter {
		n++
		return open(t, filepath.Join(dir, fmt.Sprint("root", n)))
	}})
}

// Temporary mounts are on the filesystem of the snapshots when all of the daemon's
// root is on a btrfs.
func TestTemporaryMountsOnTheSameFilesystem(t *testing.T) {
	root := filesystem(t)
	tmp := filepath.Join(root, "tmpmounts")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	s := open(t, filepath.Join(root, "snapshotter"))
	defer s.Close()
	m, err := s.Prepare(t.Context(), "a", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTemp(t.Context(), m, func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir(object.SnapshotActive, "1"), "f")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestNotBtrfs(t *testing.T) {
	root := filepath.Join("/dev/shm", "berth-no-btrfs")
	if _, err := New(root, nil); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("on a tmpfs: %v", err)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// A commit that a crash or a failure cuts short is done again, subvolumes that
// a container has made are deleted with it, and Cleanup deletes the rest.
func TestLeftovers(t *testing.T) {
	root := filesystem(t)
	s := open(t, root)
	defer s.Close()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Prepare(ctx, "a", "", nil)
	must(err)
	must(snapshotSubvolume(s.dir(object.SnapshotCommitted, "1"), s.dir(object.SnapshotActive, "1"), true))
	must(os.WriteFile(s.dir(object.SnapshotActive, "1")+"/f", nil, 0o600))
	must(s.Commit(ctx, "base", "a", snapshot.CommitOptions{}))
	if _, err := os.Stat(s.dir(object.SnapshotCommitted, "1") + "/f"); err != nil {
		t.Error("the commit kept an old snapshot: ", err)
	}
	_, err = s.Prepare(ctx, "b", "base", nil)
	must(err)
	nested := s.dir(object.SnapshotActive, "2") + "/deep/nested"
	must(os.Mkdir(filepath.Dir(nested), 0o700))
	must(createSubvolume(nested))
	must(s.Remove(ctx, "b"))
	_, err = s.Prepare(ctx, "c", "base", nil)
	must(err)
	must(createSubvolume(s.dir(object.SnapshotActive, "1"))) // its record is committed
	must(createSubvolume(s.dir(object.SnapshotActive, "77")))
	must(createSubvolume(s.dir(object.SnapshotView, "rm-3")))
	must(os.Mkdir(s.dir(object.SnapshotCommitted, "3"), 0o700)) // its record is active
	must(s.Cleanup(context.WithoutCancel(ctx)))
	var got []string
	for _, dir := range []string{"active", "view", "snapshots"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		must(err)
		for _, e := range entries {
			got = append(got, dir+"/"+e.Name())
		}
	}
	if want := []string{"active/3", "snapshots/1"}; !slices.Equal(got, want) {
		t.Errorf("subvolumes %v, want %v", got, want)
	}
}
