package meta

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestContentContract(t *testing.T) {
	for name, isolated := range map[string]bool{"Shared": false, "Isolated": true} {
		t.Run(name, func(t *testing.T) {
			contenttest.Suite{Open: func(t *testing.T) content.Store {
				f := newFixture(t, func(o *Options) { o.Isolated = isolated })
				// Another namespace's blobs must not be in the way.
				putBlob(t, f.Scope("other", ""), "other", nil)
				return f.Scope("ns", "").Content()
			}}.Run(t)
		})
	}
	t.Run("Leased", func(t *testing.T) {
		contenttest.Suite{Open: func(t *testing.T) content.Store {
			f := newFixture(t)
			must(f.Scope("ns", "").Leases().Create(t.Context(), object.Lease{ID: "l"}))(t)
			return f.Scope("ns", "l").Content()
		}}.Run(t)
	})
}

func readBlobText(t testing.TB, s Scope, d digest.Digest) (string, error) {
	t.Helper()
	r, err := s.Content().ReaderAt(t.Context(), ispec.Descriptor{Digest: d})
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	return string(b), err
}

func TestContentSharing(t *testing.T) {
	for _, tt := range []struct {
		name                string
		isolated, shareable bool
		complete            bool // the second namespace need not write
	}{
		{"shared", false, false, true},
		{"isolated", true, false, false},
		{"isolated, from a shareable namespace", true, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(o *Options) { o.Isolated = tt.isolated })
			ctx := t.Context()
			one, two := f.Scope("one", ""), f.Scope("two", "")
			if tt.shareable {
				if err := f.Namespaces().Create(ctx, object.Namespace{Name: "one", Labels: map[string]string{labelShareable: "true"}}); err != nil {
					t.Fatal(err)
				}
			}
			d := putBlob(t, one, "the bytes", nil)
			_, err := two.Content().Info(ctx, d)
			wantErr(t, "info before", err, errdefs.ErrNotFound)
			_, err = readBlobText(t, two, d)
			wantErr(t, "read before", err, errdefs.ErrNotFound)
			w := must(two.Content().Writer(ctx, content.WriteOptions{Ref: "r", Size: 9, Expected: d}))(t)
			st := must(w.Status())(t)
			if got := st.Offset == 9; got != tt.complete {
				t.Errorf("offset %d at the start", st.Offset)
			}
			if sts := must(two.Content().ListStatuses(ctx))(t); len(sts) != 1 || sts[0].Ref != "r" {
				t.Errorf("ingests: %v", sts)
			}
			if !tt.complete {
				must(w.Write([]byte("the bytes")))(t)
			} else if err := one.Content().Delete(ctx, d); err != nil {
				t.Fatal(err)
			}
			must(f.Collect(ctx))(t) // takes nothing that is under way
			if err := w.Commit(ctx, 9, d, map[string]string{"k": "v"}); err != nil {
				t.Fatal(err)
			}
			if text, err := readBlobText(t, two, d); text != "the bytes" || err != nil {
				t.Errorf("read %q, %v", text, err)
			}
			if sts := must(two.Content().ListStatuses(ctx))(t); len(sts) != 0 {
				t.Errorf("ingests after the commit: %v", sts)
			}
		})
	}
}

// A writer that stands for a blob becomes a real one when it is written to.
func TestContentUnshare(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	d := putBlob(t, f.Scope("one", ""), "begin", nil)
	two := f.Scope("two", "")
	w := must(two.Content().Writer(ctx, content.WriteOptions{Ref: "r", Expected: d}))(t)
	if w.Digest() != d {
		t.Errorf("digest %s", w.Digest())
	}
	must(w.Write([]byte(" and end")))(t)
	whole := digest.FromString("begin and end")
	if err := w.Commit(ctx, 0, whole, nil); err != nil {
		t.Fatal(err)
	}
	if text, err := readBlobText(t, two, whole); text != "begin and end" {
		t.Errorf("read %q, %v", text, err)
	}
	w = must(two.Content().Writer(ctx, content.WriteOptions{Ref: "r", Expected: d}))(t)
	if err := w.Truncate(0); err != nil {
		t.Fatal(err)
	}
	must(w.Write([]byte("new")))(t)
	if err := w.Commit(ctx, 3, digest.FromString("new"), nil); err != nil {
		t.Fatal(err)
	}
}

