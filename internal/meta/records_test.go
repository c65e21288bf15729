package meta

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/events"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

func TestImages(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	images := f.Scope("ns", "").Images()
	img := testImage("docker.io/library/a:1", digest.FromString("a"))
	img.Labels = map[string]string{"k": "v", "empty": "", "a.b/c": "d"}
	img.Target.Annotations = map[string]string{"note": "x"}
	made := must(images.Create(ctx, img))(t)
	if made.CreatedAt.IsZero() || made.CreatedAt != made.UpdatedAt {
		t.Errorf("times of a new image: %v, %v", made.CreatedAt, made.UpdatedAt)
	}
	got := must(images.Get(ctx, img.Name))(t)
	if !reflect.DeepEqual(got, made) {
		t.Errorf("got  %+v\nmade %+v", got, made)
	}
	if _, ok := got.Labels["empty"]; ok {
		t.Error("an empty label was kept")
	}
	_, err := images.Create(ctx, img)
	wantErr(t, "second create", err, errdefs.ErrAlreadyExists)
	_, err = f.Scope("other", "").Images().Get(ctx, img.Name)
	wantErr(t, "get from another namespace", err, errdefs.ErrNotFound)

	img.Labels = map[string]string{"a.b/c": "e", "k": "not asked for"}
	got = must(images.Update(ctx, img, "labels.a.b/c"))(t)
	if got.Labels["a.b/c"] != "e" || got.Labels["k"] != "v" {
		t.Errorf("labels after an update of one: %v", got.Labels)
	}
	img.Target.Digest = digest.FromString("b")
	img.Target.Annotations = nil
	got = must(images.Update(ctx, img, "target"))(t)
	if got.Target.Digest != img.Target.Digest || got.Labels["k"] != "v" {
		t.Errorf("after an update of the target: %+v", got)
	}
	for _, path := range []string{"name", "targets", "target.digest", "createdat"} {
		_, err = images.Update(ctx, img, path)
		wantErr(t, "update of "+path, err, errdefs.ErrInvalidArgument)
	}
	if all := must(images.List(ctx, `labels."a.b/c"==e,target.digest==`+img.Target.Digest.String()))(t); len(all) != 1 {
		t.Errorf("filter found %d images", len(all))
	}
	_, err = images.List(ctx, "name=")
	wantErr(t, "malformed filter", err, errdefs.ErrInvalidArgument)
	wantErr(t, "delete with another target", images.Delete(ctx, img.Name, ImageDelete{Target: digest.FromString("x").String()}), errdefs.ErrNotFound)
	if err := images.Delete(ctx, img.Name, ImageDelete{Target: img.Target.Digest.String()}); err != nil {
		t.Error(err)
	}
	wantErr(t, "second delete", images.Delete(ctx, img.Name, ImageDelete{}), errdefs.ErrNotFound)
	_, err = images.Update(ctx, img)
	wantErr(t, "update of none", err, errdefs.ErrNotFound)
}

func TestImageValidation(t *testing.T) {
	f := newFixture(t)
	for name, change := range map[string]func(*object.Image){
		"no name":      func(i *object.Image) { i.Name = "" },
		"long name":    func(i *object.Image) { i.Name = strings.Repeat("a", maxName+1) },
		"no digest":    func(i *object.Image) { i.Target.Digest = "" },
		"bad digest":   func(i *object.Image) { i.Target.Digest = "sha256:1" },
		"no size":      func(i *object.Image) { i.Target.Size = 0 },
		"no mediatype": func(i *object.Image) { i.Target.MediaType = "" },
		"large label":  func(i *object.Image) { i.Labels = map[string]string{"k": strings.Repeat("v", maxLabel)} },
		"nameless":     func(i *object.Image) { i.Labels = map[string]string{"": "v"} },
	} {
		img := testImage("a", digest.FromString("a"))
		change(&img)
		_, err := f.Scope("ns", "").Images().Create(t.Context(), img)
		wantErr(t, name, err, errdefs.ErrInvalidArgument)
	}
	for _, ns := range []string{"", "version", "a/b", "-a", "a-", "a..b", strings.Repeat("a", 77), "a\n"} {
		_, err := f.Scope(ns, "").Images().Create(t.Context(), testImage("a", digest.FromString("a")))
		wantErr(t, "namespace "+ns, err, errdefs.ErrInvalidArgument)
	}
	if all := must(f.Namespaces().List(t.Context()))(t); len(all) != 0 {
		t.Errorf("refused creates left the namespaces %v", all)
	}
}

