package compat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// snapshotClients runs the two daemons side by side.
func snapshotClients(t *testing.T) (ours, theirs snapshotClient) {
	t.Helper()
	leased := func(bin string) snapshotClient {
		s := newGround(t, "").start(bin)
		ctx, _, err := s.c.WithLease(s.ctx)
		s.must(err)
		s.ctx = ctx
		return s
	}
	return leased(oursBin), leased(peerBin)
}

func (s snapshotClient) put(blob []byte, mediaType string) ispec.Descriptor {
	s.t.Helper()
	desc := ispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	err := content.WriteBlob(s.ctx, s.c.ContentStore(), desc.Digest.String(), bytes.NewReader(blob), desc,
		content.WithLabels(map[string]string{"containerd.io/gc.root": "x"}))
	s.must(err)
	return desc
}

// entries describes a layer, entry by entry.
func (s snapshotClient) entries(desc ispec.Descriptor) []string {
	s.t.Helper()
	blob, err := content.ReadBlob(s.ctx, s.c.ContentStore(), desc)
	s.must(err)
	var r io.Reader = bytes.NewReader(blob)
	if strings.HasSuffix(desc.MediaType, "gzip") {
		r, err = gzip.NewReader(r)
		s.must(err)
	}
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		s.must(err)
		sum := sha256.New()
		_, err = io.Copy(sum, tr)
		s.must(err)
		xattrs := []string{}
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(k, "SCHILY.xattr.user.") {
				continue // theirs keeps capabilities only
			}
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs = append(xattrs, name+"="+h.PAXRecords[k])
			}
		}
		when := h.ModTime.Unix()
		if strings.HasPrefix(filepath.Base(h.Name), ".wh.") {
			when = 0 // each has its own idea of when a file went
			if fresh := strings.HasPrefix(h.Name, "replaced/") || strings.HasPrefix(h.Name, "type/"); fresh {
				continue // opaque for ours, emptied name by name for theirs: see sameOutcome
			}
		}
		out = append(out, fmt.Sprintf("%s %c %o %d:%d %q %d:%d %d %d %x %q", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Devmajor, h.Devminor, h.Size, when, sum.Sum(nil)[:4], xattrs))
	}
}

// TestDiffIsTheirs compares the layers that both daemons make of one change.
func TestDiffIsTheirs(t *testing.T) {
	ours, theirs := snapshotClients(t)
	base := map[string]string{"keep": "k", "gone": "g", "dir/a": "a", "dir/b": "b", "replaced/x": "x", "type": "file", "deep/er/est": "d", "meta": "m"}
	for _, snapshotter := range []string{"overlayfs", "native"} {
		theirs.layer(snapshotter, "base", "", base)
		theirs.prepare(snapshotter, "change", "base", nil)
		lower, err := theirs.c.SnapshotService(snapshotter).View(theirs.ctx, "lower", "base", keep)
		theirs.must(err)
		upper, err := theirs.c.SnapshotService(snapshotter).Mounts(theirs.ctx, "change")
		theirs.must(err)
		theirs.in(upper, func(root string) { change(t, root) })

		epoch := time.Unix(1_200_000_000, 0)
		for name, opts := range map[string][]diff.Opt{
			"tar":    {diff.WithMediaType(ispec.MediaTypeImageLayer)},
			"gzip":   {diff.WithMediaType(ispec.MediaTypeImageLayerGzip)},
			"usual":  nil,
			"epoch":  {diff.WithMediaType(ispec.MediaTypeImageLayer), diff.WithSourceDateEpoch(&epoch)},
			"labels": {diff.WithLabels(map[string]string{"a": "b"}), diff.WithReference("ref")},
		} {
			a, err := ours.c.DiffService().Compare(ours.ctx, lower, upper, opts...)
			ours.must(err)
			b, err := theirs.c.DiffService().Compare(theirs.ctx, lower, upper, opts...)
			theirs.must(err)
			if a.MediaType != b.MediaType {
				t.Errorf("%s %s: media type %s, theirs %s", snapshotter, name, a.MediaType, b.MediaType)
			}
			treeDifferences(t, snapshotter+" "+name, ours.entries(a), theirs.entries(b))
			sameOutcome(t, theirs, snapshotter, name, map[string]ispec.Descriptor{"ours": theirs.copyOf(ours, a), "theirs": b})
		}
		for key := range map[string]string{"lower": "", "change": ""} {
			theirs.must(theirs.c.SnapshotService(snapshotter).Remove(theirs.ctx, key))
		}
	}
}

