// Package snapshottest is the contract of snapshot.Snapshotter as a suite of
// tests, which every implementation passes.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
)

// Config says what is tested.
type Config struct {
	// New makes an empty snapshotter, closed by the suite.
	New func(t *testing.T) snapshot.Snapshotter
	// Rebase: CommitOptions.Parent works.
	Rebase bool
	// NoMounts leaves out what needs to mount snapshots.
	NoMounts bool
	// Images: what a snapshot takes is an image's size, not its files' inodes.
	Images bool
	// Slack, in bytes, is what an image may take beside its files.
	Slack int64
	// NoHoles: sparse files are not kept sparse.
	NoHoles bool
	// Depth is how many layers the longest chain has; 40 when 0.
	Depth int
	// MaxName is the longest name of a file; 255 when 0.
	MaxName int
}

// Run runs the suite.
func Run(t *testing.T, c Config) {
	if os.Geteuid() != 0 {
		t.Skip("snapshots belong to root")
	}
	for name, test := range map[string]func(*fixture){
		"Kinds":        testKinds,
		"Errors":       testErrors,
		"Remove":       testRemove,
		"Labels":       testLabels,
		"Walk":         testWalk,
		"MountsStay":   testMountsStay,
		"Concurrency":  testConcurrency,
		"Rebase":       testRebase,
		"Usage":        testUsage,
		"Layers":       testLayers,
		"Renames":      testRenames,
		"Remap":        testRemap,
		"ViewsOfChain": testViewsOfChain,
		"FilesSurvive": testFilesSurvive,
		"ViewReadOnly": testViewReadOnly,
		"DeepChain":    testDeepChain,
		"Cleanup":      testCleanup,
		"Sync":         testSync,
	} {
		t.Run(name, func(t *testing.T) {
			s := c.New(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test(&fixture{T: t, Snapshotter: s, ctx: t.Context(), config: c})
		})
	}
}

type fixture struct {
	*testing.T
	snapshot.Snapshotter
	ctx    context.Context
	config Config
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) is(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Errorf("error %v, want %v", err, want)
	}
}

func (f *fixture) prepare(key, parent string) []object.Mount {
	f.Helper()
	m, err := f.Prepare(f.ctx, key, parent, nil)
	f.must(err)
	return m
}

func (f *fixture) commit(name, key string) {
	f.Helper()
	f.must(f.Commit(f.ctx, name, key, snapshot.CommitOptions{}))
}

// layer commits a snapshot in which change was made.
func (f *fixture) layer(name, parent string, change func(root string)) {
	f.Helper()
	f.in(f.prepare(name+"-active", parent), change)
	f.commit(name, name+"-active")
}

// in mounts and calls fn. Without mounts it does nothing.
func (f *fixture) in(mounts []object.Mount, fn func(root string)) {
	f.Helper()
	if f.config.NoMounts || fn == nil {
		return
	}
	f.must(mount.WithTemp(f.ctx, mounts, func(root string) error {
		fn(root)
		return nil
	}))
}

func (f *fixture) needMounts() {
	if f.config.NoMounts {
		f.Skip("without mounts")
	}
}

func testKinds(f *fixture) {
	f.prepare("a", "")
	f.expect("a", object.SnapshotActive, "")
	f.commit("base", "a")
	f.expect("base", object.SnapshotCommitted, "")
	_, err := f.Stat(f.ctx, "a")
	f.is(err, errdefs.ErrNotFound)

	f.prepare("a", "base") // the key is free again
	f.expect("a", object.SnapshotActive, "base")
	_, err = f.View(f.ctx, "v", "base", nil)
	f.must(err)
	f.expect("v", object.SnapshotView, "base")
	f.commit("top", "a")
	f.expect("top", object.SnapshotCommitted, "base")
	_, err = f.View(f.ctx, "empty", "", nil)
	f.must(err)
	f.expect("empty", object.SnapshotView, "")
}