func TestContainers(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	containers := f.Scope("ns", "").Containers()
	ctr := testContainer("c1")
	ctr.Image, ctr.Snapshotter, ctr.SnapshotKey, ctr.SandboxID = "img", "fake", "key", "pod"
	ctr.Labels = map[string]string{"k": "v"}
	ctr.Runtime.Options = &object.Any{TypeURL: "options", Value: []byte{1, 2}}
	ctr.Extensions = map[string]object.Any{"e.x": {TypeURL: "x", Value: []byte("1")}, "y": {TypeURL: "y"}}
	made := must(containers.Create(ctx, ctr))(t)
	if got := must(containers.Get(ctx, "c1"))(t); !reflect.DeepEqual(got, made) {
		t.Errorf("got  %+v\nmade %+v", got, made)
	}
	_, err := containers.Create(ctx, ctr)
	wantErr(t, "second create", err, errdefs.ErrAlreadyExists)

	update := made
	update.Snapshotter = "other"
	_, err = containers.Update(ctx, update)
	wantErr(t, "change of the snapshotter", err, errdefs.ErrInvalidArgument)
	update = made
	update.Runtime.Name = "other"
	_, err = containers.Update(ctx, update)
	wantErr(t, "change of the runtime", err, errdefs.ErrInvalidArgument)
	update = made
	update.Extensions = map[string]object.Any{"e.x": {TypeURL: "x", Value: []byte("2")}}
	got := must(containers.Update(ctx, update, "extensions.e.x"))(t)
	if string(got.Extensions["e.x"].Value) != "2" || len(got.Extensions) != 2 {
		t.Errorf("extensions after an update of one: %v", got.Extensions)
	}
	got = must(containers.Update(ctx, update, "extensions"))(t)
	if again := must(containers.Get(ctx, "c1"))(t); len(got.Extensions) != 1 || !reflect.DeepEqual(got, again) {
		t.Errorf("extensions after an update of all: %v, stored %v", got.Extensions, again.Extensions)
	}
	update.Spec = nil
	if got = must(containers.Update(ctx, update, "spec"))(t); got.Spec != nil || must(containers.Get(ctx, "c1"))(t).Spec == nil {
		t.Errorf("after an update to no spec: %+v", got.Spec)
	}
	update.SnapshotKey = ""
	if got = must(containers.Update(ctx, update, "snapshotkey"))(t); got.SnapshotKey != "" || got.Spec == nil {
		t.Errorf("after an update of the snapshot key: %+v", got)
	}
	for _, path := range []string{"id", "runtime", "snapshotter", "sandbox", "spec.a"} {
		_, err = containers.Update(ctx, made, path)
		wantErr(t, "update of "+path, err, errdefs.ErrInvalidArgument)
	}
	for want, filters := range map[int][]string{
		1: {"id==c1,runtime.name~=runc,image==img,labels.k==v"},
		0: {"labels.k==w", "id==c2"},
	} {
		if all := must(containers.List(ctx, filters...))(t); len(all) != want {
			t.Errorf("%q found %d containers, want %d", filters, len(all), want)
		}
	}
	if err := containers.Delete(ctx, "c1"); err != nil {
		t.Error(err)
	}
	wantErr(t, "second delete", containers.Delete(ctx, "c1"), errdefs.ErrNotFound)
	for name, change := range map[string]func(*object.Container){
		"bad ID":              func(c *object.Container) { c.ID = "a b" },
		"no runtime":          func(c *object.Container) { c.Runtime.Name = "" },
		"key, no snapshotter": func(c *object.Container) { c.SnapshotKey = "k" },
		"nameless extension":  func(c *object.Container) { c.Extensions = map[string]object.Any{"": {}} },
	} {
		ctr := testContainer("c")
		change(&ctr)
		_, err := containers.Create(ctx, ctr)
		wantErr(t, name, err, errdefs.ErrInvalidArgument)
	}
}