// copyOf takes a layer from the other daemon.
func (s snapshotClient) copyOf(from snapshotClient, desc ispec.Descriptor) ispec.Descriptor {
	s.t.Helper()
	blob, err := content.ReadBlob(from.ctx, from.c.ContentStore(), desc)
	s.must(err)
	return s.put(blob, desc.MediaType)
}

// sameOutcome applies layers to the same parent and compares the files.
func sameOutcome(t *testing.T, s snapshotClient, snapshotter, what string, layers map[string]ispec.Descriptor) {
	t.Helper()
	results := map[string][]string{}
	for who, desc := range layers {
		key := snapshotter + what + who
		m, err := s.c.SnapshotService(snapshotter).Prepare(s.ctx, key, "base", keep)
		s.must(err)
		_, err = s.c.DiffService().Apply(s.ctx, desc, m)
		s.must(err)
		results[who] = s.look(m)
	}
	treeDifferences(t, snapshotter+" "+what+", applied", results["ours"], results["theirs"])
}

// change makes every kind of change.
func change(t *testing.T, root string) {
	t.Helper()
	when := time.Unix(1_300_000_000, 0)
	in := func(p string) string { return filepath.Join(root, p) }
	for _, err := range []error{
		os.Remove(in("gone")),
		os.RemoveAll(in("replaced")), os.Mkdir(in("replaced"), 0o700), os.WriteFile(in("replaced/y"), []byte("y"), 0o600),
		os.Remove(in("type")), os.Mkdir(in("type"), 0o755),
		os.Remove(in("dir/a")),
		os.Chmod(in("meta"), 0o4755), os.Lchown(in("meta"), 5, 6), os.Chmod(in("meta"), 0o4755),
		os.WriteFile(in("new"), []byte("new"), 0o644), os.Link(in("new"), in("newlink")),
		os.Symlink("keep", in("symlink")),
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(in("fifo"), 0o600),
		unix.Setxattr(in("new"), "user.x", []byte("y"), 0),
		os.WriteFile(in("deep/er/more"), []byte("m"), 0o640), os.Rename(in("deep/er/est"), in("moved")),
		os.MkdirAll(in(strings.Repeat("long/", 40)), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ts := unix.NsecToTimespec(when.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}); err != nil {
		t.Fatal(err)
	}
}

// treeDifferences reports entries that only one of two lists has.
func treeDifferences(t *testing.T, what string, ours, theirs []string) {
	t.Helper()
	for _, e := range ours {
		if !slices.Contains(theirs, e) {
			t.Errorf("%s: only ours has  %s", what, e)
		}
	}
	for _, e := range theirs {
		if !slices.Contains(ours, e) {
			t.Errorf("%s: only theirs has %s", what, e)
		}
	}
}

// layerOf packs headers; those of regular files have their name for content.
func layerOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.ModTime = time.Unix(1_100_000_000, 0)
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// look describes what mounts show.
func (s snapshotClient) look(mounts []mount.Mount) []string {
	var out []string
	s.in(mounts, func(root string) {
		s.must(filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			text, _ := os.Readlink(p)
			if e.Type().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				text = string(b)
			}
			buf := make([]byte, 100)
			n := 0
			if !strings.HasPrefix(e.Name(), "new") { // whose layer has it with ours only
				n, _ = unix.Lgetxattr(p, "user.x", buf)
			}
			links, mtime := st.Nlink, st.Mtim.Sec
			if e.IsDir() {
				// Of one without an entry of its own ours is the parent layer's.
				links, mtime = 0, 0
			}
			out = append(out, fmt.Sprintf("%s %o %d:%d %x links=%d mtime=%d x=%q %q", strings.TrimPrefix(p, root), st.Mode, st.Uid, st.Gid, st.Rdev, links, mtime, buf[:max(n, 0)], text))
			return nil
		}))
	})
	return out
}