func (f *fixture) expect(key string, kind object.SnapshotKind, parent string) {
	f.Helper()
	info, err := f.Stat(f.ctx, key)
	f.must(err)
	if info.Name != key || info.Kind != kind || info.Parent != parent {
		f.Errorf("%+v, want %s %v above %q", info, key, kind, parent)
	}
	if info.Created.IsZero() || info.Updated.Before(info.Created) {
		f.Errorf("%s: created %v, updated %v", key, info.Created, info.Updated)
	}
}

func testErrors(f *fixture) {
	f.layer("base", "", nil)
	f.prepare("active", "base")
	_, err := f.View(f.ctx, "view", "base", nil)
	f.must(err)

	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"stat unknown":             {second(f.Stat(f.ctx, "none")), errdefs.ErrNotFound},
		"mounts of unknown":        {second(f.Mounts(f.ctx, "none")), errdefs.ErrNotFound},
		"mounts of committed":      {second(f.Mounts(f.ctx, "base")), errdefs.ErrFailedPrecondition},
		"usage of unknown":         {second(f.Usage(f.ctx, "none")), errdefs.ErrNotFound},
		"prepare: key taken":       {second(f.Prepare(f.ctx, "active", "base", nil)), errdefs.ErrAlreadyExists},
		"prepare: name taken":      {second(f.Prepare(f.ctx, "base", "", nil)), errdefs.ErrAlreadyExists},
		"prepare: empty key":       {second(f.Prepare(f.ctx, "", "base", nil)), errdefs.ErrInvalidArgument},
		"prepare: no parent":       {second(f.Prepare(f.ctx, "x", "none", nil)), errdefs.ErrNotFound},
		"prepare: parent active":   {second(f.Prepare(f.ctx, "x", "active", nil)), errdefs.ErrInvalidArgument},
		"view: parent is a view":   {second(f.View(f.ctx, "x", "view", nil)), errdefs.ErrInvalidArgument},
		"commit unknown":           {f.Commit(f.ctx, "x", "none", snapshot.CommitOptions{}), errdefs.ErrNotFound},
		"commit a view":            {f.Commit(f.ctx, "x", "view", snapshot.CommitOptions{}), errdefs.ErrFailedPrecondition},
		"commit a committed":       {f.Commit(f.ctx, "x", "base", snapshot.CommitOptions{}), errdefs.ErrFailedPrecondition},
		"commit: name taken":       {f.Commit(f.ctx, "base", "active", snapshot.CommitOptions{}), errdefs.ErrAlreadyExists},
		"commit: other parent":     {f.Commit(f.ctx, "x", "active", snapshot.CommitOptions{Parent: "other"}), errdefs.ErrInvalidArgument},
		"remove unknown":           {f.Remove(f.ctx, "none"), errdefs.ErrNotFound},
		"remove with children":     {f.Remove(f.ctx, "base"), errdefs.ErrFailedPrecondition},
		"update unknown":           {second(f.Update(f.ctx, object.SnapshotInfo{Name: "none"})), errdefs.ErrNotFound},
		"update the parent":        {second(f.Update(f.ctx, object.SnapshotInfo{Name: "active"}, "parent")), errdefs.ErrInvalidArgument},
		"walk: malformed filter":   {f.Walk(f.ctx, func(object.SnapshotInfo) error { return nil }, `name==="`), errdefs.ErrInvalidArgument},
		"stat of a failed prepare": {second(f.Stat(f.ctx, "x")), errdefs.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			f.Errorf("%s: error %v, want %v", name, c.err, c.want)
		}
	}
	f.expect("active", object.SnapshotActive, "base")
}

func second[T any](_ T, err error) error { return err }

func testRemove(f *fixture) {
	f.layer("base", "", nil)
	f.layer("top", "base", nil)
	f.prepare("a", "top")
	f.is(f.Remove(f.ctx, "top"), errdefs.ErrFailedPrecondition)
	for _, key := range []string{"a", "top", "base"} {
		f.must(f.Remove(f.ctx, key))
		f.is(second(f.Stat(f.ctx, key)), errdefs.ErrNotFound)
	}
	f.prepare("a", "") // every key is free again
	f.must(f.Remove(f.ctx, "a"))
}

