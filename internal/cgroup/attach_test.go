package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOwnProcs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mnt/pids/a/b/cgroup.procs", "")
	for name, tt := range map[string]struct{ list, want string }{
		"version 2":      {"0::/user.slice\n", ""},
		"hybrid":         {"9:name=systemd:/x\n8:freezer:/gone\n7:pids:/a/b\n0::/\n", "mnt/pids/a/b/cgroup.procs"},
		"outside a root": {"7:pids:/../../a\n", ""},
		"nonsense":       {"\n:\nxyz\n", ""},
	} {
		write("list", tt.list)
		got := ownProcs(filepath.Join(dir, "list"), filepath.Join(dir, "mnt"))
		want := tt.want
		if want != "" {
			want = filepath.Join(dir, want)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := ownProcs(filepath.Join(dir, "none"), dir); got != "" {
		t.Errorf("no list: %q", got)
	}
}