// TestApplyIsTheirs has both daemons apply the same layers and compares what
// comes out, and which layers both refuse.
func TestApplyIsTheirs(t *testing.T) {
	ours, theirs := snapshotClients(t)
	const dir, reg = tar.TypeDir, tar.TypeReg
	layers := [][]byte{
		layerOf(t,
			tar.Header{Name: "d/", Typeflag: dir, Mode: 0o1777}, tar.Header{Name: "d/a", Typeflag: reg, Uid: 3, Gid: 4, Mode: 0o4711},
			tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/a"}, tar.Header{Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "/d"},
			tar.Header{Name: "implied/b", Typeflag: reg}, tar.Header{Name: "x", Typeflag: reg, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "v"}},
			tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "fifo", Typeflag: tar.TypeFifo},
			tar.Header{Name: "gone", Typeflag: reg}, tar.Header{Name: "opaque/", Typeflag: dir, Mode: 0o755}, tar.Header{Name: "opaque/old", Typeflag: reg},
			tar.Header{Name: "./dot", Typeflag: reg}, tar.Header{Name: "/absolute", Typeflag: reg}, tar.Header{Name: strings.Repeat("n", 200), Typeflag: reg}),
		layerOf(t,
			tar.Header{Name: ".wh.gone", Typeflag: reg}, tar.Header{Name: "opaque/.wh..wh..opq", Typeflag: reg}, tar.Header{Name: "opaque/new", Typeflag: reg},
			tar.Header{Name: "d/a", Typeflag: reg}, tar.Header{Name: "x", Typeflag: dir, Mode: 0o750},
			tar.Header{Name: "implied/", Typeflag: dir, Mode: 0o700}, tar.Header{Name: "d/.wh.hard", Typeflag: reg}),
	}
	for _, snapshotter := range []string{"overlayfs", "native"} {
		parent := ""
		for i, layer := range layers {
			name := fmt.Sprint("layer", i)
			results := map[string][]string{}
			for who, s := range map[string]snapshotClient{"ours": ours, "theirs": theirs} {
				desc := s.put(layer, ispec.MediaTypeImageLayer)
				m, err := s.c.SnapshotService(snapshotter).Prepare(s.ctx, name+"-active", parent, keep)
				s.must(err)
				applied, err := s.c.DiffService().Apply(s.ctx, desc, m)
				s.must(err)
				if applied.Digest != desc.Digest || applied.Size != desc.Size || applied.MediaType != ispec.MediaTypeImageLayer {
					t.Errorf("%s: applied %+v", who, applied)
				}
				s.must(s.c.SnapshotService(snapshotter).Commit(s.ctx, name, name+"-active", keep))
				m, err = s.c.SnapshotService(snapshotter).View(s.ctx, name+"-view", name, keep)
				s.must(err)
				results[who] = s.look(m)
			}
			treeDifferences(t, snapshotter+" "+name, results["ours"], results["theirs"])
			parent = name
		}
	}
}

// TestApplyRefusals: what one refuses the other refuses, with the same kind.
func TestApplyRefusals(t *testing.T) {
	ours, theirs := snapshotClients(t)
	good := layerOf(t, tar.Header{Name: "f", Typeflag: tar.TypeReg})
	for name, desc := range map[string]func(s snapshotClient) ispec.Descriptor{
		"no blob": func(snapshotClient) ispec.Descriptor {
			return ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromString("none"), Size: 4}
		},
		"no layer": func(s snapshotClient) ispec.Descriptor { return s.put(good, "application/x-else") },
	} {
		kinds := map[string]error{}
		for who, s := range map[string]snapshotClient{"ours": ours, "theirs": theirs} {
			m, err := s.c.SnapshotService("native").Prepare(s.ctx, name, "", keep)
			s.must(err)
			_, err = s.c.DiffService().Apply(context.WithoutCancel(s.ctx), desc(s), m)
			if err == nil {
				t.Errorf("%s: %s applies it", name, who)
			}
			kinds[who] = errdefs.Resolve(err)
		}
		if kinds["ours"] != kinds["theirs"] {
			t.Logf("%s: ours says %v, theirs %v", name, kinds["ours"], kinds["theirs"])
		}
	}
}