// Each finds what List does.
func TestEachContainer(t *testing.T) {
	f := newFixture(t)
	s := f.Scope("ns", "").Containers()
	if err := s.Each(t.Context(), func(*object.StoredContainer) { t.Error("found one") }); err != nil {
		t.Error(err)
	}
	for i := range 300 {
		ctr := testContainer(fmt.Sprintf("c%d", i))
		if i%3 > 0 {
			ctr.Labels = map[string]string{"k": fmt.Sprint(i), "long": strings.Repeat("x", i*10)}
			ctr.Image, ctr.Snapshotter, ctr.SnapshotKey, ctr.SandboxID = "image", "fake", "key", "pod"
		}
		if i%3 > 1 {
			ctr.Spec.Value = make([]byte, i*50)
			ctr.Runtime.Options = &object.Any{TypeURL: "options", Value: []byte{1, 2}}
			ctr.Extensions = map[string]object.Any{"a": {TypeURL: "x", Value: make([]byte, i)}, "b": {TypeURL: "y"}}
		}
		must(s.Create(t.Context(), ctr))(t)
	}
	for _, filters := range [][]string{nil, {"id==c7"}, {"labels.k~=^1"}, {"image==image,runtime.name~=runc", "labels.long"}, {"image!=image"}} {
		want := must(s.List(t.Context(), filters...))(t)
		var got []object.Container
		if err := s.Each(t.Context(), func(c *object.StoredContainer) { got = append(got, fromStored(t, c)) }, filters...); err != nil {
			t.Fatal(err)
		}
		if len(want) == 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %d containers, want %d", filters, len(got), len(want))
		}
	}
	wantErr(t, "malformed filter", s.Each(t.Context(), nil, "id="), errdefs.ErrInvalidArgument)
}

func fromStored(t *testing.T, s *object.StoredContainer) object.Container {
	t.Helper()
	decode := func(b []byte) *object.Any {
		if b == nil {
			return nil
		}
		a := new(object.Any)
		if err := a.UnmarshalBinary(b); err != nil {
			t.Error(err)
		}
		return a
	}
	c := object.Container{
		ID: string(s.ID), Image: string(s.Image), Snapshotter: string(s.Snapshotter), SnapshotKey: string(s.SnapshotKey),
		SandboxID: string(s.SandboxID), Runtime: object.Runtime{Name: string(s.RuntimeName), Options: decode(s.RuntimeOptions)},
		Spec: decode(s.Spec), CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt,
	}
	for _, l := range s.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[string(l.Key)] = string(l.Value)
	}
	for _, e := range s.Extensions {
		if c.Extensions == nil {
			c.Extensions = map[string]object.Any{}
		}
		c.Extensions[string(e.Key)] = *decode(e.Value)
	}
	return c
}

