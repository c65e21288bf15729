package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/content"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// has tells which records there are, as kind:key.
func (f *fixture) has(t testing.TB, ns string) (all []string) {
	t.Helper()
	if err := f.view(t.Context(), func(tx *bolt.Tx) error {
		eachCollectable(ns, inNamespace(tx, ns), func(n node, _ *bolt.Bucket, _ []byte) {
			all = append(all, fmt.Sprintf("%d:%s", n.kind, n.key))
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func (f *fixture) snap(t testing.TB, ns, name, parent string, labels map[string]string) {
	t.Helper()
	s := f.snapshotter(t, ns, "")
	must(s.Prepare(t.Context(), "make-"+name, parent, nil))(t)
	if err := s.Commit(t.Context(), name, "make-"+name, snapshot.CommitOptions{Labels: labels}); err != nil {
		t.Fatal(err)
	}
}

func TestCollectFollowsReferences(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	f := newFixture(t, func(o *Options) { o.Now = func() time.Time { return now } })
	ctx := t.Context()
	s := f.Scope("ns", "")
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	keep, lose := map[string]bool{}, map[string]bool{}
	blob := func(name string, kept bool, labels map[string]string) string {
		d := putBlob(t, s, name, labels).String()
		if kept {
			keep["1:"+d] = true
		} else {
			lose["1:"+d] = true
		}
		return d
	}
	snap := func(name, parent string, kept bool, labels map[string]string) {
		f.snap(t, "ns", name, parent, labels)
		if kept {
			keep["2:fake/"+name] = true
		} else {
			lose["2:fake/"+name] = true
		}
	}
	// Image → manifest → config, layers, and a snapshot with its parents.
	snap("base", "", true, nil)
	snap("top", "base", true, nil)
	config := blob("config", true, map[string]string{"containerd.io/gc.ref.snapshot.fake": "top"})
	layer := blob("layer", true, nil)
	manifest := blob("manifest", true, map[string]string{
		"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer,
		"containerd.io/gc.ref.contents": blob("not a reference", false, nil),
	})
	must(s.Images().Create(ctx, testImage("image", digest.Digest(manifest))))(t)
	keep["4:image"] = true
	// An expired image is none, but may be referred to.
	expired := testImage("expired", digest.Digest(blob("of expired", false, nil)))
	expired.Labels = map[string]string{labelExpire: at(-time.Hour)}
	must(s.Images().Create(ctx, expired))(t)
	lose["4:expired"] = true
	expired = testImage("referred", digest.Digest(blob("of referred", true, nil)))
	expired.Labels = map[string]string{labelExpire: at(-time.Hour)}
	must(s.Images().Create(ctx, expired))(t)
	keep["4:referred"] = true
	blob("root", true, map[string]string{"containerd.io/gc.root": "x", "containerd.io/gc.ref.image": "referred"})
	notYet := testImage("not yet", digest.Digest(blob("of not yet", true, nil)))
	notYet.Labels = map[string]string{labelExpire: at(time.Hour)}
	must(s.Images().Create(ctx, notYet))(t)
	keep["4:not yet"] = true
	// Containers and sandboxes are roots, with back references to them.
	snap("of container", "", true, nil)
	ctr := testContainer("ctr")
	ctr.Snapshotter, ctr.SnapshotKey = "fake", "of container"
	ctr.Labels = map[string]string{"containerd.io/gc.ref.content/x": blob("label of container", true, nil)}
	must(s.Containers().Create(ctx, ctr))(t)
	blob("attached", true, map[string]string{"containerd.io/gc.bref.container": "ctr"})
	blob("attached to nothing", false, map[string]string{"containerd.io/gc.bref.container": "none"})
	snap("attached to layer", "", true, map[string]string{"containerd.io/gc.bref.content.1": layer})
	blob("attached to snapshot", true, map[string]string{"containerd.io/gc.bref.snapshot.fake/x": "top"})
	must(s.Sandboxes().Create(ctx, object.Sandbox{ID: "pod", Labels: map[string]string{
		"containerd.io/gc.ref.snapshot.fake/rootfs": "of pod",
	}}))(t)
	snap("of pod", "", true, nil)
	// Conditions.
	used := func(ago time.Duration) map[string]string { return map[string]string{labelUsedAt: at(-ago)} }
	snap("used", "", true, used(time.Hour))
	snap("unused", "", false, used(3*time.Hour))
	blob("conditions", true, map[string]string{
		"containerd.io/gc.root": "x", "containerd.io/gc.cond.snapshot.fake/a": "usedat<2h|used", "containerd.io/gc.cond.snapshot.fake/b": "usedat<2h|unused",
	})
	// Leases.
	leased := blob("leased", true, map[string]string{"containerd.io/gc.ref.content": blob("leased child", true, nil)})
	flatly := blob("leased flatly", true, map[string]string{"containerd.io/gc.ref.content": blob("flat child", false, nil)})
	once := blob("leased once", false, nil)
	snap("flat parent", "", true, nil)
	snap("flat", "flat parent", true, map[string]string{"containerd.io/gc.ref.content": blob("of flat", false, nil)})
	for id, l := range map[string]struct {
		labels map[string]string
		held   []object.Resource
		kept   bool
	}{
		"plain": {nil, []object.Resource{{Type: "content", ID: leased}}, true},
		"flat": {map[string]string{labelFlat: "yes", labelExpire: at(time.Hour)},
			[]object.Resource{{Type: "content", ID: flatly}, {Type: "snapshots/fake", ID: "flat"}}, true},
		"over":    {map[string]string{labelExpire: at(-time.Second)}, []object.Resource{{Type: "content", ID: once}}, false},
		"unclear": {map[string]string{labelExpire: "tomorrow"}, nil, true},
	} {
		must(s.Leases().Create(ctx, object.Lease{ID: id, Labels: l.labels}))(t)
		for _, r := range l.held {
			if err := s.Leases().AddResource(ctx, id, r); err != nil {
				t.Fatal(err)
			}
		}
		if l.kept {
			keep["5:"+id] = true
		} else {
			lose["5:"+id] = true
		}
	}
	// Ingests: one of a lease that is gone, one within its time.
	must(s.Content().Writer(ctx, content.WriteOptions{Ref: "resting"}))(t).Close()
	keep["6:resting"] = true
	must(s.Leases().Create(ctx, object.Lease{ID: "gone"}))(t)
	must(f.Scope("ns", "gone").Content().Writer(ctx, content.WriteOptions{Ref: "left"}))(t).Close()
	lose["6:left"] = true
	if err := s.Leases().Delete(ctx, "gone", false); err != nil {
		t.Fatal(err)
	}
	// The same in another namespace means nothing here.
	must(f.Scope("other", "").Images().Create(ctx, testImage("i", digest.Digest(once))))(t)

	stats := must(f.Collect(ctx))(t)
	if stats.Removed != len(lose) {
		t.Errorf("%d records were removed, want %d", stats.Removed, len(lose))
	}
	left := f.has(t, "ns")
	for k := range keep {
		if !slices.Contains(left, k) {
			t.Errorf("%s was collected", k)
		}
	}
	for k := range lose {
		if slices.Contains(left, k) {
			t.Errorf("%s was not collected", k)
		}
		if d, ok := strings.CutPrefix(k, "1:"); ok {
			_, err := f.store.Info(ctx, digest.Digest(d))
			wantErr(t, "bytes of "+k, err, errdefs.ErrNotFound)
		}
	}
	now = now.Add(25 * time.Hour)
	must(f.Collect(ctx))(t)
	left = f.has(t, "ns")
	for _, k := range []string{"6:resting", "4:not yet", "5:flat"} {
		if slices.Contains(left, k) {
			t.Errorf("%s was not collected after its time", k)
		}
	}
	if sts := must(f.store.ListStatuses(ctx))(t); len(sts) != 0 {
		t.Errorf("ingests in the backend: %v", sts)
	}
}

// A candidate that becomes reachable between mark and sweep is kept, whatever
// makes it so; so is what it refers to.
func TestCollectBarrier(t *testing.T) {
	for name, reach := range map[string]func(t *testing.T, f *fixture, top string){
		"image": func(t *testing.T, f *fixture, top string) {
			must(f.Scope("ns", "").Images().Create(t.Context(), testImage("i", digest.Digest(top))))(t)
		},
		"lease": func(t *testing.T, f *fixture, top string) {
			must(f.Scope("ns", "").Leases().Create(t.Context(), object.Lease{ID: "l"}))(t)
			if err := f.Scope("ns", "").Leases().AddResource(t.Context(), "l", object.Resource{Type: "content", ID: top}); err != nil {
				t.Fatal(err)
			}
		},
		"writer under a lease": func(t *testing.T, f *fixture, top string) {
			must(f.Scope("ns", "").Leases().Create(t.Context(), object.Lease{ID: "l"}))(t)
			_, err := f.Scope("ns", "l").Content().Writer(t.Context(), content.WriteOptions{Ref: "r", Expected: digest.Digest(top)})
			wantErr(t, "writer", err, errdefs.ErrAlreadyExists)
		},
		"label of a marked blob": func(t *testing.T, f *fixture, top string) {
			must(f.Scope("ns", "").Content().Update(t.Context(), object.BlobInfo{Digest: digest.FromString("root"), Labels: map[string]string{
				"containerd.io/gc.root": "x", "containerd.io/gc.ref.content": top,
			}}))(t)
		},
		"root": func(t *testing.T, f *fixture, top string) {
			must(f.Scope("ns", "").Content().Update(t.Context(), object.BlobInfo{Digest: digest.Digest(top), Labels: map[string]string{
				"containerd.io/gc.root": "x",
			}}, "labels.containerd.io/gc.root"))(t)
		},
		"container": func(t *testing.T, f *fixture, top string) {
			ctr := testContainer("c")
			ctr.Labels = map[string]string{"containerd.io/gc.ref.content": top}
			must(f.Scope("ns", "").Containers().Create(t.Context(), ctr))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			s := f.Scope("ns", "")
			putBlob(t, s, "root", map[string]string{"containerd.io/gc.root": "x"})
			leaf := putBlob(t, s, "leaf", nil).String()
			top := putBlob(t, s, "top", map[string]string{"containerd.io/gc.ref.content": leaf}).String()
			f.snap(t, "ns", "garbage", "", nil)

			// collect, taken apart.
			f.bolt.Alone(func() { f.touched = map[node]struct{}{} })
			m := newMarker(f.now())
			var candidates []node
			if err := f.view(t.Context(), func(tx *bolt.Tx) error { candidates = m.mark(tx); return nil }); err != nil {
				t.Fatal(err)
			}
			if len(candidates) != 3 {
				t.Fatalf("candidates: %v", candidates)
			}
			reach(t, f, top)
			removed := must(f.sweep(m, candidates))(t)
			if len(removed) != 1 || removed[0].key != "fake/garbage" {
				t.Errorf("removed %v", removed)
			}
		})
	}
}

// Blobs that one namespace lets go while another takes them over, over and
// over: whoever has a record can read the bytes.
func TestCollectBesideWriters(t *testing.T) {
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
			s := f.Scope(fmt.Sprintf("ns%d", w), "l")
			if _, err := f.Scope(s.namespace, "").Leases().Create(ctx, object.Lease{ID: "l"}); err != nil {
				t.Error(err)
			}
			for i := range 30 {
				d := putBlob(t, s, fmt.Sprintf("blob %d", i%2), nil)
				if _, err := readBlobText(t, s, d); err != nil {
					t.Errorf("read what was just written: %v", err)
				}
				if err := s.Content().Delete(ctx, d); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	collector.Wait()
}

// One snapshot that cannot be removed, and one backend that hangs, hold up
// nothing else.
func TestCollectSurvivesBackends(t *testing.T) {
	hung := newFakeSnapshots()
	f := newFixture(t, func(o *Options) { o.Snapshotters["hung"] = hung })
	ctx := t.Context()
	release := make(chan struct{})
	hung.onRemove = func(ctx context.Context, key string) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	var fail atomic.Bool
	fail.Store(true)
	f.snapshots.onRemove = func(_ context.Context, key string) error {
		if fail.Load() && key == "x/1/stuck" {
			return errors.New("device busy")
		}
		return nil
	}
	for _, k := range []string{"x/1/stuck", "x/2/fine"} {
		must(f.snapshots.Prepare(ctx, k, "", nil))(t)
		must(hung.Prepare(ctx, k, "", nil))(t)
	}
	short, cancel := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := f.Collect(short)
	wantErr(t, "collect beside a hung backend", err, context.Canceled)
	// It is still hung: others are not kept from collecting, nor from it.
	must(f.Collect(ctx))(t)
	if left := f.snapshots.keys(); !slices.Equal(left, []string{"x/1/stuck"}) {
		t.Errorf("left: %v", left)
	}
	sn, err := f.Scope("ns", "").Snapshotter("hung")
	if err != nil {
		t.Fatal(err)
	}
	must(sn.Prepare(ctx, "k", "", nil))(t)
	fail.Store(false)
	must(f.Collect(ctx))(t)
	if left := f.snapshots.keys(); len(left) != 0 {
		t.Errorf("left after the retry: %v", left)
	}
	close(release)
}

// A collection looks in the backend for what removed records had named, and goes
// through all of it only when something else may be there.
func TestCollectLooksForWhatWasRemoved(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.snapshotter(t, "ns", "")
	collect := func(left ...string) {
		t.Helper()
		must(f.Collect(ctx))(t)
		var got []string
		for _, k := range f.snapshots.keys() {
			_, _, key, _ := parseBackendKey(k)
			got = append(got, key)
		}
		slices.Sort(got)
		if !slices.Equal(got, left) {
			t.Errorf("the backend has %v, want %v", got, left)
		}
	}
	root := map[string]string{"containerd.io/gc.root": "x"}
	for _, k := range []string{"a", "b", "c", "d"} {
		must(s.Prepare(ctx, k, "", root))(t)
	}
	must(s.Prepare(ctx, "unreferenced", "", nil))(t)
	if err := s.Commit(ctx, "p", "d", snapshot.CommitOptions{Labels: root}); err != nil {
		t.Fatal(err)
	}
	collect("a", "b", "c", "p")
	before := f.snapshots.walks
	must(s.Prepare(ctx, "unreferenced", "", nil))(t)
	if err := s.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	collect("b", "c", "p")
	// A snapshot that another record names, too, stays until both are gone.
	shared := must(s.resolve(ctx, "b"))(t)
	if err := f.update(ctx, func(tx *bolt.Tx) error {
		other := f.snapshotter(t, "other", "")
		return other.insert(tx, shared, plan{})
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	collect("b", "c", "p")
	if err := f.snapshotter(t, "other", "").Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	collect("c", "p")
	// One with a child that nobody knows of is tried again.
	parent := must(s.resolve(ctx, "p"))(t)
	must(f.snapshots.Prepare(ctx, "x/1/child", parent.backend, nil))(t)
	if err := s.Remove(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	collect("c", "child", "p")
	if err := f.snapshots.Remove(ctx, "x/1/child"); err != nil {
		t.Fatal(err)
	}
	collect("c")
	if n := f.snapshots.walks - before; n != 0 {
		t.Errorf("the backend was walked %d times", n)
	}
	must(f.snapshots.Prepare(ctx, "x/2/stray", "", nil))(t)
	f.backends["fake"].dirty.Store(true)
	collect("c")
}

// Who waits for a collection causes no other.
func TestSynchronousDeleteCollectsOnce(t *testing.T) {
	collected := 0
	f := newFixture(t, func(o *Options) { o.Collected = func(time.Duration, error) { collected++ } })
	ctx := t.Context()
	s := f.Scope("ns", "")
	must(s.Leases().Create(ctx, object.Lease{ID: "l"}))(t)
	must(s.Images().Create(ctx, testImage("i", digest.FromString("x"))))(t)
	if err := errors.Join(s.Leases().Delete(ctx, "l", true), s.Images().Delete(ctx, "i", ImageDelete{Sync: true})); err != nil {
		t.Fatal(err)
	}
	if n := f.sched.deletions; n != 0 || collected != 2 {
		t.Errorf("%d deletions await another collection after %d", n, collected)
	}
	must(s.Leases().Create(ctx, object.Lease{ID: "l"}))(t)
	if err := s.Leases().Delete(ctx, "l", false); err != nil {
		t.Fatal(err)
	}
	if f.sched.deletions != 1 {
		t.Error("a deletion without a collection does not count")
	}
}

// An image that is labelled leaves no garbage, one that is moved may.
func TestImageUpdateCollects(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	images := f.Scope("ns", "").Images()
	img := must(images.Create(ctx, testImage("i", digest.FromString("x"))))(t)
	img.Labels = map[string]string{"a": "b"}
	must(images.Update(ctx, img, "labels"))(t)
	must(images.Update(ctx, img))(t)
	if n := f.sched.deletions; n != 0 {
		t.Errorf("%d deletions after a label was set", n)
	}
	img.Target.Digest = digest.FromString("y")
	must(images.Update(ctx, img, "target"))(t)
	if n := f.sched.deletions; n != 1 {
		t.Errorf("%d deletions after the image was moved", n)
	}
}

// A collection that finds a backend being cleaned for an earlier one returns only
// when its own garbage is gone, too.
func TestCollectBesideCleaner(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	begun, release := make(chan struct{}, 2), make(chan struct{})
	f.snapshots.onRemove = func(context.Context, string) error {
		begun <- struct{}{}
		<-release
		return nil
	}
	must(f.snapshots.Prepare(ctx, "x/1/first", "", nil))(t)
	first := make(chan error, 1)
	go func() { _, err := f.Collect(ctx); first <- err }()
	<-begun // it has looked through the backend
	must(f.snapshots.Prepare(ctx, "x/2/second", "", nil))(t)
	f.backends["fake"].dirty.Store(true)
	_, cleaned, err := f.collect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	<-cleaned
	if left := f.snapshots.keys(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestScheduler(t *testing.T) {
	run := func(name string, opts GCOptions, do func(s *scheduler, runs *atomic.Int64)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				s := newScheduler(opts, time.Now, func() bool { runs.Add(1); time.Sleep(10 * time.Millisecond); return true })
				defer s.close()
				s.start()
				time.Sleep(opts.StartupDelay)
				synctest.Wait()
				time.Sleep(time.Second)
				synctest.Wait()
				if n := runs.Swap(0); n != 1 {
					t.Fatalf("%d collections after the start", n)
				}
				do(s, &runs)
				s.mu.Lock()
				defer s.mu.Unlock()
				if !s.at.IsZero() {
					t.Errorf("a timer is left, for %v", s.at)
				}
			})
		})
	}
	after := func(t *testing.T, d time.Duration, runs *atomic.Int64, want int64) {
		t.Helper()
		time.Sleep(d)
		synctest.Wait()
		if n := runs.Load(); n != want {
			t.Errorf("%d collections after %v, want %d", n, d, want)
		}
	}
	opts := DefaultGC()
	run("idle", opts, func(s *scheduler, runs *atomic.Int64) { after(t, time.Hour, runs, 0) })
	run("a deletion", opts, func(s *scheduler, runs *atomic.Int64) { s.mutated(true); after(t, time.Second, runs, 1) })
	run("few mutations", opts, func(s *scheduler, runs *atomic.Int64) { s.mutated(false); after(t, time.Hour, runs, 0) })
	run("many mutations", opts, func(s *scheduler, runs *atomic.Int64) {
		for range opts.MutationThreshold {
			s.mutated(false)
		}
		after(t, time.Second, runs, 1)
	})
	run("pause threshold", opts, func(s *scheduler, runs *atomic.Int64) {
		for range 100 { // 10 s with a deletion every 100 ms; 10 ms at 2 % are one in 500 ms
			s.mutated(true)
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := runs.Load(); n < 15 || n > 21 {
			t.Errorf("%d collections in 10 s", n)
		}
		time.Sleep(time.Second) // the last deletion's
		after(t, time.Minute, runs, runs.Load())
	})
	opts.DeletionThreshold, opts.ScheduleDelay = 3, 20*time.Millisecond
	run("deletion threshold", opts, func(s *scheduler, runs *atomic.Int64) {
		s.mutated(true)
		after(t, time.Second, runs, 1)
		s.mutated(true)
		s.mutated(true)
		s.mutated(true) // within the pause, but at the threshold
		after(t, 19*time.Millisecond, runs, 1)
		after(t, 15*time.Millisecond, runs, 2)
	})
	run("expiry", DefaultGC(), func(s *scheduler, runs *atomic.Int64) {
		s.expireAt(time.Now().Add(time.Hour))
		s.expireAt(time.Now().Add(30 * time.Minute))
		after(t, 29*time.Minute, runs, 0)
		after(t, 2*time.Minute, runs, 1)
	})
}

// Nothing is collected for something that expires when nobody alive will see it.
func TestFarExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		var s *scheduler
		far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		s = newScheduler(DefaultGC(), time.Now, func() bool {
			runs.Add(1)
			s.expireAt(far) // as the mark finds it again
			return true
		})
		defer s.close()
		s.start()
		time.Sleep(time.Second)
		s.expireAt(far)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := runs.Load(); n != 1 {
			t.Errorf("%d collections in an hour, want that of the start", n)
		}
	})
}

// An expired lease is collected although nothing happens.
func TestExpiryOnIdleDaemon(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.GC = &GCOptions{StartupDelay: time.Millisecond} })
	s := f.Scope("ns", "")
	collected := make(chan struct{})
	var once sync.Once
	f.snapshots.onRemove = func(context.Context, string) error {
		once.Do(func() { close(collected) })
		return nil
	}
	must(s.Leases().Create(t.Context(), object.Lease{ID: "l", Labels: map[string]string{
		labelExpire: time.Now().Add(1500 * time.Millisecond).Format(time.RFC3339),
	}}))(t)
	must(f.snapshotter(t, "ns", "l").Prepare(t.Context(), "k", "", nil))(t)
	select {
	case <-collected:
	case <-time.After(20 * time.Second):
		t.Error("nothing was collected")
	}
}

func BenchmarkCollect20000Snapshots(b *testing.B) {
	f := newFixture(b)
	if err := f.update(b.Context(), func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, "ns", keySnapshots, "fake")
		if err != nil {
			return err
		}
		for i := range 20000 {
			r := snapRecord{fmt.Sprintf("ns/%d/k", i), object.SnapshotInfo{Name: fmt.Sprintf("k%d", i), Labels: map[string]string{"containerd.io/gc.root": "x"}}}
			s, err := create(all, "snapshot", r.info.Name)
			if err != nil {
				return err
			}
			if err := putSnapshot(s, r); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := f.Collect(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
