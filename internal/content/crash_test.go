package content_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/content/contenttest"
	"berth/internal/fsx/fsxtest"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// files lists what is below root, without the directories.
func files(t testing.TB, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// sessions are ways to write a blob: the sizes of the writes of each writer
// that is opened for it.
var sessions = map[string][][]int{
	"small":   {{4000, 6000}},
	"resumed": {{4000}, {6000}},
	"large":   {{content.NameSize, 6000}}, // gets its name while it is written
}

func sessionBlob(writers [][]int) []byte {
	size := 0
	for _, writes := range writers {
		for _, n := range writes {
			size += n
		}
	}
	blob, _ := contenttest.Blob(1, size)
	return blob
}

// Whatever operation fails, or is the last one before the process dies: the
// blob is absent or whole, a commit that succeeded is there, and writing it
// again works and leaves nothing but the blob.
func TestFailureOfEachOperation(t *testing.T) {
	for name, writers := range sessions {
		t.Run(name+"/error", func(t *testing.T) { failEachOperation(t, writers, fsxtest.FailAt) })
		t.Run(name+"/crash", func(t *testing.T) { failEachOperation(t, writers, fsxtest.CrashAt) })
	}
}

func failEachOperation(t *testing.T, writers [][]int, fault func(int) *fsxtest.Fault) {
	blob := sessionBlob(writers)
	d := digest.FromBytes(blob)
	n := fsxtest.EachOp(t, fault, func(t *testing.T, f *fsxtest.Fault) {
		root := t.TempDir()
		err := writeSessions(t, content.LocalOptions{Root: root, OS: f.OS()}, writers, blob)
		op, hit := f.Hit()
		if err != nil && (!hit || !errors.Is(err, fsxtest.ErrInjected)) {
			t.Fatalf("%s: error hides the failure: %v", op, err)
		}

		l := openLocal(t, root)
		info, ierr := l.Info(t.Context(), d)
		switch {
		case ierr == nil:
			if got := contenttest.Get(t, l, d); !bytes.Equal(got, blob) {
				t.Fatalf("a blob of %d bytes is there, wrong", info.Size)
			}
		case !errdefs.IsNotFound(ierr):
			t.Fatal(ierr)
		case err == nil:
			t.Fatal("the commit succeeded and there is no blob")
		}

		if _, err := l.CleanIngests(t.Context()); err != nil {
			t.Fatal(err)
		}
		if list, err := l.ListStatuses(t.Context()); err != nil || len(list) > 1 {
			t.Fatalf("ingests: %v, %v", list, err)
		}
		finish(t, l, blob, d)
		want := "blobs/sha256/" + d.Encoded()
		if got := files(t, root); !slices.Equal(got, []string{want}) {
			t.Fatalf("left over: %v", got)
		}
	})
	if n < 12 {
		t.Fatalf("only %d operations", n)
	}
}

func writeSessions(t *testing.T, opts content.LocalOptions, writers [][]int, blob []byte) error {
	l, err := content.OpenLocal(opts)
	if err != nil {
		return err
	}
	total := int64(len(blob))
	for i, writes := range writers {
		w, err := l.Writer(t.Context(), content.WriteOptions{Ref: "ref", Size: total})
		if err != nil {
			return err
		}
		defer w.Close()
		for _, size := range writes {
			before, _ := w.Status()
			n, err := w.Write(blob[:size])
			if st, serr := w.Status(); serr != nil || st.Offset != before.Offset+int64(n) {
				t.Errorf("%d bytes were written, status says %+v, %v", n, st, serr)
			}
			if err != nil {
				return err
			}
			blob = blob[size:]
		}
		if i == len(writers)-1 {
			return w.Commit(t.Context(), total, "", nil)
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
	return nil
}

// finish takes up what is left and completes the blob.
func finish(t *testing.T, l *content.Local, blob []byte, d digest.Digest) {
	t.Helper()
	w, err := l.Writer(t.Context(), content.WriteOptions{Ref: "ref", Size: int64(len(blob))})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(blob[st.Offset:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), int64(len(blob)), d, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		t.Fatalf("after a failure, resumed at %d: %v", st.Offset, err)
	}
	if got := contenttest.Get(t, l, d); !bytes.Equal(got, blob) {
		t.Fatal("the blob is wrong")
	}
}

// The order of operations is what durability rests on.
func TestCommitTrace(t *testing.T) {
	const named = `
ingest: mkdir ingest/<ref>
ingest startedat: open ingest/<ref>/startedat
ingest startedat: write ingest/<ref>/startedat
ingest updatedat: open ingest/<ref>/updatedat
ingest updatedat: write ingest/<ref>/updatedat
ingest ref: open ingest/<ref>/ref
ingest ref: write ingest/<ref>/ref
ingest total: open ingest/<ref>/total
ingest total: write ingest/<ref>/total
ingest data: link ingest/<ref>/data
`
	for name, want := range map[string]string{
		"small": `
ingest data: opentemp ingest
ingest data: write ingest
ingest data: write ingest
blob dir: mkdir blobs/sha256
blob dir: syncdir blobs
ingest data: chmod ingest
ingest data: chtimes ingest
ingest data: sync ingest
ingest data: link blobs/sha256/<blob>
blob dir: syncdir blobs/sha256
`,
		"large": `
ingest data: opentemp ingest
ingest data: write ingest` + named + `ingest data: write ingest
blob dir: mkdir blobs/sha256
blob dir: syncdir blobs
ingest data: chmod ingest
ingest data: chtimes ingest
ingest data: sync ingest
blob: rename ingest/<ref>/data blobs/sha256/<blob>
blob dir: syncdir blobs/sha256
ingest: removeall ingest/<ref>
`,
		"resumed": `
ingest data: opentemp ingest
ingest data: write ingest` + named + `ingest data: open ingest/<ref>/data
ingest data: write ingest/<ref>/data
blob dir: mkdir blobs/sha256
blob dir: syncdir blobs
ingest data: chmod ingest/<ref>/data
ingest data: chtimes ingest/<ref>/data
ingest data: sync ingest/<ref>/data
blob: rename ingest/<ref>/data blobs/sha256/<blob>
blob dir: syncdir blobs/sha256
ingest: removeall ingest/<ref>
`,
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			openLocal(t, root)
			blob := sessionBlob(sessions[name])
			tr := &fsxtest.Trace{Strip: root + "/"}
			if err := writeSessions(t, content.LocalOptions{Root: root, OS: tr.OS()}, sessions[name], blob); err != nil {
				t.Fatal(err)
			}
			_, got, _ := strings.Cut(tr.String(), "mkdir blobs\n") // after OpenLocal
			got = strings.NewReplacer(digest.FromBytes(blob).Encoded(), "<blob>", digest.FromString("ref").Encoded(), "<ref>").Replace(got)
			if got != strings.TrimSpace(want) {
				t.Fatalf("operations:\n%s\nwant:%s", got, want)
			}
		})
	}
}

// What a power cut made of a blob is replaced, not believed.
func TestCommitReplacesCutBlob(t *testing.T) {
	blob, d := contenttest.Blob(1, 1000)
	for _, size := range []int{0, 999, 1001} {
		root := t.TempDir()
		l := openLocal(t, root)
		path := filepath.Join(root, "blobs/sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o444); err != nil {
			t.Fatal(err)
		}
		contenttest.Put(t, l, "ref", blob, nil)
		if got := contenttest.Get(t, l, d); !bytes.Equal(got, blob) {
			t.Fatalf("a blob cut to %d bytes stayed", size)
		}
	}
}

func TestVerify(t *testing.T) {
	root := t.TempDir()
	l := openLocal(t, root)
	var digests []digest.Digest
	for i := range 5 {
		blob, _ := contenttest.Blob(uint64(i), 100_000)
		digests = append(digests, contenttest.Put(t, l, "ref", blob, nil))
	}
	spoil := func(d digest.Digest, at time.Time) {
		path := filepath.Join(root, "blobs/sha256", d.Encoded())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[50_000] ^= 1
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o444); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	since := time.Now().Add(-time.Hour)
	spoil(digests[1], since.Add(time.Minute))
	spoil(digests[3], since)
	spoil(digests[4], since.Add(-time.Minute)) // too old to be looked at

	for ref, at := range map[string]time.Time{"old": since.Add(-time.Minute), "new": time.Now()} {
		w, err := l.Writer(t.Context(), content.WriteOptions{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(ref)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(root, "ingest", digest.FromString(ref).Encoded())
		stamp, _ := at.MarshalText()
		if err := os.WriteFile(filepath.Join(dir, "updatedat"), stamp, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(dir, "data"), at, at); err != nil {
			t.Fatal(err)
		}
	}

	damage, err := l.Verify(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	want := []digest.Digest{digests[1], digests[3]}
	slices.Sort(want)
	if !slices.Equal(damage.Blobs, want) || damage.Ingests != 1 {
		t.Fatalf("damage is %v, want %v and one ingest", damage, want)
	}
	left := 0
	if err := l.Walk(t.Context(), func(object.BlobInfo) error { left++; return nil }); err != nil || left != 3 {
		t.Fatalf("%d blobs left, %v", left, err)
	}
	if _, err := l.Status(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	if damage, err := l.Verify(t.Context(), since); err != nil || len(damage.Blobs) != 0 || damage.Ingests != 0 {
		t.Fatalf("second time: %v, %v", damage, err)
	}
}

func TestCleanIngests(t *testing.T) {
	root := t.TempDir()
	l := openLocal(t, root)
	w, err := l.Writer(t.Context(), content.WriteOptions{Ref: "good"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := func(ref string) string { return filepath.Join(root, "ingest", digest.FromString(ref).Encoded()) }
	for dir, content := range map[string]map[string]string{
		name("empty"):                            {},
		name("no ref"):                           {"data": "x"},
		name("no data"):                          {"ref": "no data"},
		name("cut ref"):                          {"ref": "cut", "data": "x"},
		name("huge ref"):                         {"ref": strings.Repeat("x", 1<<20), "data": "x"},
		filepath.Join(root, "ingest/not-a-hash"): {"ref": "x", "data": "x"},
	} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range content {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(root, "ingest/stray"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if list, err := l.ListStatuses(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("listed %v, %v", list, err)
	}
	n, err := l.CleanIngests(t.Context())
	if err != nil || n != 7 {
		t.Fatalf("removed %d, %v", n, err)
	}
	if list, err := l.ListStatuses(t.Context()); err != nil || len(list) != 1 || list[0].Ref != "good" {
		t.Fatalf("listed %v, %v", list, err)
	}
}
