// Package contenttest is the contract of content.Store as a test suite.
package contenttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"berth/internal/content"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Suite says how to make the store under test, and what it is excused from.
type Suite struct {
	// Open makes an empty store that ends with the test.
	Open func(t *testing.T) content.Store
	// NoLabels: Update is errdefs.ErrFailedPrecondition, as there are no labels.
	NoLabels bool
	// StatelessReader: a reader asks the store anew for each range, so that it
	// ends with the blob.
	StatelessReader bool
}

// Run runs every test on a store of its own.
func (s Suite) Run(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, cs content.Store){
		"WriteRead":         testWriteRead,
		"Ranges":            testRanges,
		"SHA512":            testSHA512,
		"CommitMismatch":    testCommitMismatch,
		"CommitExists":      testCommitExists,
		"OpenExisting":      testOpenExisting,
		"CommitCloses":      testCommitCloses,
		"Resume":            testResume,
		"Truncate":          testTruncate,
		"Locked":            testLocked,
		"Status":            testStatus,
		"ListStatuses":      testListStatuses,
		"Abort":             testAbort,
		"AbortOpen":         testAbortOpen,
		"Delete":            testDelete,
		"Walk":              testWalk,
		"InvalidArguments":  testInvalidArguments,
		"NotFound":          testNotFound,
		"ConcurrentSame":    testConcurrentSame,
		"ConcurrentVarious": testConcurrentVarious,
		"Labels":            s.testLabels,
		"DeleteOpen":        s.testDeleteOpen,
	} {
		t.Run(name, func(t *testing.T) { test(t, s.Open(t)) })
	}
}

// Blob makes size bytes that are the same for the same seed, and their digest.
func Blob(seed uint64, size int) ([]byte, digest.Digest) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(size))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b, digest.FromBytes(b)
}

// Put writes a blob and returns its digest.
func Put(t testing.TB, cs content.Store, ref string, b []byte, labels map[string]string) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	w := open(t, cs, content.WriteOptions{Ref: ref, Size: int64(len(b)), Expected: d})
	// A store that has the bytes already, for another namespace, needs none.
	st, err := w.Status()
	if err != nil {
		t.Fatalf("status of %s: %v", ref, err)
	}
	write(t, w, b[st.Offset:])
	if err := w.Commit(t.Context(), int64(len(b)), d, labels); err != nil {
		t.Fatalf("commit %s: %v", ref, err)
	}
	return d
}

