package meta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
)

func TestSnapshots(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.snapshotter(t, "ns", "")
	labels := map[string]string{"containerd.io/snapshot/x": "1", "containerd.io/gc.root": "yes", "own": "o"}
	m := must(s.Prepare(ctx, "a", "", labels))(t)
	if m[0].Source != "ns/1/a" {
		t.Errorf("backend key is %s", m[0].Source)
	}
	if back := f.snapshots.all["ns/1/a"].Labels; len(back) != 1 || back["containerd.io/snapshot/x"] != "1" {
		t.Errorf("labels in the backend: %v", back)
	}
	info := must(s.Stat(ctx, "a"))(t)
	if info.Name != "a" || info.Kind != object.SnapshotActive || len(info.Labels) != 3 || info.Created.IsZero() {
		t.Errorf("stat: %+v", info)
	}
	_, err := s.Prepare(ctx, "a", "", nil)
	wantErr(t, "second prepare", err, errdefs.ErrAlreadyExists)
	_, err = s.Prepare(ctx, "b", "none", nil)
	wantErr(t, "prepare above nothing", err, errdefs.ErrNotFound)
	_, err = f.snapshotter(t, "other", "").Stat(ctx, "a")
	wantErr(t, "stat from another namespace", err, errdefs.ErrNotFound)
	if err := s.Commit(ctx, "base", "a", snapshot.CommitOptions{Labels: map[string]string{"own": "p"}}); err != nil {
		t.Fatal(err)
	}
	_, err = s.Stat(ctx, "a")
	wantErr(t, "stat of what was committed", err, errdefs.ErrNotFound)
	must(s.Prepare(ctx, "b", "base", nil))(t)
	info = must(s.Stat(ctx, "b"))(t)
	if info.Parent != "base" {
		t.Errorf("parent: %q", info.Parent)
	}
	wantErr(t, "removal of a parent", s.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	info.Labels = map[string]string{"containerd.io/snapshot/y": "2", "own": "q"}
	must(s.Update(ctx, info, "labels.containerd.io/snapshot/y", "labels.own"))(t)
	r := must(s.resolve(ctx, "b"))(t)
	if back := f.snapshots.all[r.backend].Labels; len(back) != 1 || back["containerd.io/snapshot/y"] != "2" {
		t.Errorf("labels in the backend: %v", back)
	}
	_, err = s.Update(ctx, info, "parent")
	wantErr(t, "update of the parent", err, errdefs.ErrInvalidArgument)
	var seen int
	if err := s.Walk(ctx, func(info object.SnapshotInfo) error { seen++; return nil }, "parent==base,kind==active"); err != nil || seen != 1 {
		t.Errorf("walk found %d, %v", seen, err)
	}
	if err := s.Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "second removal", s.Remove(ctx, "base"), errdefs.ErrNotFound)
	must(f.Collect(ctx))(t)
	if left := f.snapshots.keys(); len(left) != 0 {
		t.Errorf("left in the backend: %v", left)
	}
	_, err = f.Scope("ns", "").Snapshotter("")
	wantErr(t, "no name", err, errdefs.ErrInvalidArgument)
	_, err = f.Scope("ns", "").Snapshotter("zfs")
	wantErr(t, "unknown name", err, errdefs.ErrNotFound)
}

