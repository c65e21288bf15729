package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// member is an entry as both readers tell it.
type member struct {
	typ          byte
	name, link   string
	mode         int64
	uid, gid     int
	size         int64
	mtime        time.Time
	major, minor int64
	xattrs       map[string]string
	data         string
}

func ours(r io.Reader) ([]member, error) {
	rd := reader{s: stream{src: chunksOf(r)}}
	var out []member
	for {
		e, err := rd.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		m := member{typ: e.typ, name: e.name, link: e.link, mode: e.mode, uid: int(e.uid), gid: int(e.gid), size: e.size,
			mtime: time.Unix(e.mtime.Sec, e.mtime.Nsec), major: e.major, minor: e.minor, xattrs: map[string]string{}}
		for _, x := range e.xattrs {
			m.xattrs[x.name] = x.value
		}
		if m.data, err = rd.all(e); err != nil {
			return out, err
		}
		out = append(out, m)
	}
}

// all reads an entry's data, holes included.
func (r *reader) all(e *entry) (string, error) {
	extents := e.extents
	if !e.sparse {
		extents = []extent{{0, e.size}}
	}
	if e.size > 64<<20 {
		return "", fmt.Errorf("too large for a test: %w", errdefs.ErrInvalidArgument)
	}
	var b bytes.Buffer
	for _, x := range extents {
		b.Write(make([]byte, x.offset-int64(b.Len())))
		for left := x.length; left > 0; {
			piece, err := r.data(left)
			if err != nil {
				return "", unexpected(err)
			}
			left -= int64(len(piece))
			b.Write(piece)
		}
	}
	b.Write(make([]byte, e.size-int64(b.Len())))
	return b.String(), nil
}

func standard(r io.Reader) ([]member, error) {
	rd := tar.NewReader(r)
	var out []member
	for {
		h, err := rd.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if h.Size > 64<<20 {
			return out, errors.New("too large for a test")
		}
		m := member{typ: h.Typeflag, name: h.Name, link: h.Linkname, mode: h.Mode, uid: h.Uid, gid: h.Gid, size: h.Size,
			mtime: h.ModTime, major: h.Devmajor, minor: h.Devminor, xattrs: map[string]string{}}
		if m.typ == tar.TypeGNUSparse {
			m.typ = tar.TypeReg
		}
		if noData(m.typ) {
			m.size = 0
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
				m.xattrs[name] = v
			}
		}
		data, err := io.ReadAll(rd)
		if err != nil {
			return out, err
		}
		m.data = string(data)
		out = append(out, m)
	}
}

// compare: what the standard library accepts we read alike, but for limits.
func compare(t *testing.T, data []byte) {
	t.Helper()
	want, err := standard(bytes.NewReader(data))
	got, ourErr := ours(iotestSmall{bytes.NewReader(data)})
	if err != nil {
		return // stricter or laxer, as long as nothing breaks
	}
	if ourErr != nil {
		if len(data)%blockSize != 0 && strings.Contains(ourErr.Error(), "ends in the middle") {
			return // we want the padding of a special header, they do not
		}
		if errors.Is(ourErr, errPAX) && len(got) == len(want) {
			return // a header that no entry follows: they do not look at its values
		}
		for _, m := range want {
			if len(m.name) > maxName || len(m.link) > maxName || m.size > maxFileSize {
				return
			}
		}
		t.Fatalf("we fail: %v\nthe standard library reads %+v", ourErr, want)
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for i := range want {
		if !got[i].mtime.Equal(want[i].mtime) {
			t.Errorf("entry %d: mtime %v, want %v", i, got[i].mtime, want[i].mtime)
		}
		got[i].mtime = want[i].mtime
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("entry %d:\n%+v, want\n%+v", i, got[i], want[i])
		}
	}
}

// iotestSmall reads a few bytes at a time, so that headers span chunks. Being
// chunks itself, nothing fills them up again.
type iotestSmall struct{ r io.Reader }

func (s iotestSmall) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s iotestSmall) next() ([]byte, error) {
	b := make([]byte, 700)
	n, err := s.r.Read(b)
	return b[:n], err
}

func samples(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		long := strings.Repeat("long/", 30) + "name"
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755},
			{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o4755, Uid: 1000, Gid: 100, Size: 1234},
			{Typeflag: tar.TypeReg, Name: long, Size: 3},
			{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: "dir/file"},
			{Typeflag: tar.TypeLink, Name: "hard", Linkname: "dir/file"},
			{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeFifo, Name: "fifo"},
		} {
			h.Format, h.ModTime = format, time.Unix(1_600_000_000, 0)
			if format == tar.FormatPAX {
				h.PAXRecords = map[string]string{xattrPrefix + "user.a": "b\x00c"}
				h.ModTime = time.Unix(1_600_000_000, 123_456_789)
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(format, h.Name, err)
			}
			if _, err := w.Write(bytes.Repeat([]byte("d"), int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

// sparseSamples are what GNU tar makes of a file with holes.
func sparseSamples(t testing.TB) [][]byte {
	t.Helper()
	if _, err := exec.LookPath("tar"); err != nil {
		return nil
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 30 { // more pieces than one header holds
		if _, err := f.WriteAt([]byte("data"), int64(i)*64<<10); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"},
	} {
		b, err := exec.Command("tar", append(args, "-S", "-C", dir, "-c", "sparse")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func TestReaderAgreesWithStandardLibrary(t *testing.T) {
	for _, data := range append(samples(t), sparseSamples(t)...) {
		if _, err := standard(bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		compare(t, data)
	}
	files, err := filepath.Glob("/usr/local/go/src/archive/tar/testdata/*.tar")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(name), func(t *testing.T) { compare(t, data) })
	}
}

func FuzzReader(f *testing.F) {
	for _, data := range append(samples(f), sparseSamples(f)...) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { compare(t, data) })
}

func TestReaderRefuses(t *testing.T) {
	good := samples(t)[0]
	huge := append([]byte(nil), good[:512]...)
	huge[156] = typePAX
	copy(huge[124:136], "77777777777\x00")
	sum(huge)
	for name, data := range map[string][]byte{
		"truncated header":    good[:300],
		"truncated data":      good[:512*3-100],
		"checksum":            append([]byte("x"), good[1:]...),
		"zero then non-zero":  append(make([]byte, 512), good...),
		"special header size": huge,
	} {
		if _, err := ours(bytes.NewReader(data)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func sum(h []byte) {
	copy(h[148:156], "        ")
	n := 0
	for _, c := range h {
		n += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", n))
}
