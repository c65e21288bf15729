package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCreateArchive writes to everything that a path may be.
func TestCreateArchive(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, whole bool) {
		t.Helper()
		f, end, err := createArchive(path(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, "archive"); err != nil {
			t.Fatal(err)
		}
		if err := end(whole); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path(name + ".partial")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s.partial: %v", name, err)
		}
	}
	has := func(name, want string, mode fs.FileMode) {
		t.Helper()
		st, err := os.Lstat(path(name))
		if err != nil || st.Mode() != mode {
			t.Errorf("%s is %v (%v), want %v", name, st.Mode(), err, mode)
		}
		if got, err := os.ReadFile(path(name)); err != nil || string(got) != want {
			t.Errorf("%s has %q (%v), want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"old", "kept", "target"} {
		if err := os.WriteFile(path(name), []byte("before"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("target", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() {
		b, _ := os.ReadFile(path("pipe"))
		read <- string(b)
	}()

	write("new", true)
	write("old", true)
	has("old", "archive", 0o640)
	write("kept", false)
	has("kept", "before", 0o640)
	write("link", true)
	has("target", "archive", 0o640)
	if to, err := os.Readlink(path("link")); err != nil || to != "target" {
		t.Errorf("the link leads to %q (%v)", to, err)
	}
	write("pipe", true)
	if got := <-read; got != "archive" {
		t.Errorf("the pipe gave %q", got)
	}
	if _, _, err := createArchive(dir); err == nil {
		t.Error("a directory was taken")
	}
}