func TestSnapshotRebase(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.snapshotter(t, "ns", "")
	commit := func(name, key, parent string) error {
		return s.Commit(ctx, name, key, snapshot.CommitOptions{Parent: parent})
	}
	for _, k := range []string{"1", "2", "3"} {
		must(s.Prepare(ctx, "p"+k, "", nil))(t)
	}
	wantErr(t, "onto what is not there", commit("c2", "p2", "c1"), errdefs.ErrNotFound)
	if err := errors.Join(commit("c1", "p1", ""), commit("c2", "p2", "c1"), commit("c3", "p3", "c2")); err != nil {
		t.Fatal(err)
	}
	if info := must(s.Stat(ctx, "c3"))(t); info.Parent != "c2" || info.Kind != object.SnapshotCommitted {
		t.Errorf("rebased: %+v", info)
	}
	if back := must(s.resolve(ctx, "c3"))(t).backend; f.snapshots.all[back].Parent != must(s.resolve(ctx, "c2"))(t).backend {
		t.Errorf("in the backend: %+v", f.snapshots.all[back])
	}
	wantErr(t, "removal of a parent", s.Remove(ctx, "c2"), errdefs.ErrFailedPrecondition)
	must(s.Prepare(ctx, "q", "c1", nil))(t)
	wantErr(t, "change of a parent", commit("d", "q", "c2"), errdefs.ErrInvalidArgument)
	if err := commit("d", "q", "c1"); err != nil {
		t.Errorf("the parent that it has: %v", err)
	}
	must(s.Prepare(ctx, "r", "", nil))(t)
	wantErr(t, "onto a taken name", commit("d", "r", ""), errdefs.ErrAlreadyExists)
	f.snapshots.noRebase = true
	wantErr(t, "without the capability", commit("e", "r", "d"), errdefs.ErrInvalidArgument)
}

// What a crash between backend and record leaves does not stand in the way.
func TestSnapshotCrashes(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.snapshotter(t, "ns", "")
	// Prepared in the backend, no record, the number unused: skipped.
	must(f.snapshots.Prepare(ctx, "ns/1/a", "", nil))(t)
	if m := must(s.Prepare(ctx, "a", "", nil))(t); m[0].Source != "ns/2/a" {
		t.Errorf("backend key is %s", m[0].Source)
	}
	// Committed in the backend, the record still active.
	if err := f.snapshots.Commit(ctx, "ns/9/c", "ns/2/a", snapshot.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Mounts(ctx, "a")
	wantErr(t, "mounts of what is gone", err, errdefs.ErrNotFound)
	must(s.Prepare(ctx, "a", "", nil))(t)
	if err := s.Commit(ctx, "c", "a", snapshot.CommitOptions{}); err != nil {
		t.Error(err)
	}
	must(f.Collect(ctx))(t)
	for _, orphan := range []string{"ns/1/a", "ns/9/c"} {
		if hasPrefix(f.snapshots.keys(), orphan) {
			t.Errorf("%s was not collected", orphan)
		}
	}
	// The number goes on after a restart.
	f.reopen(t)
	if m := must(f.snapshotter(t, "ns", "").Prepare(ctx, "z", "", nil))(t); m[0].Source != "ns/5/z" {
		t.Errorf("backend key is %s", m[0].Source)
	}
}

func TestSnapshotTarget(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	one, two := f.snapshotter(t, "one", ""), f.snapshotter(t, "two", "l")
	must(f.Scope("two", "").Leases().Create(ctx, object.Lease{ID: "l"}))(t)
	target := map[string]string{snapshot.LabelRef: "chain"}
	must(one.Prepare(ctx, "k", "", target))(t)
	if err := one.Commit(ctx, "chain", "k", snapshot.CommitOptions{Labels: target}); err != nil {
		t.Fatal(err)
	}
	_, err := two.Prepare(ctx, "k", "", target)
	wantErr(t, "prepare of what another namespace has", err, errdefs.ErrAlreadyExists)
	if info := must(two.Stat(ctx, "chain"))(t); info.Kind != object.SnapshotCommitted {
		t.Errorf("adopted: %+v", info)
	}
	_, err = two.Prepare(ctx, "m", "", target)
	wantErr(t, "prepare of what the namespace has", err, errdefs.ErrAlreadyExists)
	if err := one.Remove(ctx, "chain"); err != nil {
		t.Fatal(err)
	}
	must(f.Collect(ctx))(t)
	if _, err := two.Stat(ctx, "chain"); err != nil {
		t.Errorf("collected although the other namespace, and its lease, hold it: %v", err)
	}
}

// Retried pulls: many prepare, commit and remove the same names while garbage
// is collected. Nobody loses a snapshot that a record names.
func TestSnapshotsDuringCollection(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	var collector, wg sync.WaitGroup
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := f.Collect(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("collect: %v", err)
			}
		}
	})
	for w := range 4 {
		wg.Go(func() {
			lease := fmt.Sprintf("l%d", w)
			if _, err := f.Scope("ns", "").Leases().Create(ctx, object.Lease{ID: lease}); err != nil {
				t.Error(err)
			}
			s := f.snapshotter(t, "ns", lease)
			for i := range 40 {
				layer := fmt.Sprintf("layer%d", i%3)
				key := fmt.Sprintf("extract-%d-%d", w, i)
				if _, err := s.Prepare(ctx, key, "", nil); err != nil {
					t.Errorf("prepare: %v", err)
					continue
				}
				if err := s.Commit(ctx, layer, key, snapshot.CommitOptions{}); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Errorf("commit: %v", err)
				}
				child := fmt.Sprintf("child-%d-%d", w, i)
				if _, err := s.Prepare(ctx, child, layer, nil); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("prepare above: %v", err)
				} else if err == nil {
					if _, err := s.Stat(ctx, child); err != nil {
						t.Errorf("stat of what was prepared: %v", err)
					}
					if err := s.Remove(ctx, child); err != nil {
						t.Errorf("remove: %v", err)
					}
				}
				_ = s.Remove(ctx, key) // only there when the commit found its name taken
			}
		})
	}
	wg.Wait()
	cancel()
	collector.Wait()
	s := f.snapshotter(t, "ns", "")
	for i := range 3 {
		if _, err := s.Stat(t.Context(), fmt.Sprintf("layer%d", i)); err != nil {
			t.Errorf("leased layer: %v", err)
		}
	}
	must(f.Collect(t.Context()))(t)
	if left := f.snapshots.keys(); len(left) != 3 {
		t.Errorf("in the backend: %v", left)
	}
}