func testLabels(f *fixture) {
	given := map[string]string{"a": "1", "b": "2"}
	_, err := f.Prepare(f.ctx, "k", "", given)
	f.must(err)
	f.labels("k", given)

	_, err = f.Update(f.ctx, object.SnapshotInfo{Name: "k", Labels: map[string]string{"b": "3", "c": "x"}}, "labels.b")
	f.must(err)
	f.labels("k", map[string]string{"a": "1", "b": "3"})
	_, err = f.Update(f.ctx, object.SnapshotInfo{Name: "k"}, "labels.a")
	f.must(err)
	f.labels("k", map[string]string{"b": "3"})
	_, err = f.Update(f.ctx, object.SnapshotInfo{Name: "k", Labels: map[string]string{"d": "4"}}, "labels")
	f.must(err)
	f.labels("k", map[string]string{"d": "4"})
	updated, err := f.Update(f.ctx, object.SnapshotInfo{Name: "k", Labels: map[string]string{"e": "5"}})
	f.must(err)
	if !maps.Equal(updated.Labels, map[string]string{"e": "5"}) || updated.Kind != object.SnapshotActive {
		f.Errorf("update returned %+v", updated)
	}
	f.labels("k", map[string]string{"e": "5"})

	// A commit replaces the labels.
	f.must(f.Commit(f.ctx, "n", "k", snapshot.CommitOptions{Labels: map[string]string{"f": "6"}}))
	f.labels("n", map[string]string{"f": "6"})
	f.prepare("k", "n")
	f.labels("k", nil)
}

func (f *fixture) labels(key string, want map[string]string) {
	f.Helper()
	info, err := f.Stat(f.ctx, key)
	f.must(err)
	if !maps.Equal(info.Labels, want) {
		f.Errorf("labels of %s: %v, want %v", key, info.Labels, want)
	}
}

func testWalk(f *fixture) {
	f.must(f.Walk(f.ctx, func(object.SnapshotInfo) error { return errors.New("there is none") }))
	f.layer("base", "", nil)
	_, err := f.Prepare(f.ctx, "a", "base", map[string]string{"team": "x", "example.com/with.dots": "y"})
	f.must(err)
	_, err = f.View(f.ctx, "v", "base", nil)
	f.must(err)
	for _, c := range []struct {
		filters []string
		want    []string
	}{
		{nil, []string{"a", "base", "v"}},
		{[]string{"kind==active"}, []string{"a"}},
		{[]string{"kind==view", "kind==committed"}, []string{"base", "v"}},
		{[]string{"parent==base"}, []string{"a", "v"}},
		{[]string{"labels.team==x"}, []string{"a"}},
		{[]string{"name==none"}, nil},
		{[]string{`labels."example.com/with.dots"==y`}, []string{"a"}},
		{[]string{"labels.team"}, []string{"a"}},
		{[]string{"parent==base,kind==view"}, []string{"v"}},
		{[]string{"name~=^[ab]"}, []string{"a", "base"}},
		{[]string{"kind!=committed"}, []string{"a", "v"}},
		{[]string{"unknown==x"}, nil},
	} {
		var got []string
		f.must(f.Walk(f.ctx, func(i object.SnapshotInfo) error { got = append(got, i.Name); return nil }, c.filters...))
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			f.Errorf("%q: %v, want %v", c.filters, got, c.want)
		}
	}
	own := errors.New("own")
	calls := 0
	f.is(f.Walk(f.ctx, func(object.SnapshotInfo) error { calls++; return own }), own)
	if calls != 1 {
		f.Errorf("%d calls after an error", calls)
	}
	// The callback may change snapshots.
	f.must(f.Walk(f.ctx, func(i object.SnapshotInfo) error { return f.Remove(f.ctx, i.Name) }, "kind==active"))
	f.is(second(f.Stat(f.ctx, "a")), errdefs.ErrNotFound)
}