// Get reads a blob whole.
func Get(t testing.TB, cs content.Store, d digest.Digest) []byte {
	t.Helper()
	r, err := cs.ReaderAt(t.Context(), ispec.Descriptor{Digest: d})
	if err != nil {
		t.Fatalf("open %s: %v", d, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatalf("read %s: %v", d, err)
	}
	return b
}

func open(t testing.TB, cs content.Store, opts content.WriteOptions) content.Writer {
	t.Helper()
	w, err := cs.Writer(t.Context(), opts)
	if err != nil {
		t.Fatalf("open ingest %s: %v", opts.Ref, err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func write(t testing.TB, w io.Writer, b []byte) {
	t.Helper()
	if n, err := w.Write(b); err != nil || n != len(b) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(b), err)
	}
}

func wantOffset(t testing.TB, w content.Writer, offset int64) {
	t.Helper()
	st, err := w.Status()
	if err != nil || st.Offset != offset {
		t.Fatalf("offset is %d, %v; want %d", st.Offset, err, offset)
	}
}

func wantKind(t testing.TB, what string, err error, is func(error) bool) {
	t.Helper()
	if !is(err) {
		t.Fatalf("%s: error is of the wrong kind: %v", what, err)
	}
}

func wantAbsent(t testing.TB, cs content.Store, d digest.Digest) {
	t.Helper()
	_, err := cs.Info(t.Context(), d)
	wantKind(t, "info of "+d.String(), err, errdefs.IsNotFound)
	_, err = cs.ReaderAt(t.Context(), ispec.Descriptor{Digest: d})
	wantKind(t, "open "+d.String(), err, errdefs.IsNotFound)
}

func wantBlob(t testing.TB, cs content.Store, d digest.Digest, b []byte) {
	t.Helper()
	info, err := cs.Info(t.Context(), d)
	if err != nil || info.Digest != d || info.Size != int64(len(b)) || info.CreatedAt.IsZero() || info.UpdatedAt.IsZero() {
		t.Fatalf("info is %+v, %v", info, err)
	}
	if !bytes.Equal(Get(t, cs, d), b) {
		t.Fatalf("%s holds other bytes", d)
	}
}

func testWriteRead(t *testing.T, cs content.Store) {
	for _, size := range []int{0, 1, 4095, 1<<20 + 3, 9 << 20} {
		b, d := Blob(1, size)
		w := open(t, cs, content.WriteOptions{Ref: fmt.Sprint("size-", size), Size: int64(size)})
		half := size / 2
		write(t, w, b[:half])
		wantOffset(t, w, int64(half))
		write(t, w, b[half:])
		wantOffset(t, w, int64(size))
		if got := w.Digest(); got != d {
			t.Fatalf("size %d: writer's digest is %s, want %s", size, got, d)
		}
		wantAbsent(t, cs, d)
		if err := w.Commit(t.Context(), int64(size), "", nil); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		wantBlob(t, cs, d, b)
	}
}

func testRanges(t *testing.T, cs content.Store) {
	b, _ := Blob(2, 100_000)
	d := Put(t, cs, "ref", b, nil)
	r, err := cs.ReaderAt(t.Context(), ispec.Descriptor{Digest: d})
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != int64(len(b)) {
		t.Fatalf("size is %d", r.Size())
	}
	for _, tc := range []struct {
		off int64
		n   int
	}{{0, 1}, {0, len(b)}, {1, 70_000}, {99_999, 1}, {50_000, 50_000}} {
		p := make([]byte, tc.n)
		if n, err := r.ReadAt(p, tc.off); n != tc.n || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %d, %v", tc.n, tc.off, n, err)
		}
		if !bytes.Equal(p, b[tc.off:][:tc.n]) {
			t.Fatalf("%d bytes at %d are others", tc.n, tc.off)
		}
	}
	p := make([]byte, 10)
	if n, err := r.ReadAt(p, 99_995); n != 5 || err != io.EOF || !bytes.Equal(p[:5], b[99_995:]) {
		t.Fatalf("across the end: %d, %v", n, err)
	}
	if n, err := r.ReadAt(p, 100_000); n != 0 || err != io.EOF {
		t.Fatalf("at the end: %d, %v", n, err)
	}
	if n, err := r.ReadAt(p, 1<<40); n != 0 || err != io.EOF {
		t.Fatalf("past the end: %d, %v", n, err)
	}
	if _, err := r.ReadAt(p, -1); err == nil {
		t.Fatal("a negative offset was accepted")
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testSHA512(t *testing.T, cs content.Store) {
	b, _ := Blob(3, 5000)
	for i, opts := range []content.WriteOptions{
		{Ref: "from the start", Expected: digest.SHA512.FromBytes(b)},
		{Ref: "at the commit"},
	} {
		b[0] = byte(i) // another blob
		d := digest.SHA512.FromBytes(b)
		if opts.Expected != "" {
			opts.Expected = d
		}
		w := open(t, cs, opts)
		write(t, w, b)
		if err := w.Commit(t.Context(), 0, d, nil); err != nil {
			t.Fatal(err)
		}
		wantBlob(t, cs, d, b)
		wantAbsent(t, cs, digest.FromBytes(b))
	}
}

func testCommitMismatch(t *testing.T, cs content.Store) {
	b, d := Blob(4, 300)
	_, other := Blob(5, 300)
	ref := content.WriteOptions{Ref: "ref"}
	w := open(t, cs, ref)
	write(t, w, b)
	wantKind(t, "wrong size", w.Commit(t.Context(), 299, d, nil), errdefs.IsFailedPrecondition)
	wantAbsent(t, cs, d)

	w = open(t, cs, ref)
	wantOffset(t, w, 300)
	wantKind(t, "wrong digest", w.Commit(t.Context(), 300, other, nil), errdefs.IsFailedPrecondition)
	wantAbsent(t, cs, d)
	wantAbsent(t, cs, other)

	w = open(t, cs, ref)
	wantOffset(t, w, 300)
	if err := w.Commit(t.Context(), 300, d, nil); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, cs, d, b)
}

func testCommitExists(t *testing.T, cs content.Store) {
	b, d := Blob(6, 400)
	Put(t, cs, "first", b, nil)
	for _, expected := range []digest.Digest{d, ""} {
		w := open(t, cs, content.WriteOptions{Ref: "second"})
		write(t, w, b)
		wantKind(t, "commit", w.Commit(t.Context(), 400, expected, nil), errdefs.IsAlreadyExists)
		_, err := cs.Status(t.Context(), "second")
		wantKind(t, "status of the ingest", err, errdefs.IsNotFound)
	}
	wantBlob(t, cs, d, b)
}

func testOpenExisting(t *testing.T, cs content.Store) {
	b, d := Blob(7, 400)
	Put(t, cs, "first", b, nil)
	for _, size := range []int64{0, 400} {
		_, err := cs.Writer(t.Context(), content.WriteOptions{Ref: "second", Expected: d, Size: size})
		wantKind(t, "open", err, errdefs.IsAlreadyExists)
	}
	open(t, cs, content.WriteOptions{Ref: "second"}) // not locked
}

func testCommitCloses(t *testing.T, cs content.Store) {
	b, d := Blob(8, 10)
	w := open(t, cs, content.WriteOptions{Ref: "ref"})
	write(t, w, b)
	if err := w.Commit(t.Context(), 0, d, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err == nil {
		t.Error("a write after the commit succeeded")
	}
	if err := w.Commit(t.Context(), 0, d, nil); err == nil {
		t.Error("a second commit succeeded")
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Errorf("close after the commit: %v", err)
		}
	}
	w = open(t, cs, content.WriteOptions{Ref: "ref"})
	wantOffset(t, w, 0)
}

func testDelete(t *testing.T, cs content.Store) {
	b, _ := Blob(13, 100)
	d := Put(t, cs, "ref", b, nil)
	if err := cs.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, cs, d)
	wantKind(t, "second delete", cs.Delete(t.Context(), d), errdefs.IsNotFound)
	Put(t, cs, "ref", b, nil)
	wantBlob(t, cs, d, b)
}

func (s Suite) testDeleteOpen(t *testing.T, cs content.Store) {
	if s.StatelessReader {
		t.Skip("readers of this store end with the blob")
	}
	b, _ := Blob(14, 1000)
	d := Put(t, cs, "ref", b, nil)
	r, err := cs.ReaderAt(t.Context(), ispec.Descriptor{Digest: d})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := cs.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("the reader lost the blob: %v", err)
	}
}

