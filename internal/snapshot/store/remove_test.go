package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(root+"/a/b/c", 0o700), os.Mkdir(outside, 0o700), os.WriteFile(outside+"/f", nil, 0o600))
	must(os.WriteFile(root+"/a/f", nil, 0), os.Symlink(outside, root+"/a/link"), unix.Mkfifo(root+"/a/b/fifo", 0o600), os.Mkdir(root+"/.removed-1", 0))
	for range 2 { // what is gone is no error
		must(RemoveTree(root))
	}
	must(RemoveTree(filepath.Join(dir, "no", "where")), RemoveTree(outside+"/f"))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "outside" {
		t.Errorf("left %v, %v", entries, err)
	}
}

// nest makes directories each in the last, more than a path can name.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, dirFlags, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o700)
		}
		sub, oerr := unix.Openat(fd, "d", dirFlags, 0)
		unix.Close(fd)
		if err = errors.Join(err, oerr); err != nil {
			t.Fatal(err)
		}
		fd = sub
	}
	unix.Close(fd)
}

// What a container can do must not take the daemon's descriptors.
func TestNestedDirectories(t *testing.T) {
	s := open(t)
	dir := filepath.Join(s.root, "snapshots", "1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	nest(t, dir, 3000)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 2500, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	if _, err := Measure(t.Context(), dir); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("measured: %v", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// Where mounts are shared, what is mounted in a root filesystem is mounted in the
// snapshot's directory too.
func TestRemoveLeavesMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	s, volume := open(t), t.TempDir()
	precious := filepath.Join(volume, "precious")
	dir := filepath.Join(s.root, "snapshots", "1")
	at := filepath.Join(dir, "fs", "mnt")
	if err := errors.Join(os.MkdirAll(at, 0o700), os.WriteFile(dir+"/fs/f", nil, 0o600), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	// Of the same filesystem, so that the device's number does not tell.
	if err := unix.Mount(volume, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := s.Cleanup(t.Context())
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("cleaned up: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error("the volume was emptied: ", err)
	}
	if _, err := os.Stat(dir + "/fs/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what can go is there: %v", err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

func BenchmarkRemoveTree(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		dir := filepath.Join(b.TempDir(), time.Now().Format(time.RFC3339Nano))
		for i := range 200 {
			sub := filepath.Join(dir, string(rune('a'+i%20)), string(rune('a'+i/20)))
			if err := errors.Join(os.MkdirAll(sub, 0o700), os.WriteFile(sub+"/f", nil, 0o600)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if err := RemoveTree(dir); err != nil {
			b.Fatal(err)
		}
	}
}
