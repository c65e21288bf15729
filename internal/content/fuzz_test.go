package content_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/internal/content"

	"github.com/opencontainers/go-digest"
)

// FuzzIngest opens a store over an ingest of arbitrary files. It is taken up or
// started over, never refused, and yields the bytes that it says it has.
func FuzzIngest(f *testing.F) {
	f.Add("ref", "3", "2026-01-02T03:04:05.000000006Z", "2026-01-02T03:04:05Z", []byte("abc"))
	f.Add("ref", "", "", "", []byte(nil))
	f.Add("re", "-1", "yesterday", "\xff", []byte("abc"))
	f.Add("ref", "99999999999999999999", "0000-00-00T00:00:00Z", "9999-12-31T23:59:59+23:59", []byte("abc"))
	f.Fuzz(func(t *testing.T, ref, total, started, updated string, data []byte) {
		root := t.TempDir()
		l := openLocal(t, root)
		dir := filepath.Join(root, "ingest", digest.FromString("ref").Encoded())
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"ref": ref, "total": total, "startedat": started, "updatedat": updated, "data": string(data)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		st, serr := l.Status(t.Context(), "ref")
		list, err := l.ListStatuses(t.Context())
		if err != nil || len(list) == 1 != (serr == nil) {
			t.Fatalf("status %v, list %v, %v", serr, list, err)
		}
		if serr == nil && (st.Total < 0 || st.Offset != int64(len(data))) {
			t.Fatalf("status is %+v", st)
		}
		w, err := l.Writer(t.Context(), content.WriteOptions{Ref: "ref"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		ws, err := w.Status()
		if err != nil {
			t.Fatal(err)
		}
		want := digest.FromBytes(data[:ws.Offset])
		if ws.Offset != 0 && ws.Offset != int64(len(data)) || w.Digest() != want {
			t.Fatalf("taken up at %d of %d bytes with digest %s", ws.Offset, len(data), w.Digest())
		}
		if err := w.Commit(t.Context(), ws.Offset, want, nil); err != nil {
			t.Fatal(err)
		}
	})
}
