package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
}

var epoch = time.Unix(1_500_000_000, 0)

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: epoch}
}

// file has its name as content.
func file(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name)), ModTime: epoch}
}

func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, ModTime: epoch}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644, ModTime: epoch}
}

func whiteout(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: epoch}
}

func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func apply(t testing.TB, root string, w Whiteouts, headers ...tar.Header) (Applied, error) {
	t.Helper()
	needRoot(t)
	return Apply(t.Context(), root, bytes.NewReader(pack(t, headers...)), ApplyOptions{Whiteouts: w})
}

func mustApply(t testing.TB, root string, w Whiteouts, headers ...tar.Header) Applied {
	t.Helper()
	a, err := apply(t, root, w, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name := p[len(root)+1:]
		if d.Type()&fs.ModeCharDevice != 0 {
			name += " dev"
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func expectTree(t testing.TB, root string, want ...string) {
	t.Helper()
	got := tree(t, root)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestApplyEverything(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Remove,
		dir("d/"),
		tar.Header{Typeflag: tar.TypeReg, Name: "d/setuid", Mode: 0o6755, Uid: 12, Gid: 34, Size: 8, ModTime: epoch,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y", "SCHILY.xattr.trusted.x": "no", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		tar.Header{Typeflag: tar.TypeReg, Name: "d/group-writable", Mode: 0o666, ModTime: epoch.Add(time.Nanosecond)},
		symlink("d/sym", "/somewhere"),
		hardlink("d/hard", "d/setuid"),
		hardlink("d/hard-to-sym", "d/sym"),
		tar.Header{Typeflag: tar.TypeChar, Name: "d/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeBlock, Name: "d/block", Mode: 0o660, Devmajor: 8, Devminor: 300, Uid: 5, Gid: 6, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeFifo, Name: "d/fifo", Mode: 0o622, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeDir, Name: "sticky", Mode: 0o1777, Uid: 7, Gid: 8, ModTime: epoch},
		tar.Header{Typeflag: tar.TypeDir, Name: "setgid", Mode: 0o2775, Gid: 9, ModTime: epoch},
		file("setgid/inside"),
		dir("setgid/sub"),
		file(strings.Repeat("x", 255)),
	)
	for p, want := range map[string]string{
		"d":                "040755 0:0",
		"d/setuid":         "0106755 12:34",
		"d/group-writable": "0100666 0:0",
		"d/sym":            "0120777 0:0",
		"d/hard-to-sym":    "0120777 0:0",
		"d/null":           "020666 0:0",
		"d/block":          "060660 5:6",
		"d/fifo":           "010622 0:0",
		"sticky":           "041777 7:8",
		"setgid":           "042775 0:9",
		"setgid/inside":    "0100644 0:0",
		"setgid/sub":       "040755 0:0",
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, p), &st); err != nil {
			t.Fatal(err)
		}
		if p == "d/setuid" { // the hard link after it says 0644
			st.Mode, st.Uid, st.Gid = 0o106755, 12, 34
		}
		if got := fmt.Sprintf("%#o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
		if st.Mtim.Sec != epoch.Unix() {
			t.Errorf("%s: mtime %d", p, st.Mtim.Sec)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "d/block"), &st); err != nil || uint64(st.Rdev) != unix.Mkdev(8, 300) {
		t.Errorf("block device %#x, %v", st.Rdev, err)
	}
	if err := unix.Lstat(filepath.Join(root, "d/group-writable"), &st); err != nil || st.Mtim.Nsec != 1 {
		t.Errorf("nanoseconds %d, %v", st.Mtim.Nsec, err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(root, "d/setuid"), "user.x", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("user.x: %v", err)
	}
	if _, err := unix.Getxattr(filepath.Join(root, "d/setuid"), "trusted.x", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("trusted.x: %v", err)
	}
}

func TestApplySetuidAndCapabilitySurviveOwner(t *testing.T) {
	root := t.TempDir()
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	mustApply(t, root, Remove, tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o4755, Uid: 12, Gid: 34, Size: 1, ModTime: epoch,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}})
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "f"), &st); err != nil || st.Mode != unix.S_IFREG|0o4755 || st.Uid != 12 {
		t.Errorf("%#o %d %v", st.Mode, st.Uid, err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(root, "f"), "security.capability", buf); err != nil || string(buf[:n]) != capability {
		t.Errorf("capability %q, %v", buf[:max(n, 0)], err)
	}
}

func TestApplyStaysInside(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		headers []tar.Header
		err     error    // nil: unpacked, within the root
		want    []string // below the root
	}{
		"parent":                   {[]tar.Header{file("../escape")}, errdefs.ErrInvalidArgument, nil},
		"parent in between":        {[]tar.Header{file("a/../../escape")}, errdefs.ErrInvalidArgument, nil},
		"absolute":                 {[]tar.Header{file("/escape")}, nil, []string{"escape"}},
		"absolute symlink":         {[]tar.Header{symlink("l", "/outside"), file("l/escape")}, nil, []string{"l", "outside", "outside/escape"}},
		"relative symlink":         {[]tar.Header{symlink("l", "../../outside"), file("l/escape")}, errdefs.ErrInvalidArgument, []string{"l"}},
		"symlink loop":             {[]tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/x")}, errdefs.ErrInvalidArgument, []string{"a", "b"}},
		"through a symlink":        {[]tar.Header{dir("real"), symlink("l", "real"), file("l/f"), file("l/g"), file("real/h")}, nil, []string{"l", "real", "real/f", "real/g", "real/h"}},
		"file as directory":        {[]tar.Header{file("f"), file("f/x")}, errdefs.ErrInvalidArgument, []string{"f"}},
		"hard link outside":        {[]tar.Header{hardlink("h", "../outside/secret")}, errdefs.ErrInvalidArgument, nil},
		"hard link absolute":       {[]tar.Header{hardlink("h", "/outside/secret")}, errdefs.ErrFailedPrecondition, nil},
		"hard link via link":       {[]tar.Header{symlink("l", "/outside"), hardlink("h", "l/secret")}, errdefs.ErrFailedPrecondition, []string{"l"}},
		"hard link to a directory": {[]tar.Header{dir("d"), hardlink("h", "d")}, errdefs.ErrInvalidArgument, []string{"d"}},
		"hard link to itself":      {[]tar.Header{file("f"), hardlink("f", "f")}, nil, []string{"f"}},
		"write through a symlink":  {[]tar.Header{symlink("l", "/outside/secret"), file("l")}, nil, []string{"l"}},
		"directory over a symlink": {[]tar.Header{symlink("l", "/outside"), dir("l"), file("l/x")}, nil, []string{"l", "l/x"}},
		"whiteout of parent":       {[]tar.Header{whiteout("a/.wh...")}, errdefs.ErrInvalidArgument, []string{"a"}},
		"whiteout of nothing":      {[]tar.Header{whiteout("a/.wh.none")}, nil, []string{"a"}},
		"whiteout nameless":        {[]tar.Header{whiteout(".wh.")}, errdefs.ErrInvalidArgument, nil},
		"root":                     {[]tar.Header{dir("./"), dir("."), dir("/")}, nil, nil},
		"device numbers":           {[]tar.Header{{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 20}}, errdefs.ErrInvalidArgument, nil},
		"long component":           {[]tar.Header{file(strings.Repeat("x", 256))}, errdefs.ErrInvalidArgument, nil},
		"deep":                     {[]tar.Header{file(strings.Repeat("d/", 600) + "f")}, errdefs.ErrInvalidArgument, nil},
		"long path":                {[]tar.Header{file(strings.Repeat("d/", 2100) + "f")}, errdefs.ErrInvalidArgument, nil},
		"owner":                    {[]tar.Header{{Typeflag: tar.TypeReg, Name: "f", Uid: -2}}, errdefs.ErrInvalidArgument, []string{"f"}},
		"duplicate":                {[]tar.Header{file("f"), symlink("f", "x"), dir("f"), file("f/g"), file("f")}, nil, []string{"f"}},
		"empty symlink":            {[]tar.Header{symlink("s", "")}, errdefs.ErrInvalidArgument, nil},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			root, outside := filepath.Join(top, "root"), filepath.Join(top, "outside")
			for _, d := range []string{root, outside} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := fingerprint(t, outside)
			_, err := apply(t, root, Remove, c.headers...)
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if err != nil && !strings.Contains(err.Error(), "entry ") {
				t.Errorf("no entry is named: %v", err)
			}
			if name != "deep" && name != "long path" {
				expectTree(t, root, c.want...)
			}
			if after := fingerprint(t, outside); after != before {
				t.Errorf("outside was\n%s, is\n%s", before, after)
			}
			if entries, err := os.ReadDir(top); err != nil || len(entries) != 2 {
				t.Errorf("beside the root: %v %v", entries, err)
			}
		})
	}
}

