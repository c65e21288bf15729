package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/cmd/ctr/output"
)

// Two images share a blob and a layer; a container stands on the first.
func TestDiskSum(t *testing.T) {
	blob := func(name string) diskKey { return diskKey{name: name} }
	snap := func(name string) diskKey { return diskKey{"ns", "overlayfs", name} }
	in := func(images ...int) map[int]bool {
		m := map[int]bool{}
		for _, i := range images {
			m[i] = true
		}
		return m
	}
	now := time.Now()
	d := &disk{
		view: diskView{
			Images: []diskImage{{Namespace: "ns", Name: "one", Containers: 1}, {Namespace: "ns", Name: "two"}},
			Containers: []diskContainer{
				{Namespace: "ns", ID: "c", Snapshotter: "overlayfs", SnapshotKey: "c", Status: "RUNNING", Size: 5},
				{Namespace: "ns", ID: "d", Snapshotter: "overlayfs", SnapshotKey: "d", Size: 7},
			},
			Ingests: []diskIngest{{Size: 3, UpdatedAt: now}, {Size: 4, UpdatedAt: now.Add(-2 * time.Hour)}},
		},
		items: map[diskKey]*diskItem{
			blob("shared"): {size: 100, images: in(0, 1)}, blob("one"): {size: 10, images: in(0)}, blob("two"): {size: 20, images: in(1)}, blob("nobody"): {size: 1},
			snap("base"): {size: 1000, images: in(0, 1), used: true}, snap("of two"): {size: 200, images: in(1)},
			snap("c"): {size: 5, used: true}, snap("d"): {size: 7, used: true},
		},
	}
	d.sum(now)
	want := []diskRow{
		{"Blobs", 4, 2, 131, 21}, {"Layers", 2, 1, 1200, 200}, {"Containers", 2, 1, 12, 7}, {"Downloads", 2, 1, 7, 4},
	}
	for i, w := range want {
		if d.view.Summary[i] != w {
			t.Errorf("%+v, want %+v", d.view.Summary[i], w)
		}
	}
	two, one := d.view.Images[0], d.view.Images[1] // the largest first
	if one.Name != "one" || one.Size != 1110 || one.Shared != 1100 || one.Unique != 10 {
		t.Errorf("%+v", one)
	}
	if two.Size != 1320 || two.Shared != 1100 || two.Unique != 220 || two.Blobs != 120 || two.Snapshots != 1200 {
		t.Errorf("%+v", two)
	}
}

func TestOfflineCheck(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const blobs = "io.containerd.content.v1.content/blobs/sha256/"
	write(blobs+"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", "foo")
	write(blobs+"fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9", "not bar")
	write(blobs+"not-a-digest", "x")
	write("io.containerd.content.v1.content/ingest/abc/data", "x")
	write("io.containerd.metadata.v1.bolt/meta.db", strings.Repeat("\x00", 16384))
	write("io.containerd.snapshotter.v1.overlayfs/metadata.db", "")
	write("io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/f", "x")
	write("io.containerd.snapshotter.v1.overlayfs/snapshots/2/work/x", "x")
	write("io.containerd.snapshotter.v1.overlayfs/snapshots/rm-3/fs/f", "x")
	c := &checker{status: &output.Status{}}
	if err := c.offline(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9": "has the digest",
		"not-a-digest": "no digest", "ingest/abc": "its file ref is missing", "meta.db": "neither of its meta pages", "overlayfs/metadata.db": "it is empty",
		"snapshots/2": "fs is missing", "snapshots/rm-3": "being made or removed",
	}
	for _, f := range c.findings {
		known := false
		for name, problem := range want {
			if strings.HasSuffix(f.Name, name) && strings.Contains(f.Problem, problem) {
				delete(want, name)
				known = true
			}
		}
		if !known {
			t.Errorf("unexpected: %+v", f)
		}
	}
	for name := range want {
		t.Errorf("not found: %s", name)
	}
	if err := c.offline(t.Context(), filepath.Join(root, "nothing")); err == nil {
		t.Error("a root that is not there: no error")
	}
}

func TestAbove(t *testing.T) {
	list := []snapshotView{
		{Name: "base", Kind: "Committed"}, {Name: "mid", Kind: "Committed", Parent: "base"}, {Name: "top", Kind: "Committed", Parent: "mid"},
		{Name: "other", Kind: "Committed", Parent: "base"}, {Name: "c1", Kind: "Active", Parent: "top"},
	}
	committed, users := above(list, "mid")
	if strings.Join(committed, " ") != "top mid" || strings.Join(users, " ") != "c1" {
		t.Errorf("%q, %q", committed, users)
	}
	if committed, users = above(list, "other"); strings.Join(committed, " ") != "other" || users != nil {
		t.Errorf("%q, %q", committed, users)
	}
}