func testMountsStay(f *fixture) {
	f.layer("base", "", nil)
	prepared := f.prepare("a", "base")
	viewed, err := f.View(f.ctx, "v", "base", nil)
	f.must(err)
	for key, want := range map[string][]object.Mount{"a": prepared, "v": viewed} {
		got, err := f.Mounts(f.ctx, key)
		f.must(err)
		if fmt.Sprint(got) != fmt.Sprint(want) || len(got) == 0 {
			f.Errorf("mounts of %s: %v, at first %v", key, got, want)
		}
	}
}

func testConcurrency(f *fixture) {
	f.layer("base", "", nil)
	const n = 24
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			key, name := fmt.Sprint("key", i), fmt.Sprint("name", i)
			_, err := f.Prepare(f.ctx, key, "base", nil)
			if err == nil && i%3 == 0 {
				err = f.Remove(f.ctx, key)
			} else if err == nil {
				err = f.Commit(f.ctx, name, key, snapshot.CommitOptions{})
			}
			errs[i] = err
		})
	}
	taken := make([]error, n)
	for i := range n {
		wg.Go(func() { _, taken[i] = f.Prepare(f.ctx, "same", "base", nil) })
	}
	if c, ok := f.Snapshotter.(snapshot.Cleaner); ok {
		wg.Go(func() {
			for range 5 {
				if err := c.Cleanup(f.ctx); err != nil {
					f.Errorf("cleanup: %v", err)
				}
			}
		})
	}
	wg.Wait()
	f.must(errors.Join(errs...))
	won := 0
	for _, err := range taken {
		if err == nil {
			won++
		} else {
			f.is(err, errdefs.ErrAlreadyExists)
		}
	}
	if won != 1 {
		f.Errorf("%d calls got the same key", won)
	}
	count := 0
	f.must(f.Walk(f.ctx, func(object.SnapshotInfo) error { count++; return nil }))
	if want := 2 + n - n/3; count != want {
		f.Errorf("%d snapshots, want %d", count, want)
	}
	m, err := f.Mounts(f.ctx, "same")
	f.must(err)
	f.in(m, func(root string) { f.must(os.WriteFile(filepath.Join(root, "f"), nil, 0o600)) })
}

func testRebase(f *fixture) {
	f.layer("base", "", func(root string) {
		f.must(os.WriteFile(filepath.Join(root, "lower"), nil, 0o600))
	})
	f.in(f.prepare("a", ""), func(root string) {
		f.must(os.WriteFile(filepath.Join(root, "upper"), nil, 0o600))
	})
	err := f.Commit(f.ctx, "top", "a", snapshot.CommitOptions{Parent: "base"})
	if !f.config.Rebase {
		if err == nil {
			f.Error("a snapshotter that cannot rebase did not refuse")
		}
		f.expect("a", object.SnapshotActive, "")
		return
	}
	f.must(err)
	f.expect("top", object.SnapshotCommitted, "base")
	f.is(f.Remove(f.ctx, "base"), errdefs.ErrFailedPrecondition)
	f.prepare("b", "")
	f.is(f.Commit(f.ctx, "x", "b", snapshot.CommitOptions{Parent: "none"}), errdefs.ErrNotFound)
	f.expect("b", object.SnapshotActive, "")
	m, err := f.View(f.ctx, "v", "top", nil)
	f.must(err)
	f.in(m, func(root string) {
		f.tree(root, "lower", "upper")
	})
}

func testCleanup(f *fixture) {
	c, ok := f.Snapshotter.(snapshot.Cleaner)
	if !ok {
		f.Skip("not a snapshot.Cleaner")
	}
	f.layer("base", "", func(root string) { f.must(os.WriteFile(filepath.Join(root, "f"), nil, 0o600)) })
	f.prepare("a", "base")
	f.must(f.Remove(f.ctx, "a"))
	m := f.prepare("b", "base")
	f.must(c.Cleanup(f.ctx))
	f.in(m, func(root string) { f.tree(root, "f") })
}

func testSync(f *fixture) {
	s, ok := f.Snapshotter.(snapshot.Syncer)
	if !ok {
		f.Skip("not a snapshot.Syncer")
	}
	f.layer("base", "", nil)
	f.must(s.Sync(f.ctx))
}