// fingerprint changes with anything that can be changed in a tree.
func fingerprint(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		fmt.Fprintln(&b, p, st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Ctim)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTruncatedArchive(t *testing.T) {
	needRoot(t)
	data := pack(t, file("a"), tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 90), Size: 90, ModTime: epoch})
	_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(data[:len(data)-1024-500]), ApplyOptions{})
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), strings.Repeat("n", 90)) {
		t.Errorf("%v", err)
	}
}

func TestApplyStops(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(pack(t, file("a"))), ApplyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestImplied(t *testing.T) {
	root := t.TempDir()
	a := mustApply(t, root, Overlay, file("a/b/c/f"), dir("a/b"), file("x/y"), whiteout("q/.wh.z"), dir("late/early"), dir("late"), whiteout(".wh.hidden"), file("hidden/f"))
	if want := []string{"a", "a/b/c", "x", "q"}; !slices.Equal(a.Implied, want) {
		t.Errorf("implied %q, want %q", a.Implied, want)
	}
}

func opaque(t testing.TB, p string) bool {
	t.Helper()
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", buf)
	return err == nil && string(buf[:n]) == "y"
}

func TestWhiteoutsForOverlay(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Overlay,
		whiteout(".wh.gone"),
		dir("d"), whiteout("d/.wh..wh..opq"), file("d/new"),
		whiteout(".wh.replaced"), dir("replaced"), file("replaced/f"),
		dir("later"), whiteout(".wh.later"),
		file("kept"), whiteout(".wh.kept"),
		whiteout(".wh.file"), file("file"),
		whiteout(".wh..wh.plnk"),
	)
	expectTree(t, root, "gone dev", "d", "d/new", "replaced", "replaced/f", "later", "kept", "file")
	for _, p := range []string{"d", "replaced", "later"} {
		if !opaque(t, filepath.Join(root, p)) {
			t.Errorf("%s is not opaque", p)
		}
	}
}