// slowStore lets something happen while the backend opens or commits an ingest.
type slowStore struct {
	content.Store
	opening, committed func()
}

type slowWriter struct {
	content.Writer
	committed func()
}

func (s *slowStore) Writer(ctx context.Context, opts content.WriteOptions) (content.Writer, error) {
	if fn := s.opening; fn != nil {
		s.opening = nil
		fn()
	}
	w, err := s.Store.Writer(ctx, opts)
	if err == nil && s.committed != nil {
		w = &slowWriter{w, s.committed}
		s.committed = nil
	}
	return w, err
}

func (w *slowWriter) Commit(ctx context.Context, size int64, d digest.Digest, labels map[string]string) error {
	err := w.Writer.Commit(ctx, size, d, labels)
	w.committed()
	return err
}

// Of two that begin one ingest at a time, the one that comes too late to open it
// leaves the record of it alone.
func TestContentTwoBegin(t *testing.T) {
	store := &slowStore{}
	f := newFixture(t, func(o *Options) { store.Store, o.Content = o.Content, store })
	ctx := t.Context()
	s := f.Scope("ns", "").Content()
	var faster content.Writer
	store.opening = func() { faster = must(s.Writer(ctx, content.WriteOptions{Ref: "r"}))(t) }
	_, err := s.Writer(ctx, content.WriteOptions{Ref: "r"})
	wantErr(t, "the second writer", err, errdefs.ErrUnavailable)
	must(faster.Write([]byte("x")))(t)
	f.content.dirty.Store(true)
	must(f.Collect(ctx))(t)
	if err := faster.Commit(ctx, 1, "", nil); err != nil {
		t.Error(err)
	}
}

// A commit ends its own ingest, not the one that was begun under its reference
// after an abort.
func TestContentCommitBesideAbort(t *testing.T) {
	store := &slowStore{}
	f := newFixture(t, func(o *Options) { store.Store, o.Content = o.Content, store })
	ctx := t.Context()
	s := f.Scope("ns", "").Content()
	var next content.Writer
	store.committed = func() {
		if err := s.Abort(ctx, "r"); err != nil {
			t.Error(err)
		}
		next = must(s.Writer(ctx, content.WriteOptions{Ref: "r"}))(t)
	}
	w := must(s.Writer(ctx, content.WriteOptions{Ref: "r"}))(t)
	must(w.Write([]byte("x")))(t)
	if err := w.Commit(ctx, 1, "", nil); err != nil {
		t.Fatal(err)
	}
	must(next.Write([]byte("y")))(t)
	f.content.dirty.Store(true)
	must(f.Collect(ctx))(t)
	if err := next.Commit(ctx, 1, "", nil); err != nil {
		t.Error(err)
	}
}

// What was being written in a namespace goes with it, and is not taken up by the
// next one of that name.
func TestContentNamespaceDeleted(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.Scope("ns", "").Content()
	begin := func() content.Writer { return must(s.Writer(ctx, content.WriteOptions{Ref: "r"}))(t) }
	w := begin()
	must(w.Write([]byte("x")))(t)
	if err := errors.Join(w.Close(), f.Namespaces().Delete(ctx, "ns")); err != nil {
		t.Fatal(err)
	}
	w = begin()
	defer w.Close()
	if st := must(w.Status())(t); st.Offset != 0 {
		t.Errorf("a new ingest has %d bytes", st.Offset)
	}
	must(f.Collect(ctx))(t)
	if all := must(f.store.ListStatuses(ctx))(t); len(all) != 1 {
		t.Errorf("the store has the ingests %v", all)
	}
}