func TestSandboxes(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	sandboxes := f.Scope("ns", "").Sandboxes()
	sb := object.Sandbox{ID: "pod", Labels: map[string]string{"k": "v"}, Sandboxer: "shim",
		Runtime: object.Runtime{Name: "r", Options: &object.Any{TypeURL: "o"}}, Spec: &object.Any{TypeURL: "s"},
		Extensions: map[string]object.Any{"e": {TypeURL: "e", Value: []byte("1")}}}
	made := must(sandboxes.Create(ctx, sb))(t)
	if got := must(sandboxes.Get(ctx, "pod"))(t); !reflect.DeepEqual(got, made) {
		t.Errorf("got  %+v\nmade %+v", got, made)
	}
	_, err := sandboxes.Create(ctx, sb)
	wantErr(t, "second create", err, errdefs.ErrAlreadyExists)
	change := made
	change.Runtime.Name = "q"
	_, err = sandboxes.Update(ctx, change)
	wantErr(t, "change of the runtime", err, errdefs.ErrInvalidArgument)
	change.Extensions = map[string]object.Any{"f": {TypeURL: "f"}}
	if got := must(sandboxes.Update(ctx, change, "extensions.f"))(t); len(got.Extensions) != 2 || got.Runtime.Name != "r" {
		t.Errorf("after an update: %+v", got)
	}
	if all := must(sandboxes.List(ctx, "labels.k==v"))(t); len(all) != 1 {
		t.Errorf("filter found %d", len(all))
	}
	if err := sandboxes.Delete(ctx, "pod"); err != nil {
		t.Error(err)
	}
	_, err = sandboxes.Get(ctx, "pod")
	wantErr(t, "get after delete", err, errdefs.ErrNotFound)
	wantErr(t, "delete after delete", sandboxes.Delete(ctx, "pod"), errdefs.ErrNotFound)
}

