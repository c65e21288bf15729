package fsx_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/fsx"
	"berth/internal/fsx/fsxtest"

	"github.com/containerd/errdefs"
)

var osfs *fsx.OS // the real one

func TestWriteAtomicSurvivesEveryFailure(t *testing.T) {
	for name, fault := range map[string]func(int) *fsxtest.Fault{"error": fsxtest.FailAt, "crash": fsxtest.CrashAt} {
		t.Run(name, func(t *testing.T) {
			n := fsxtest.EachOp(t, fault, func(t *testing.T, f *fsxtest.Fault) {
				path := filepath.Join(t.TempDir(), "file")
				if err := osfs.WriteAtomic("setup", path, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
				err := f.OS().WriteAtomic("test", path, []byte("new bytes"), 0o600)
				_, hit := f.Hit()
				if hit != (err != nil) {
					t.Fatalf("failure reached: %v, error %v", hit, err)
				}
				if hit && !errors.Is(err, fsxtest.ErrInjected) {
					t.Fatalf("error %v does not wrap the failure", err)
				}
				got, rerr := os.ReadFile(path)
				if rerr != nil {
					t.Fatal(rerr)
				}
				if s := string(got); s != "new bytes" && (err == nil || s != "old") {
					t.Fatalf("file holds %q after error %v", s, err)
				}
				if err := osfs.WriteAtomic("again", path, []byte("again"), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("temporary file left: %v", err)
				}
			})
			if n < 5 {
				t.Fatalf("only %d operations", n)
			}
		})
	}
}

func TestWriteAtomicTrace(t *testing.T) {
	dir := t.TempDir()
	tr := &fsxtest.Trace{Strip: dir}
	if err := tr.OS().WriteAtomic("conf", filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimSpace(`
conf: open /f.tmp
conf: write /f.tmp
conf: sync /f.tmp
conf: rename /f.tmp /f
conf: syncdir 
`)
	if got := strings.TrimSpace(tr.String()); got != want {
		t.Fatalf("operations:\n%s\nwant:\n%s", got, want)
	}
}

func TestWriteIfChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, tc := range []struct {
		data  string
		wrote bool
	}{{"a", true}, {"a", false}, {"b", true}, {"longer", true}, {"longer", false}, {"", true}, {"", false}} {
		wrote, err := osfs.WriteIfChanged("test", path, []byte(tc.data), 0o600)
		if err != nil || wrote != tc.wrote {
			t.Fatalf("%q: wrote %v, %v", tc.data, wrote, err)
		}
		if got, _ := os.ReadFile(path); string(got) != tc.data {
			t.Fatalf("file holds %q, want %q", got, tc.data)
		}
	}
	if _, err := osfs.WriteIfChanged("test", t.TempDir(), nil, 0o600); err == nil {
		t.Fatal("a directory was accepted")
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := osfs.MkdirAll("test", deep, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(deep); err != nil || !fi.IsDir() {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := osfs.WriteFile("test", file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(file, "x")} {
		if err := osfs.MkdirAll("test", p, 0o700); err == nil {
			t.Fatalf("%s: no error", p)
		}
	}
}

func TestRenameNoReplace(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := osfs.WriteFile("test", p, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := osfs.RenameNoReplace("test", a, b); !errors.Is(err, os.ErrExist) {
		t.Fatalf("got %v", err)
	}
	if err := osfs.Remove("test", b); err != nil {
		t.Fatal(err)
	}
	if err := osfs.RenameNoReplace("test", a, b); err != nil {
		t.Fatal(err)
	}
}

func TestTryLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := fsx.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsx.TryLock(path); !errdefs.IsUnavailable(err) {
		t.Fatalf("second lock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = fsx.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := osfs.OpenFile("test", path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	f.StartWriteback(0, 100)
	when := time.Date(2020, 1, 2, 3, 4, 5, 678000, time.UTC)
	for _, err := range []error{f.Truncate(10), f.Chmod(0o444), f.SetTime(when), f.Sync()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() != 10 || fi.Mode() != 0o444 || !fi.ModTime().Equal(when) {
		t.Fatalf("file is %d bytes, %v, %v", fi.Size(), fi.Mode(), fi.ModTime())
	}
}

func TestOpenTemp(t *testing.T) {
	dir := t.TempDir()
	f, err := osfs.OpenTemp("test", dir, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("it has a name: %v, %v", entries, err)
	}
	path := filepath.Join(dir, "f")
	if err := f.Link(path); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := f.Link(path); !errors.Is(err, os.ErrExist) {
		t.Fatalf("second link: %v", err)
	}
	if err := f.Link(filepath.Join(dir, "none", "f")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("link into nowhere: %v", err)
	}
}