func testWalk(t *testing.T, cs content.Store) {
	want := make(map[digest.Digest]int)
	for i := range 250 { // more than one message of a remote store holds
		b, _ := Blob(uint64(i), i)
		want[Put(t, cs, fmt.Sprint("ref-", i), b, nil)] = i
	}
	got := make(map[digest.Digest]int)
	if err := cs.Walk(t.Context(), func(info object.BlobInfo) error {
		got[info.Digest] = int(info.Size)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d blobs, want %d", len(got), len(want))
	}
	for d, size := range want {
		if got[d] != size {
			t.Fatalf("size of %s is %d, want %d", d, got[d], size)
		}
	}
	_, d := Blob(7, 7)
	n := 0
	if err := cs.Walk(t.Context(), func(object.BlobInfo) error { n++; return nil }, "digest=="+d.String()); err != nil || n != 1 {
		t.Fatalf("by digest: %d blobs, %v", n, err)
	}
	stop := errors.New("stop")
	n = 0
	if err := cs.Walk(t.Context(), func(object.BlobInfo) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Fatalf("stopped after %d blobs with %v", n, err)
	}
	// fn may change the store.
	if err := cs.Walk(t.Context(), func(info object.BlobInfo) error { return cs.Delete(t.Context(), info.Digest) }); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, cs, d)
	wantKind(t, "bad filter", cs.Walk(t.Context(), nil, "digest=="), errdefs.IsInvalidArgument)
}

func testInvalidArguments(t *testing.T, cs content.Store) {
	ctx := t.Context()
	hex := strings.Repeat("a", 64)
	for _, d := range []digest.Digest{
		"", "sha256", "sha256:", digest.Digest("sha256:" + hex[1:]), digest.Digest("sha256:" + strings.ToUpper(hex)),
		digest.Digest("md5:" + hex[:32]), "sha256:../../../../etc/passwd", digest.Digest("../ingest:" + hex), digest.Digest(hex),
	} {
		_, err := cs.Info(ctx, d)
		wantKind(t, fmt.Sprintf("info of %q", d), err, errdefs.IsInvalidArgument)
		_, err = cs.ReaderAt(ctx, ispec.Descriptor{Digest: d})
		wantKind(t, fmt.Sprintf("open %q", d), err, errdefs.IsInvalidArgument)
		wantKind(t, fmt.Sprintf("delete %q", d), cs.Delete(ctx, d), errdefs.IsInvalidArgument)
		if d != "" {
			_, err = cs.Writer(ctx, content.WriteOptions{Ref: "ref", Expected: d})
			wantKind(t, fmt.Sprintf("expect %q", d), err, errdefs.IsInvalidArgument)
		}
	}
	for _, ref := range []string{"", strings.Repeat("x", 1<<17)} {
		_, err := cs.Writer(ctx, content.WriteOptions{Ref: ref})
		wantKind(t, fmt.Sprintf("reference of %d bytes", len(ref)), err, errdefs.IsInvalidArgument)
	}
	// Names that would be another path are names like others.
	for _, ref := range []string{"../../escape", "/abs", ".", "a\x00b", "\xff\n"} {
		w, err := cs.Writer(ctx, content.WriteOptions{Ref: ref})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("reference %q: %v", ref, err)
			}
			continue
		}
		if err := errors.Join(w.Close(), cs.Abort(ctx, ref)); err != nil {
			t.Errorf("reference %q: %v", ref, err)
		}
	}
}

