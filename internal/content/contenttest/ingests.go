package contenttest

import (
	"fmt"
	"testing"

	"berth/internal/content"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func testResume(t *testing.T, cs content.Store) {
	for _, size := range []int{500, 50_000, 3 << 20} {
		for _, part := range []float64{0, 0.1, 0.5, 1} {
			b, d := Blob(uint64(9+100*part), size)
			opts := content.WriteOptions{Ref: fmt.Sprint("ref-", size, part), Size: int64(size), Expected: d}
			at := int(float64(size) * part)
			w := open(t, cs, opts)
			write(t, w, b[:at])
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			w = open(t, cs, opts)
			wantOffset(t, w, int64(at))
			write(t, w, b[at:])
			if err := w.Commit(t.Context(), int64(size), d, nil); err != nil {
				t.Fatalf("size %d, resumed at %d: %v", size, at, err)
			}
			wantBlob(t, cs, d, b)
		}
	}
}

func testTruncate(t *testing.T, cs content.Store) {
	b, d := Blob(10, 1000)
	w := open(t, cs, content.WriteOptions{Ref: "ref"})
	write(t, w, []byte("what is wrong and longer than nothing"))
	wantKind(t, "truncate to 5", w.Truncate(5), errdefs.IsNotImplemented)
	if err := w.Truncate(0); err != nil {
		t.Fatal(err)
	}
	wantOffset(t, w, 0)
	write(t, w, b)
	wantOffset(t, w, 1000)
	if err := w.Commit(t.Context(), 1000, d, nil); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, cs, d, b)

	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	write(t, w, []byte("abc"))
	if err := w.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	wantOffset(t, w, 0)
	empty := digest.FromBytes(nil)
	if err := w.Commit(t.Context(), 0, empty, nil); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, cs, empty, nil)
}

func testLocked(t *testing.T, cs content.Store) {
	w := open(t, cs, content.WriteOptions{Ref: "ref"})
	_, err := cs.Writer(t.Context(), content.WriteOptions{Ref: "ref"})
	wantKind(t, "second writer", err, errdefs.IsUnavailable)
	open(t, cs, content.WriteOptions{Ref: "other"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, cs, content.WriteOptions{Ref: "ref"})
}

func testStatus(t *testing.T, cs content.Store) {
	b, d := Blob(11, 256)
	w := open(t, cs, content.WriteOptions{Ref: "ref", Size: 256, Expected: d})
	write(t, w, b[:100])
	first, err := w.Status()
	if err != nil || first.Ref != "ref" || first.Offset != 100 || first.Total != 256 || first.StartedAt.IsZero() || first.UpdatedAt.Before(first.StartedAt) {
		t.Fatalf("writer's status is %+v, %v", first, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := cs.Status(t.Context(), "ref")
	if err != nil || second.Ref != "ref" || second.Offset != 100 || second.Total != 256 || !second.StartedAt.Equal(first.StartedAt) || second.UpdatedAt.Before(second.StartedAt) {
		t.Fatalf("store's status is %+v, %v; writer's was %+v", second, err, first)
	}
	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	third, err := w.Status()
	if err != nil || !third.StartedAt.Equal(first.StartedAt) || third.Offset != 100 {
		t.Fatalf("resumed status is %+v, %v; it was %+v", third, err, first)
	}
}

func testListStatuses(t *testing.T, cs content.Store) {
	for _, ref := range []string{"layer-1", "layer-2", "config-1"} {
		w := open(t, cs, content.WriteOptions{Ref: ref})
		write(t, w, []byte(ref))
	}
	for _, tc := range []struct {
		filters []string
		want    int
	}{
		{nil, 3},
		{[]string{`ref==layer-1`}, 1},
		{[]string{`ref~=^layer-`}, 2},
		{[]string{`ref==layer-2`, `ref==config-1`}, 2},
		{[]string{`ref==nothing`}, 0},
	} {
		list, err := cs.ListStatuses(t.Context(), tc.filters...)
		if err != nil || len(list) != tc.want {
			t.Errorf("%v: %d statuses, %v; want %d", tc.filters, len(list), err, tc.want)
		}
		for _, st := range list {
			if st.Offset != int64(len(st.Ref)) {
				t.Errorf("offset of %s is %d", st.Ref, st.Offset)
			}
		}
	}
	_, err := cs.ListStatuses(t.Context(), "ref==")
	wantKind(t, "bad filter", err, errdefs.IsInvalidArgument)
}

func testAbort(t *testing.T, cs content.Store) {
	w := open(t, cs, content.WriteOptions{Ref: "ref"})
	write(t, w, []byte("abc"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cs.Abort(t.Context(), "ref"); err != nil {
		t.Fatal(err)
	}
	_, err := cs.Status(t.Context(), "ref")
	wantKind(t, "status", err, errdefs.IsNotFound)
	wantKind(t, "second abort", cs.Abort(t.Context(), "ref"), errdefs.IsNotFound)
	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	wantOffset(t, w, 0)
}

// An open ingest may be aborted; its writer must not make a blob of it.
func testAbortOpen(t *testing.T, cs content.Store) {
	b, d := Blob(12, 100)
	w := open(t, cs, content.WriteOptions{Ref: "ref"})
	write(t, w, b)
	if err := cs.Abort(t.Context(), "ref"); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 0, d, nil); err == nil {
		t.Fatal("the commit of an aborted ingest succeeded")
	}
	wantAbsent(t, cs, d)
	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	wantOffset(t, w, 0)
}