func TestNamespaces(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	n := f.Namespaces()
	if err := n.Create(ctx, object.Namespace{Name: "a", Labels: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "second create", n.Create(ctx, object.Namespace{Name: "a"}), errdefs.ErrAlreadyExists)
	wantErr(t, "bad name", n.Create(ctx, object.Namespace{Name: "a b"}), errdefs.ErrInvalidArgument)
	got := must(n.Update(ctx, object.Namespace{Name: "a", Labels: map[string]string{"l": "w"}}, "labels.l"))(t)
	if len(got.Labels) != 2 {
		t.Errorf("labels: %v", got.Labels)
	}
	got = must(n.Update(ctx, object.Namespace{Name: "a", Labels: map[string]string{"m": "x"}}))(t)
	if len(got.Labels) != 1 || got.Labels["m"] != "x" {
		t.Errorf("labels: %v", got.Labels)
	}
	_, err := n.Update(ctx, object.Namespace{Name: "b", Labels: map[string]string{"k": "v"}}, "labels")
	wantErr(t, "update of all labels by their name", err, errdefs.ErrInvalidArgument)
	must(n.Update(ctx, object.Namespace{Name: "b"}))(t)
	if all := must(n.List(ctx))(t); len(all) != 1 {
		t.Errorf("an update without labels has made a namespace: %v", all)
	}
	must(n.Update(ctx, object.Namespace{Name: "b", Labels: map[string]string{"k": "v"}}, "labels.k"))(t)
	if got := must(n.Get(ctx, "b"))(t); got.Labels["k"] != "v" {
		t.Errorf("a namespace that an update has made: %+v", got)
	}
	must(f.Scope("a", "").Containers().Create(ctx, testContainer("c")))(t)
	must(f.snapshotter(t, "a", "").Prepare(ctx, "k", "", nil))(t)
	err = n.Delete(ctx, "a")
	wantErr(t, "delete in use", err, errdefs.ErrFailedPrecondition)
	if err != nil && (!strings.Contains(err.Error(), "containers") || !strings.Contains(err.Error(), `snapshots on "fake"`)) {
		t.Errorf("%q does not tell what is left", err)
	}
	if err := f.Scope("a", "").Containers().Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := f.snapshotter(t, "a", "").Remove(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
	if got := must(n.Get(ctx, "a"))(t); got.Labels != nil {
		t.Errorf("after the delete: %+v", got)
	}
	wantErr(t, "delete after delete", n.Delete(ctx, "a"), errdefs.ErrNotFound)
}

func TestLeases(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	leases := f.Scope("ns", "").Leases()
	l := must(leases.Create(ctx, object.Lease{Labels: map[string]string{"k": "v"}}))(t)
	if l.ID == "" || l.CreatedAt.IsZero() {
		t.Errorf("made %+v", l)
	}
	_, err := leases.Create(ctx, object.Lease{ID: l.ID})
	wantErr(t, "second create", err, errdefs.ErrAlreadyExists)
	held := []object.Resource{
		{Type: "content", ID: digest.FromString("a").String()},
		{Type: "images", ID: "img"},
		{Type: "ingests", ID: "ref"},
		{Type: "snapshots/fake", ID: "key"},
	}
	for _, r := range held {
		if err := leases.AddResource(ctx, l.ID, r); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	if got := must(leases.ListResources(ctx, l.ID))(t); !slices.Equal(got, held) {
		t.Errorf("holds %v", got)
	}
	for _, r := range held {
		if err := leases.DeleteResource(ctx, l.ID, r); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	if got := must(leases.ListResources(ctx, l.ID))(t); len(got) != 0 {
		t.Errorf("still holds %v", got)
	}
	for want, r := range map[error]object.Resource{
		errdefs.ErrInvalidArgument: {Type: "content", ID: "x"},
		errdefs.ErrNotImplemented:  {Type: "sockets", ID: "x"},
	} {
		wantErr(t, r.Type, leases.AddResource(ctx, l.ID, r), want)
	}
	wantErr(t, "snapshots without a snapshotter", leases.AddResource(ctx, l.ID, object.Resource{Type: "snapshots", ID: "x"}), errdefs.ErrInvalidArgument)
	wantErr(t, "content/x", leases.AddResource(ctx, l.ID, object.Resource{Type: "content/x", ID: "x"}), errdefs.ErrInvalidArgument)
	wantErr(t, "add to none", leases.AddResource(ctx, "none", held[1]), errdefs.ErrNotFound)
	_, err = leases.ListResources(ctx, "none")
	wantErr(t, "list of none", err, errdefs.ErrNotFound)
	if all := must(leases.List(ctx, "labels.k==v"))(t); len(all) != 1 {
		t.Errorf("filter found %d", len(all))
	}
	if err := leases.Delete(ctx, l.ID, true); err != nil {
		t.Error(err)
	}
	wantErr(t, "second delete", leases.Delete(ctx, l.ID, false), errdefs.ErrNotFound)
	_, err = f.snapshotter(t, "ns", "none").Prepare(ctx, "k", "", nil)
	wantErr(t, "write under a lease that is not there", err, errdefs.ErrNotFound)
	if left := f.snapshots.keys(); len(left) != 0 {
		t.Errorf("it left %v in the backend", left)
	}
}

func TestEventsAfterCommit(t *testing.T) {
	x := events.New()
	f := newFixture(t, func(o *Options) { o.Events = x })
	ctx := t.Context()
	ch, _ := x.Subscribe(ctx)
	want := func(topic string) {
		t.Helper()
		if e := <-ch; e.Topic != topic || e.Namespace != "ns" {
			t.Errorf("got %s in %s, want %s", e.Topic, e.Namespace, topic)
		}
	}
	s := f.Scope("ns", "")
	must(s.Containers().Create(ctx, testContainer("c")))(t)
	want("/containers/create")
	_, _ = s.Containers().Create(ctx, testContainer("c")) // fails: no event
	must(s.Containers().Update(ctx, testContainer("c"), "labels"))(t)
	want("/containers/update")
	_ = s.Containers().Delete(ctx, "c")
	want("/containers/delete")
	d := putBlob(t, s, "blob", nil)
	want("/content/create")
	must(s.Images().Create(ctx, testImage("i", d)))(t)
	want("/images/create")
	must(s.Images().Update(ctx, testImage("i", d)))(t)
	want("/images/update")
	_ = s.Images().Delete(ctx, "i", ImageDelete{})
	want("/images/delete")
	_ = s.Content().Delete(ctx, d)
	want("/content/delete")
	sn := f.snapshotter(t, "ns", "")
	must(sn.Prepare(ctx, "a", "", nil))(t)
	want("/snapshot/prepare")
	must(sn.View(ctx, "v", "", nil))(t) // no event
	_ = sn.Remove(ctx, "a")
	want("/snapshot/remove")
	must(f.Collect(ctx))(t)
	want("/snapshot/remove") // the view, as garbage
	_ = f.Namespaces().Update
}

func TestConcurrentWritersShareCommits(t *testing.T) {
	f := newFixture(t)
	before := lastTx(t, f.DB)
	const workers, each = 16, 20
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("w%d-%d", w, i)
				if _, err := f.Scope("ns", "").Containers().Create(t.Context(), testContainer(id)); err != nil {
					t.Errorf("create: %v", err)
				}
				// A call that fails, after it has written, spoils nobody's.
				err := f.DB.update(t.Context(), func(tx *bolt.Tx) error {
					b, err := ensureInNamespace(tx, "ns", keyContainers)
					if err != nil {
						return err
					}
					if err := putString(b, "stray", "x"); err != nil {
						return err
					}
					if i%2 == 0 {
						panic("on purpose")
					}
					return errdefs.ErrAborted
				})
				if err == nil {
					t.Error("a failing call succeeded")
				}
			}
		})
	}
	wg.Wait()
	if all := must(f.Scope("ns", "").Containers().List(t.Context()))(t); len(all) != workers*each {
		t.Errorf("%d containers, want %d", len(all), workers*each)
	}
	if err := f.view(t.Context(), func(tx *bolt.Tx) error {
		if inNamespace(tx, "ns", keyContainers).Get([]byte("stray")) != nil {
			t.Error("a failed call left something behind")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := lastTx(t, f.DB) - before; n >= workers*each {
		t.Errorf("%d transactions for %d calls", n, workers*each)
	}
}

func lastTx(t testing.TB, db *DB) (id int) {
	t.Helper()
	if err := db.view(context.Background(), func(tx *bolt.Tx) error {
		id = tx.ID()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

// A read does not wait for a writer: it is made here while one holds the
// transaction open.
func TestReadsDoNotWait(t *testing.T) {
	f := newFixture(t)
	must(f.Scope("ns", "").Containers().Create(t.Context(), testContainer("c")))(t)
	if err := f.update(t.Context(), func(tx *bolt.Tx) error {
		done := make(chan error, 1)
		go func() {
			_, err := f.Scope("ns", "").Containers().Get(t.Context(), "c")
			done <- err
		}()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return context.DeadlineExceeded
		}
	}); err != nil {
		t.Error(err)
	}
}

func BenchmarkContainerCreate(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("goroutines=%d", workers), func(b *testing.B) {
			f := newFixture(b)
			s := f.Scope("ns", "").Containers()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					for i := w; i < b.N; i += workers {
						if _, err := s.Create(b.Context(), testContainer(fmt.Sprintf("c%d", i))); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

func BenchmarkContainerList10000(b *testing.B) {
	f := newFixture(b)
	if err := f.update(b.Context(), func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, "ns", keyContainers)
		if err != nil {
			return err
		}
		for i := range 10000 {
			ctr := testContainer(fmt.Sprintf("c%d", i))
			ctr.Labels = map[string]string{"io.kubernetes.pod.name": "p", "io.kubernetes.pod.uid": "u"}
			c, err := create(all, "container", ctr.ID)
			if err != nil {
				return err
			}
			if err := f.Scope("ns", "").Containers().put(c, ctr); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	b.Run("List", func(b *testing.B) {
		for b.Loop() {
			if all, err := f.Scope("ns", "").Containers().List(b.Context()); err != nil || len(all) != 10000 {
				b.Fatal(len(all), err)
			}
		}
	})
	b.Run("Each", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			if err := f.Scope("ns", "").Containers().Each(b.Context(), func(*object.StoredContainer) { n++ }); err != nil || n != 10000 {
				b.Fatal(n, err)
			}
		}
	})
}