func testNotFound(t *testing.T, cs content.Store) {
	_, d := Blob(15, 15)
	wantAbsent(t, cs, d)
	wantKind(t, "delete", cs.Delete(t.Context(), d), errdefs.IsNotFound)
	_, err := cs.Update(t.Context(), object.BlobInfo{Digest: d, Labels: map[string]string{"a": "b"}})
	wantKind(t, "update", err, errdefs.IsNotFound)
	_, err = cs.Status(t.Context(), "nothing")
	wantKind(t, "status", err, errdefs.IsNotFound)
	wantKind(t, "abort", cs.Abort(t.Context(), "nothing"), errdefs.IsNotFound)
}

func testConcurrentSame(t *testing.T, cs content.Store) {
	b, d := Blob(16, 100_000)
	var wg sync.WaitGroup
	var mu sync.Mutex
	committed := 0
	for i := range 8 {
		wg.Go(func() {
			switch err := put(t.Context(), cs, fmt.Sprint("ref-", i), b); {
			case err == nil:
				mu.Lock()
				committed++
				mu.Unlock()
			case !errdefs.IsAlreadyExists(err):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if committed != 1 {
		t.Errorf("%d writers made the blob", committed)
	}
	wantBlob(t, cs, d, b)
	if list, err := cs.ListStatuses(t.Context()); len(list) != 0 || err != nil {
		t.Errorf("ingests left: %v, %v", list, err)
	}
}

func testConcurrentVarious(t *testing.T, cs content.Store) {
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			b, _ := Blob(uint64(i), 10_000)
			if err := put(t.Context(), cs, fmt.Sprint("ref-", i), b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 32 {
		b, d := Blob(uint64(i), 10_000)
		wantBlob(t, cs, d, b)
	}
}

func put(ctx context.Context, cs content.Store, ref string, b []byte) error {
	w, err := cs.Writer(ctx, content.WriteOptions{Ref: ref})
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return err
	}
	return w.Commit(ctx, int64(len(b)), "", nil)
}

func (s Suite) testLabels(t *testing.T, cs content.Store) {
	b, d := Blob(17, 20)
	Put(t, cs, "ref", b, map[string]string{"a": "1", "b.c/d": "2"})
	if s.NoLabels {
		_, err := cs.Update(t.Context(), object.BlobInfo{Digest: d, Labels: map[string]string{"a": "1"}})
		wantKind(t, "update", err, errdefs.IsFailedPrecondition)
		return
	}
	want := func(labels map[string]string) {
		t.Helper()
		info, err := cs.Info(t.Context(), d)
		if err != nil || fmt.Sprint(info.Labels) != fmt.Sprint(labels) {
			t.Fatalf("labels are %v, %v; want %v", info.Labels, err, labels)
		}
	}
	update := func(labels map[string]string, paths ...string) {
		t.Helper()
		info, err := cs.Update(t.Context(), object.BlobInfo{Digest: d, Labels: labels}, paths...)
		if err != nil {
			t.Fatal(err)
		}
		want(info.Labels)
	}
	want(map[string]string{"a": "1", "b.c/d": "2"})
	update(map[string]string{"b.c/d": "3", "ignored": "x"}, "labels.b.c/d")
	want(map[string]string{"a": "1", "b.c/d": "3"})
	update(map[string]string{"e": "4"}, "labels.a", "labels.e")
	want(map[string]string{"b.c/d": "3", "e": "4"})
	update(map[string]string{"x": "5"}, "labels")
	want(map[string]string{"x": "5"})
	update(map[string]string{"y": "6"})
	want(map[string]string{"y": "6"})

	n := 0
	count := func(object.BlobInfo) error { n++; return nil }
	if err := cs.Walk(t.Context(), count, "labels.y==6"); err != nil || n != 1 {
		t.Fatalf("by label: %d, %v", n, err)
	}
	if err := cs.Walk(t.Context(), count, "labels.x"); err != nil || n != 1 {
		t.Fatalf("by a label that is gone: %d, %v", n, err)
	}
	for _, path := range []string{"size", "digest", "nonsense"} {
		_, err := cs.Update(t.Context(), object.BlobInfo{Digest: d, Size: 1}, path)
		wantKind(t, "update of "+path, err, errdefs.IsInvalidArgument)
	}
	wantBlob(t, cs, d, b)
}