func TestWhiteoutsCarriedOut(t *testing.T) {
	root := t.TempDir()
	mustApply(t, root, Remove, file("gone"), dir("d"), file("d/old"), dir("d/sub"), file("d/sub/old"), file("d/mixed/old"), dir("e"), file("e/old"), file("replaced"))
	mustApply(t, root, Remove,
		whiteout(".wh.gone"),
		file("d/mixed/new"), file("d/new"), whiteout("d/.wh..wh..opq"), // the marker may come last
		file("e/new"), whiteout(".wh.e"),
		whiteout(".wh.replaced"), dir("replaced"), file("replaced/f"),
	)
	expectTree(t, root, "d", "d/mixed", "d/mixed/new", "d/new", "e", "e/new", "replaced", "replaced/f")
}

func TestSparseFiles(t *testing.T) {
	needRoot(t)
	for i, data := range sparseSamples(t) {
		root := t.TempDir()
		if _, err := Apply(t.Context(), root, bytes.NewReader(data), ApplyOptions{}); err != nil {
			t.Fatal(i, err)
		}
		want, err := standard(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(root, "sparse"))
		if err != nil || string(got) != want[0].data {
			t.Errorf("sample %d: content differs, %v", i, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, "sparse"), &st); err != nil || st.Size != 3<<20 || st.Blocks*512 > 1<<20 {
			t.Errorf("sample %d: %d bytes, %d blocks, %v", i, st.Size, st.Blocks, err)
		}
	}
}

