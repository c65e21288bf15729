package activation

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/mount"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// fakes is a handler whose mounts are files.
type fakes struct{ fail string }

func (f *fakes) Mount(_ context.Context, m object.Mount, at string, _ []object.ActiveMount) (object.ActiveMount, error) {
	if f.fail == "mount" {
		return object.ActiveMount{}, errdefs.ErrAborted
	}
	return object.ActiveMount{Mount: m, MountPoint: at}, os.WriteFile(at, []byte(m.Source), 0o600)
}

func (f *fakes) Unmount(_ context.Context, at string) error {
	if f.fail == "unmount" {
		return errdefs.ErrAborted
	}
	if err := os.Remove(at); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func newTable(t *testing.T, dir string, f *fakes) *Table {
	table := New(dir, mount.NewActivator(map[string]mount.Handler{"fake": f}, dir))
	t.Cleanup(func() { table.Close() })
	return table
}

var stack = []object.Mount{
	{Type: "fake", Source: "device"},
	{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}},
}

func keepAll(context.Context, string, References) (bool, error)  { return true, nil }
func keepNone(context.Context, string, References) (bool, error) { return false, nil }

func (t *Table) left(test *testing.T) []string {
	entries, err := os.ReadDir(t.targets())
	if err != nil && !os.IsNotExist(err) {
		test.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestLife(t *testing.T) {
	dir, ctx := filepath.Join(t.TempDir(), "mm"), t.Context()
	table := newTable(t, dir, &fakes{})
	plain := []object.Mount{{Type: "bind", Source: "/"}}
	if _, err := table.Activate(ctx, "ns", "a", plain, Options{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("nothing to prepare: %v", err)
	}
	if all, err := table.List(ctx, "ns"); err != nil || len(all) > 0 {
		t.Errorf("list of nothing: %v, %v", all, err)
	}
	if err := table.Deactivate(ctx, "ns", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("deactivate nothing: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a database was made for nothing: %v", err)
	}
	labels := map[string]string{"containerd.io/gc.bref.container": "c"}
	info, err := table.Activate(ctx, "ns", "a", stack, Options{Labels: labels, Lease: "l"})
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "t", "1", "1")
	if len(info.Active) != 1 || info.Active[0].MountPoint != at || len(info.System) != 1 || info.System[0].Source != at || info.System[0].Type != "bind" {
		t.Errorf("activated: %+v", info)
	}
	if _, err := table.Activate(ctx, "ns", "a", stack, Options{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second of the name: %v", err)
	}
	if _, err := table.Activate(ctx, "other", "a", stack, Options{}); err != nil {
		t.Errorf("the name in another namespace: %v", err)
	}
	if _, err := table.Activate(ctx, "ns", "", stack, Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no name: %v", err)
	}

	table.Close()
	table = newTable(t, dir, &fakes{})
	got, err := table.Info(ctx, "ns", "a")
	if err != nil || got.Labels["containerd.io/gc.bref.container"] != "c" || got.Active[0].MountPoint != at || got.Active[0].Type != "fake" ||
		got.Active[0].MountedAt.IsZero() || got.System[0].Source != at || !slices.Equal(got.System[0].Options, []string{"ro", "rbind"}) {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	if all, err := table.List(ctx, "ns"); err != nil || len(all) != 1 || all[0].Name != "a" {
		t.Errorf("list: %+v, %v", all, err)
	}
	if _, err := table.Info(ctx, "ns", "b"); !errdefs.IsNotFound(err) {
		t.Errorf("info of none: %v", err)
	}
	for _, ns := range []string{"ns", "other"} {
		if err := table.Deactivate(ctx, ns, "a"); err != nil {
			t.Error(err)
		}
	}
	if left := table.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := table.view(func(tx *bolt.Tx) error {
		if within(tx, []byte("ns"), keyLeases, []byte("l")) != nil {
			t.Error("the lease's entry is left")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	ctx, f := t.Context(), &fakes{fail: "mount"}
	table := newTable(t, t.TempDir(), f)
	if _, err := table.Activate(ctx, "ns", "a", stack, Options{Lease: "l"}); err == nil {
		t.Fatal("no failure")
	}
	if _, err := table.Info(ctx, "ns", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("a record is left: %v", err)
	}
	if left := table.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	f.fail = ""
	if _, err := table.Activate(ctx, "ns", "a", stack, Options{}); err != nil {
		t.Fatal(err)
	}
	f.fail = "unmount"
	if err := table.Deactivate(ctx, "ns", "a"); err == nil {
		t.Error("no failure")
	}
	if len(table.left(t)) != 1 {
		t.Error("what is mounted was removed")
	}
	f.fail = ""
	if err := table.Collect(ctx, keepAll); err != nil {
		t.Error(err)
	}
	if left := table.left(t); len(left) > 0 {
		t.Errorf("left after the collection: %v", left)
	}
	many := make([]object.Mount, 300)
	for i := range many {
		many[i] = stack[0]
	}
	if _, err := table.Activate(ctx, "ns", "many", many, Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("300 mounts: %v", err)
	}
}

// A crash between the record and its mounts.
func TestStale(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	table := newTable(t, dir, &fakes{})
	db, err := table.open(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"again", "never"} {
		if err := db.Update(func(tx *bolt.Tx) error {
			number, _, err := begin(tx, "ns", id, time.Now(), Options{Lease: "gone"}, false)
			if err == nil {
				os.Mkdir(table.target(number), 0o700)
				os.WriteFile(filepath.Join(table.target(number), "1-type"), []byte("fake"), 0o600)
				err = os.WriteFile(filepath.Join(table.target(number), "1"), nil, 0o600)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Activate(ctx, "ns", "again", stack, Options{}); err != nil {
		t.Errorf("the name again: %v", err)
	}
	if err := table.Collect(ctx, func(_ context.Context, _ string, r References) (bool, error) { return r.Lease == "", nil }); err != nil {
		t.Error(err)
	}
	if left := table.left(t); !slices.Equal(left, []string{"3"}) {
		t.Errorf("left: %v, want 3", left)
	}
	if err := table.Collect(ctx, keepNone); err != nil {
		t.Error(err)
	}
	if all, err := table.List(ctx, "ns"); err != nil || len(all) > 0 || len(table.left(t)) > 0 {
		t.Errorf("after the collection: %v, %v, %v", all, err, table.left(t))
	}
}

func TestReferences(t *testing.T) {
	r := referencesOf("l", map[string]string{
		"containerd.io/gc.bref.container":            "c1",
		"containerd.io/gc.bref.container.x":          "c2",
		"containerd.io/gc.bref.containers":           "no",
		"containerd.io/gc.bref.content/1":            "sha256:x",
		"containerd.io/gc.bref.image":                "i",
		"containerd.io/gc.bref.snapshot.overlayfs":   "s1",
		"containerd.io/gc.bref.snapshot.overlayfs/2": "s2",
		"containerd.io/gc.ref.container":             "no",
	})
	slices.Sort(r.Containers)
	if r.Lease != "l" || strings.Join(r.Containers, " ") != "c1 c2" || len(r.Content) != 1 || len(r.Images) != 1 || len(r.Snapshots) != 2 || r.Snapshots[0].Snapshotter != "overlayfs" {
		t.Errorf("%+v", r)
	}
}

// A state directory that has outlived its mounts (a reboot, another mount
// namespace) must not have a container run on the empty directories below.
func TestLostMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	ctx, dir := t.Context(), t.TempDir()
	table := newTable(t, dir, &fakes{})
	mounts := []object.Mount{
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}},
	}
	info, err := table.Activate(ctx, "ns", "a", mounts, Options{Lease: "l"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Activate(ctx, "ns", "a", mounts, Options{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("while it is active: %v", err)
	}
	if err := mount.Unmount(info.Active[0].MountPoint, 0); err != nil {
		t.Fatal(err)
	}
	again, err := table.Activate(ctx, "ns", "a", mounts, Options{})
	if err != nil {
		t.Fatal("its mounts are lost: ", err)
	}
	if at := again.System[0].Source; at == info.System[0].Source || !mount.IsThere(at) {
		t.Errorf("nothing is mounted at %s (before: %s)", at, info.System[0].Source)
	}
	if err := table.Deactivate(ctx, "ns", "a"); err != nil {
		t.Error(err)
	}
	if left := table.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