// A blob whose bytes the store has lost can be written again; its record, and what
// that refers to, stays.
func TestContentLost(t *testing.T) {
	for _, isolated := range []bool{false, true} {
		f := newFixture(t, func(o *Options) { o.Isolated = isolated })
		ctx := t.Context()
		s := f.Scope("ns", "")
		layer := putBlob(t, s, "layer", nil)
		labels := map[string]string{"containerd.io/gc.root": "x", "containerd.io/gc.ref.content.l": layer.String()}
		d := putBlob(t, s, "manifest", labels)
		if err := f.store.Delete(ctx, d); err != nil {
			t.Fatal(err)
		}
		_, err := s.Content().Info(ctx, d)
		wantErr(t, "info of what is lost", err, errdefs.ErrNotFound)
		must(f.Collect(ctx))(t)
		must(s.Leases().Create(ctx, object.Lease{ID: "l"}))(t)
		w := must(f.Scope("ns", "l").Content().Writer(ctx, content.WriteOptions{Ref: "r", Expected: d}))(t)
		must(w.Write([]byte("manifest")))(t)
		if err := w.Commit(ctx, 8, d, nil); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		if text, err := readBlobText(t, s, d); text != "manifest" {
			t.Errorf("read %q, %v", text, err)
		}
		if info := must(s.Content().Info(ctx, d))(t); !maps.Equal(info.Labels, labels) {
			t.Errorf("labels %v", info.Labels)
		}
		must(s.Content().Info(ctx, layer))(t)
		_, err = s.Content().Writer(ctx, content.WriteOptions{Ref: "r", Expected: d})
		wantErr(t, "writer for what is there again", err, errdefs.ErrAlreadyExists)
	}
}

func TestContentLease(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	leases := f.Scope("ns", "").Leases()
	must(leases.Create(ctx, object.Lease{ID: "l"}))(t)
	leased := f.Scope("ns", "l")
	held := func() []object.Resource { return must(leases.ListResources(ctx, "l"))(t) }
	w := must(leased.Content().Writer(ctx, content.WriteOptions{Ref: "r"}))(t)
	if got := held(); !slices.Equal(got, []object.Resource{{Type: "ingests", ID: "r"}}) {
		t.Errorf("during the write the lease holds %v", got)
	}
	must(w.Write([]byte("x")))(t)
	must(f.Collect(ctx))(t)
	if err := w.Commit(ctx, 1, "", nil); err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("x")
	if got := held(); !slices.Equal(got, []object.Resource{{Type: "content", ID: d.String()}}) {
		t.Errorf("after the commit the lease holds %v", got)
	}
	must(leases.Create(ctx, object.Lease{ID: "m"}))(t)
	_, err := f.Scope("ns", "m").Content().Writer(ctx, content.WriteOptions{Ref: "q", Expected: d})
	wantErr(t, "writer for what is there", err, errdefs.ErrAlreadyExists)
	if got := must(leases.ListResources(ctx, "m"))(t); len(got) != 1 {
		t.Errorf("the second lease holds %v", got)
	}
	_, err = f.Scope("ns", "none").Content().Writer(ctx, content.WriteOptions{Ref: "q"})
	wantErr(t, "writer under a lease that is not there", err, errdefs.ErrNotFound)
}

func TestContentWalkPages(t *testing.T) {
	f := newFixture(t)
	s := f.Scope("ns", "")
	want := map[digest.Digest]bool{}
	for i := range 2*walkPage + 3 {
		want[putBlob(t, s, string(rune('a'+i%26))+string(rune('a'+i/26)), map[string]string{"n": "x"})] = true
	}
	n := 0
	if err := s.Content().Walk(t.Context(), func(info object.BlobInfo) error {
		if !want[info.Digest] {
			t.Errorf("%s twice, or never written", info.Digest)
		}
		delete(want, info.Digest)
		n++
		if n%100 == 0 { // a write during the walk: no transaction is held
			return s.Content().Delete(t.Context(), info.Digest)
		}
		return nil
	}, "labels.n==x"); err != nil {
		t.Fatal(err)
	}
	if len(want) != 0 {
		t.Errorf("%d blobs were not walked", len(want))
	}
}
