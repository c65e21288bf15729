package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func diffTrees(t testing.TB, lower, upper string, opts DiffOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Diff(t.Context(), &b, lower, upper, opts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func entries(t testing.TB, data []byte) []string {
	t.Helper()
	var out []string
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		if h.Linkname != "" {
			name += " -> " + h.Linkname
		}
		out = append(out, name)
	}
}

func TestDiffOfTrees(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	common := []tar.Header{
		dir("d"), file("d/same"), file("d/touched"), file("d/mode"), file("d/gone"), dir("d/sub"), file("d/sub/x"),
		dir("quiet"), file("quiet/x"), dir("removed"), file("removed/x"), symlink("s", "a"), file("type"),
	}
	mustApply(t, lower, Remove, common...)
	mustApply(t, upper, Remove, common...)
	later := file("d/touched")
	later.ModTime = epoch.Add(time.Hour)
	mode := file("d/mode")
	mode.Mode = 0o600
	mustApply(t, upper, Remove,
		later, mode, whiteout("d/.wh.gone"), whiteout(".wh.removed"), symlink("s", "b"), dir("type"), file("type/x"),
		file("d/sub/new"), hardlink("d/sub/again", "d/sub/new"), dir("d/empty"))
	// Whiteouts come in the order of what they hide.
	want := []string{
		"d/", "d/empty/", "d/.wh.gone", "d/mode", "d/sub/", "d/sub/again", "d/sub/new -> d/sub/again", "d/touched",
		".wh.removed", "s -> b", "type/", "type/x",
	}
	data := diffTrees(t, lower, upper, DiffOptions{})
	if got := entries(t, data); !slices.Equal(got, want) {
		t.Errorf("entries\n%q, want\n%q", got, want)
	}
	if again := diffTrees(t, lower, upper, DiffOptions{}); !bytes.Equal(data, again) {
		t.Error("not deterministic")
	}
	// Applied to the lower tree it gives the upper one.
	if _, err := Apply(t.Context(), lower, bytes.NewReader(data), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest := entries(t, diffTrees(t, lower, upper, DiffOptions{})); len(rest) > 0 {
		t.Errorf("still different: %q", rest)
	}
}

// A file stays one file: names of it that have not changed follow those that have.
func TestDiffKeepsHardLinks(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	common := []tar.Header{dir("a"), file("a/one"), hardlink("a/two", "a/one"), dir("b"), dir("b/c"), hardlink("b/c/three", "a/one"), file("z"), hardlink("zz", "z")}
	mustApply(t, lower, Remove, common...)
	mustApply(t, upper, Remove, append(common, hardlink("m", "a/one"))...)
	data := diffTrees(t, lower, upper, DiffOptions{})
	want := []string{"m", "a/", "a/one -> m", "a/two -> m", "b/", "b/c/", "b/c/three -> m"}
	if got := entries(t, data); !slices.Equal(got, want) {
		t.Errorf("entries\n%q, want\n%q", got, want)
	}
	if _, err := Apply(t.Context(), lower, bytes.NewReader(data), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(lower+"/b/c/three", &st); err != nil || st.Nlink != 4 {
		t.Errorf("%d links, want 4 (%v)", st.Nlink, err)
	}
	if rest := entries(t, diffTrees(t, lower, upper, DiffOptions{})); len(rest) > 0 {
		t.Errorf("still different: %q", rest)
	}
}

func TestDiffKeepsEverything(t *testing.T) {
	upper, again := t.TempDir(), t.TempDir()
	mustApply(t, upper, Remove,
		tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o4755, Uid: 12, Gid: 34, Size: 1, ModTime: epoch, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}},
		tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o660, Devmajor: 8, Devminor: 300, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o622, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeDir, Name: "sticky", Mode: 0o1777, Uid: 7, Gid: 8, ModTime: epoch},
		symlink("s", strings.Repeat("long", 60)), file(strings.Repeat("n", 255)))
	data := diffTrees(t, "", upper, DiffOptions{})
	if _, err := Apply(t.Context(), again, bytes.NewReader(data), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest := entries(t, diffTrees(t, again, upper, DiffOptions{})); len(rest) > 0 {
		t.Errorf("lost on the way: %q", rest)
	}
	before := int64(1_400_000_000)
	data = diffTrees(t, "", upper, DiffOptions{SourceDateEpoch: &before})
	r := tar.NewReader(bytes.NewReader(data))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		if h.ModTime.Unix() != before {
			t.Errorf("%s: time %v", h.Name, h.ModTime)
		}
	}
}

func TestDiffOfUpperDirectory(t *testing.T) {
	upper, again := t.TempDir(), t.TempDir()
	mustApply(t, upper, Overlay, whiteout("d/.wh.gone"), dir("o"), whiteout("o/.wh..wh..opq"), file("o/x"))
	data := diffTrees(t, "", upper, DiffOptions{Upper: Overlay})
	if got, want := entries(t, data), []string{"d/", "d/.wh.gone", "o/", "o/.wh..wh..opq", "o/x"}; !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
	if _, err := Apply(t.Context(), again, bytes.NewReader(data), ApplyOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	expectTree(t, again, "d", "d/gone dev", "o", "o/x")
	if !opaque(t, filepath.Join(again, "o")) {
		t.Error("no longer opaque")
	}
}

func TestDiffLeavesSocketsOutAndRefusesWhiteoutNames(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	if err := unix.Mknod(filepath.Join(upper, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, diffTrees(t, "", upper, DiffOptions{})); len(got) > 0 {
		t.Errorf("entries %q", got)
	}
	if err := os.WriteFile(filepath.Join(upper, ".wh.x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Diff(t.Context(), io.Discard, "", upper, DiffOptions{}); err == nil {
		t.Error("a file named .wh.x became a whiteout")
	}
}

func TestCompression(t *testing.T) {
	data := bytes.Repeat([]byte("berth "), 100_000)
	for _, c := range []Compression{Uncompressed, Gzip, Zstd} {
		var b bytes.Buffer
		w, err := Compress(&b, c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		whole := b.Bytes()
		r, found, err := Decompress(bytes.NewReader(whole))
		if err != nil || found != c {
			t.Fatalf("%q: found %q, %v", c, found, err)
		}
		var tapped bytes.Buffer
		ahead := NewAhead(r, func(p []byte) { tapped.Write(p) })
		got, err := io.ReadAll(ahead)
		if err != nil || !bytes.Equal(got, data) || !bytes.Equal(tapped.Bytes(), data) {
			t.Errorf("%q: %d bytes read, %d tapped, %v", c, len(got), tapped.Len(), err)
		}
		if err := errors.Join(ahead.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		if c == Uncompressed {
			continue
		}
		r, _, err = Decompress(bytes.NewReader(whole[:len(whole)-5]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Errorf("%q: a truncated stream is accepted", c)
		}
	}
}

func TestAheadStopsEarly(t *testing.T) {
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	a := NewAhead(endless, nil)
	if _, err := a.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	own := errors.New("own")
	a = NewAhead(readerFunc(func([]byte) (int, error) { return 0, own }), nil)
	defer a.Close()
	if err := a.Drain(); !errors.Is(err, own) {
		t.Errorf("%v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
