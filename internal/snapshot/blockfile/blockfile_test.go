package blockfile

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// scratch makes an image of an empty ext4.
func scratch(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
	path := filepath.Join(t.TempDir(), "scratch")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", path).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	m := []object.Mount{{Type: "ext4", Source: path, Options: []string{"loop"}}}
	if err := mount.WithTemp(t.Context(), m, func(root string) error { return os.Remove(filepath.Join(root, "lost+found")) }); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContract(t *testing.T) {
	image := scratch(t)
	snapshottest.Run(t, snapshottest.Config{Images: true, New: func(t *testing.T) snapshot.Snapshotter {
		s, err := New(t.Context(), t.TempDir(), Options{ScratchFile: image})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}})
}

func TestScratch(t *testing.T) {
	root := t.TempDir()
	if _, err := New(t.Context(), root, Options{}); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("without a scratch file: %v", err)
	}
	write := func(name, content string) string {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		opts Options
		want string
	}{
		{Options{ScratchFile: write("one", "one")}, "one"},
		{Options{ScratchFile: write("two", "two")}, "one"},
		{Options{}, "one"},
		{Options{ScratchFile: write("two", "two"), RecreateScratch: true}, "two"},
	} {
		s, err := New(t.Context(), root, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "scratch")); err != nil || string(got) != c.want {
			t.Errorf("%+v: scratch %q %v", c.opts, got, err)
		}
	}
}

func TestMounts(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), root, Options{ScratchFile: file, FSType: "xfs", MountOptions: []string{"nouuid"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Prepare(t.Context(), "a", "", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "base", "a", snapshot.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	for key, c := range map[string]struct {
		view bool
		want string
	}{
		"rw": {false, "[{xfs " + root + "/snapshots/%s  [nouuid loop rw]}]"},
		"ro": {true, "[{xfs " + root + "/snapshots/1  [nouuid loop ro]}]"},
	} {
		do := s.Prepare
		if c.view {
			do = s.View
		}
		m, err := do(t.Context(), key, "base", nil)
		if err != nil {
			t.Fatal(err)
		}
		if !c.view {
			snap, err := s.Store.Get(key)
			if err != nil {
				t.Fatal(err)
			}
			c.want = fmt.Sprintf(c.want, snap.ID)
		}
		if fmt.Sprint(m) != c.want {
			t.Errorf("%v, want %s", m, c.want)
		}
	}
}