func TestInherit(t *testing.T) {
	needRoot(t)
	parents, root := t.TempDir(), t.TempDir()
	mustApply(t, parents, Remove,
		tar.Header{Typeflag: tar.TypeDir, Name: "etc", Mode: 0o2750, Uid: 5, Gid: 6, ModTime: epoch},
		dir("usr"), tar.Header{Typeflag: tar.TypeDir, Name: "usr/lib", Mode: 0o711, Uid: 3, Gid: 4, ModTime: epoch},
		dir("usr/lib/sub"), file("usr/lib/sub/old"),
		symlink("lib", "usr/lib"), symlink("dangling", "/none"), file("file"))
	a := mustApply(t, root, Overlay, file("etc/f"), file("lib/f"), file("lib/sub/g"), file("new/f"), file("dangling/f"), file("file/f"))
	if err := Inherit(root, parents, a.Implied); err != nil {
		t.Fatal(err)
	}
	expectTree(t, root, "etc", "etc/f", "usr", "usr/lib", "usr/lib/f", "usr/lib/sub", "usr/lib/sub/g", "new", "new/f", "dangling", "dangling/f", "file", "file/f")
	for p, want := range map[string]string{"etc": "042750 5:6", "usr/lib": "040711 3:4", "new": "040755 0:0"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, p), &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%#o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

// FuzzApply unpacks what it is given, into an empty root and over a tree with
// links that lead out, and looks whether anything beside the root has changed.
func FuzzApply(f *testing.F) {
	needRoot(f)
	for _, headers := range [][]tar.Header{
		{dir("a"), file("a/b"), symlink("l", "/outside"), file("l/x"), hardlink("h", "l/secret")},
		{symlink("a", "../outside"), dir("a"), whiteout("a/.wh.secret"), whiteout("up/.wh..wh..opq")},
		{hardlink("h", "up/secret"), file("up/secret"), dir("up"), whiteout(".wh.up")},
	} {
		f.Add(pack(f, headers...), byte(0))
		f.Add(pack(f, headers...), byte(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, mode byte) {
		top := t.TempDir()
		root, outside := filepath.Join(top, "root"), filepath.Join(top, "outside")
		for _, d := range []string{root, outside} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
			t.Fatal(err)
		}
		if mode&4 != 0 {
			if err := os.Symlink("../outside", filepath.Join(root, "up")); err != nil {
				t.Fatal(err)
			}
		}
		before := fingerprint(t, outside)
		_, _ = Apply(t.Context(), root, bytes.NewReader(data), ApplyOptions{Whiteouts: Whiteouts(mode & 3 % 3)})
		if after := fingerprint(t, outside); after != before {
			t.Errorf("outside was\n%s, is\n%s", before, after)
		}
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 2 {
			t.Errorf("beside the root: %v %v", entries, err)
		}
	})
}

// BenchmarkApply unpacks 2,000 files of 8 KiB in 100 directories.
func BenchmarkApply(b *testing.B) {
	needRoot(b)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := bytes.Repeat([]byte("berth "), 8192/6)
	for d := range 100 {
		h := dir(fmt.Sprintf("usr/share/d%d/", d))
		if err := w.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		for i := range 20 {
			h := file(fmt.Sprintf("usr/share/d%d/file%d", d, i))
			h.Size = int64(len(content))
			if err := w.WriteHeader(&h); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(content); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	b.SetBytes(int64(buf.Len()))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		root := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(root, 0o755); err != nil {
			b.Fatal(err)
		}
		if _, err := Apply(b.Context(), root, bytes.NewReader(buf.Bytes()), ApplyOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