// A commit that is refused leaves the snapshot as it was.
func TestCommitRefused(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	must(f.snapshotter(t, "ns", "").Prepare(ctx, "k", "", nil))(t)
	wantErr(t, "a lease that is not there", f.snapshotter(t, "ns", "none").Commit(ctx, "n", "k", snapshot.CommitOptions{}), errdefs.ErrNotFound)
	wantErr(t, "a label without a key", f.snapshotter(t, "ns", "").Commit(ctx, "n", "k", snapshot.CommitOptions{Labels: map[string]string{"": "v"}}), errdefs.ErrInvalidArgument)
	if err := f.snapshotter(t, "ns", "").Commit(ctx, "n", "k", snapshot.CommitOptions{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A commit that the backend has carried out is finished even when its lease was
// deleted meanwhile.
func TestCommitOutlivesLease(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	scope := f.Scope("ns", "")
	must(scope.Leases().Create(ctx, object.Lease{ID: "l"}))(t)
	s := f.snapshotter(t, "ns", "l")
	must(s.Prepare(ctx, "k", "", nil))(t)
	f.snapshots.onCommit = func() {
		if err := scope.Leases().Delete(ctx, "l", false); err != nil {
			t.Error(err)
		}
	}
	if err := s.Commit(ctx, "n", "k", snapshot.CommitOptions{Labels: map[string]string{"containerd.io/gc.root": "1"}}); err != nil {
		t.Fatal(err)
	}
	must(f.Collect(ctx))(t)
	if info := must(f.snapshotter(t, "ns", "").Stat(ctx, "n"))(t); info.Kind != object.SnapshotCommitted {
		t.Errorf("it is %v", info.Kind)
	}
}

// A snapshot that is collected between the look at it and the hold on it does not
// count as there.
func TestExistsButCollected(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	scope := f.Scope("ns", "")
	must(scope.Leases().Create(ctx, object.Lease{ID: "l"}))(t)
	target := map[string]string{snapshot.LabelRef: "chain"}
	garbage := f.snapshotter(t, "ns", "")
	must(garbage.Prepare(ctx, "k", "", nil))(t)
	if err := garbage.Commit(ctx, "chain", "k", snapshot.CommitOptions{Labels: target}); err != nil {
		t.Fatal(err)
	}
	f.snapshots.onStat = func() {
		f.snapshots.onStat = nil
		must(f.Collect(ctx))(t)
	}
	if m, err := f.snapshotter(t, "ns", "l").Prepare(ctx, "new", "", target); err != nil || len(m) == 0 {
		t.Errorf("%v, %v", m, err)
	}
}
