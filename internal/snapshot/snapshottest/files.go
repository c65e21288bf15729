package snapshottest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tree checks that these are the paths below root, and no others.
func (f *fixture) tree(root string, want ...string) {
	f.Helper()
	var got []string
	f.must(filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != root {
			got = append(got, p[len(root)+1:])
		}
		return err
	}))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		f.Errorf("files %q, want %q", got, want)
	}
}

func (f *fixture) file(root, path, content string) {
	f.Helper()
	f.must(os.WriteFile(filepath.Join(root, path), []byte(content), 0o644))
}

func (f *fixture) content(root, path, want string) {
	f.Helper()
	got, err := os.ReadFile(filepath.Join(root, path))
	f.must(err)
	if string(got) != want {
		f.Errorf("%s holds %q, want %q", path, got, want)
	}
}

func testLayers(f *fixture) {
	f.needMounts()
	f.layer("one", "", func(root string) {
		f.must(os.MkdirAll(filepath.Join(root, "dir/sub"), 0o755))
		f.must(os.MkdirAll(filepath.Join(root, "gone"), 0o755))
		f.file(root, "dir/a", "one")
		f.file(root, "dir/b", "one")
		f.file(root, "dir/sub/c", "one")
		f.file(root, "gone/x", "one")
		f.file(root, "was-file", "one")
	})
	f.layer("two", "one", func(root string) {
		f.file(root, "dir/a", "two")
		f.must(os.Remove(filepath.Join(root, "dir/b")))
		// A directory replaced by one of the same name shows nothing of the old.
		f.must(os.RemoveAll(filepath.Join(root, "dir/sub")))
		f.must(os.Mkdir(filepath.Join(root, "dir/sub"), 0o755))
		f.file(root, "dir/sub/d", "two")
		f.must(os.RemoveAll(filepath.Join(root, "gone")))
		f.must(os.Remove(filepath.Join(root, "was-file")))
		f.must(os.Mkdir(filepath.Join(root, "was-file"), 0o755))
	})
	m, err := f.View(f.ctx, "v2", "two", nil)
	f.must(err)
	f.in(m, func(root string) {
		f.tree(root, "dir", "dir/a", "dir/sub", "dir/sub/d", "was-file")
		f.content(root, "dir/a", "two")
	})
	m, err = f.View(f.ctx, "v1", "one", nil)
	f.must(err)
	f.in(m, func(root string) {
		f.tree(root, "dir", "dir/a", "dir/b", "dir/sub", "dir/sub/c", "gone", "gone/x", "was-file")
		f.content(root, "dir/a", "one")
	})
	// Two snapshots of one parent do not see each other.
	first, other := f.prepare("p", "two"), f.prepare("q", "two")
	f.in(first, func(root string) { f.file(root, "mine", "p") })
	f.in(other, func(root string) {
		f.tree(root, "dir", "dir/a", "dir/sub", "dir/sub/d", "was-file")
	})
	f.in(first, func(root string) { f.content(root, "mine", "p") })
}

// testRenames moves what a lower layer has, and puts things of another kind in
// its place.
func testRenames(f *fixture) {
	f.needMounts()
	f.layer("one", "", func(root string) {
		for _, dir := range []string{"dir", "to-file", "emptied"} {
			f.must(os.Mkdir(filepath.Join(root, dir), 0o755))
			f.file(root, dir+"/x", "one")
		}
		f.file(root, "file", "one")
		f.file(root, "to-dir", "one")
	})
	f.layer("two", "one", func(root string) {
		in := func(p string) string { return filepath.Join(root, p) }
		f.must(os.Rename(in("file"), in("dir/moved")))
		f.must(os.Rename(in("dir/x"), in("to-dir"))) // over another
		f.must(os.RemoveAll(in("to-file")))
		f.file(root, "to-file", "two")
		f.must(os.Remove(in("emptied/x")))
	})
	f.layer("three", "two", func(root string) {
		in := func(p string) string { return filepath.Join(root, p) }
		f.must(os.Remove(in("to-file")))
		f.must(os.Mkdir(in("to-file"), 0o755)) // again: nothing of the first may show
		f.must(os.Remove(in("to-dir")))
		f.must(os.MkdirAll(in("to-dir/deep"), 0o755))
		f.must(os.Rename(in("dir/moved"), in("file")))
	})
	for layer, want := range map[string][]string{
		"one":   {"dir", "dir/x", "to-file", "to-file/x", "emptied", "emptied/x", "file", "to-dir"},
		"two":   {"dir", "dir/moved", "to-file", "emptied", "to-dir"},
		"three": {"dir", "to-file", "emptied", "to-dir", "to-dir/deep", "file"},
	} {
		m, err := f.View(f.ctx, "view-"+layer, layer, nil)
		f.must(err)
		f.in(m, func(root string) { f.tree(root, want...) })
	}
	f.in(f.prepare("a", "three"), func(root string) { f.content(root, "file", "one") })
}

// testViewsOfChain: what is done above a snapshot does not show in its views.
func testViewsOfChain(f *fixture) {
	f.needMounts()
	parent := ""
	views := map[string][]object.Mount{}
	for _, name := range []string{"a", "b", "c"} {
		f.layer(name, parent, func(root string) { f.file(root, "f", name); f.file(root, name, name) })
		m, err := f.View(f.ctx, "view-"+name, name, nil)
		f.must(err)
		views[name] = m
		parent = name
	}
	f.in(f.prepare("active", "c"), func(root string) { f.must(os.RemoveAll(filepath.Join(root, "a"))); f.file(root, "f", "active") })
	for name, want := range map[string][]string{"a": {"f", "a"}, "b": {"f", "a", "b"}, "c": {"f", "a", "b", "c"}} {
		f.in(views[name], func(root string) {
			f.tree(root, want...)
			f.content(root, "f", name)
		})
	}
}

// testRemap: a snapshotter with the capability shows the files of a container
// with a user namespace as its own.
func testRemap(f *fixture) {
	f.needMounts()
	b, ok := f.Snapshotter.(snapshot.Backend)
	if !ok || !slices.Contains(b.Capabilities(), "remap-ids") {
		f.Skip("not for this snapshotter, or not on this host")
	}
	f.layer("one", "", func(root string) { f.file(root, "one", "x") })
	f.layer("two", "one", func(root string) {
		f.file(root, "two", "x")
		f.must(os.Chown(filepath.Join(root, "two"), 7, 8))
	})
	labels := map[string]string{snapshot.LabelUIDMapping: "0:100000:65536", snapshot.LabelGIDMapping: "0:200000:65536"}
	for _, parent := range []string{"one", "two"} {
		m, err := f.Prepare(f.ctx, "on-"+parent, parent, labels)
		f.must(err)
		f.in(m, func(root string) {
			for name, id := range map[string]uint32{"": 0, "one": 0, "two": 7} {
				if name == "two" && parent == "one" {
					continue
				}
				var st unix.Stat_t
				f.must(unix.Stat(filepath.Join(root, name), &st))
				gid := id
				if id == 7 {
					gid = 8
				}
				if st.Uid != 100000+id || st.Gid != 200000+gid {
					f.Errorf("on %s: owner of %q is %d:%d", parent, name, st.Uid, st.Gid)
				}
			}
		})
	}
	// Without parents the directory itself has the owner.
	_, err := f.Prepare(f.ctx, "bad", "", map[string]string{snapshot.LabelUIDMapping: "5:100000:1", snapshot.LabelGIDMapping: "0:1:1"})
	f.is(err, errdefs.ErrInvalidArgument)
}

func testFilesSurvive(f *fixture) {
	f.needMounts()
	long := strings.Repeat("n", cmp.Or(f.config.MaxName, 255))
	when := time.Unix(1_234_567_890, 0)
	f.layer("base", "", func(root string) {
		in := func(p string) string { return filepath.Join(root, p) }
		f.file(root, "setuid", "x")
		f.must(os.Chown(in("setuid"), 12, 34))
		f.must(os.Chmod(in("setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
		f.file(root, "hard1", "x")
		f.must(os.Link(in("hard1"), in("hard2")))
		f.must(os.Symlink("nowhere/at/all", in("symlink")))
		f.must(os.Lchown(in("symlink"), 1000, 1001))
		f.must(unix.Mknod(in("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		f.must(unix.Mkfifo(in("fifo"), 0o600))
		f.must(os.Mkdir(in("sticky"), 0o777))
		f.must(os.Chmod(in("sticky"), 0o777|os.ModeSticky))
		f.file(root, long, "long")
		f.file(root, "xattr", "x")
		if err := unix.Setxattr(in("xattr"), "user.berth", []byte("value"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			f.Fatal(err)
		}
		f.file(root, "sparse", "head")
		f.must(os.Truncate(in("sparse"), 8<<20))
		f.must(os.Chtimes(in("xattr"), when, when))
	})
	check := func(root string) {
		in := func(p string) string { return filepath.Join(root, p) }
		stat := func(p string) (st unix.Stat_t) { f.must(unix.Lstat(in(p), &st)); return st }
		for p, want := range map[string]struct{ mode, uid, gid uint32 }{
			"setuid":  {unix.S_IFREG | 0o6755, 12, 34},
			"symlink": {unix.S_IFLNK | 0o777, 1000, 1001},
			"null":    {unix.S_IFCHR | 0o600, 0, 0},
			"fifo":    {unix.S_IFIFO | 0o600, 0, 0},
			"sticky":  {unix.S_IFDIR | 0o1777, 0, 0},
		} {
			st := stat(p)
			if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid {
				f.Errorf("%s: mode %o owner %d:%d, want %o %d:%d", p, st.Mode, st.Uid, st.Gid, want.mode, want.uid, want.gid)
			}
		}
		if a, b := stat("hard1"), stat("hard2"); a.Ino != b.Ino || a.Nlink != 2 {
			f.Errorf("hard links: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
		}
		if st := stat("null"); uint64(st.Rdev) != unix.Mkdev(1, 3) {
			f.Errorf("device %#x", st.Rdev)
		}
		if st := stat("sparse"); st.Size != 8<<20 || st.Blocks*512 > 1<<20 && !f.config.NoHoles {
			f.Errorf("sparse file: %d bytes in %d blocks", st.Size, st.Blocks)
		}
		if st := stat("xattr"); st.Mtim.Sec != when.Unix() {
			f.Errorf("mtime %d", st.Mtim.Sec)
		}
		buf := make([]byte, 64)
		n, err := unix.Getxattr(in("xattr"), "user.berth", buf)
		if !errors.Is(err, unix.ENOTSUP) && (err != nil || !bytes.Equal(buf[:n], []byte("value"))) {
			f.Errorf("extended attribute %q, %v", buf[:max(n, 0)], err)
		}
		f.content(root, long, "long")
	}
	m, err := f.View(f.ctx, "v", "base", nil)
	f.must(err)
	f.in(m, check)
	f.in(f.prepare("a", "base"), check)
	f.layer("top", "base", func(root string) { f.file(root, "more", "x") })
	m, err = f.View(f.ctx, "v2", "top", nil)
	f.must(err)
	f.in(m, check)
}

func testViewReadOnly(f *fixture) {
	f.needMounts()
	f.layer("base", "", func(root string) { f.file(root, "f", "x") })
	f.layer("top", "base", func(root string) { f.file(root, "g", "x") })
	for _, parent := range []string{"", "base", "top"} {
		m, err := f.View(f.ctx, "v"+parent, parent, nil)
		f.must(err)
		f.in(m, func(root string) {
			if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				f.Errorf("write to a view of %q: %v", parent, err)
			}
		})
	}
}

func testDeepChain(f *fixture) {
	f.needMounts()
	layers := cmp.Or(f.config.Depth, 40)
	parent := ""
	var want []string
	for i := range layers {
		name := fmt.Sprint("layer", i)
		f.layer(name, parent, func(root string) { f.file(root, fmt.Sprint("f", i), name) })
		parent = name
		want = append(want, fmt.Sprint("f", i))
	}
	f.in(f.prepare("a", parent), func(root string) { f.tree(root, want...) })
}

func testUsage(f *fixture) {
	f.needMounts()
	const size = 1 << 20
	data := bytes.Repeat([]byte("x"), size)
	m := f.prepare("a", "")
	empty, err := f.Usage(f.ctx, "a")
	f.must(err)
	f.in(m, func(root string) {
		f.must(os.WriteFile(filepath.Join(root, "f"), data, 0o600))
		f.must(os.Link(filepath.Join(root, "f"), filepath.Join(root, "again")))
	})
	near := func(what string, got object.SnapshotUsage) {
		f.Helper()
		if more := got.Size - empty.Size; more < size || more > size+64<<10+f.config.Slack || !f.config.Images && got.Inodes != empty.Inodes+1 {
			f.Errorf("usage of %s: %+v, empty %+v: want 1 MiB and one inode more, the hard link counted once", what, got, empty)
		}
	}
	active, err := f.Usage(f.ctx, "a")
	f.must(err)
	near("an active snapshot", active)
	f.commit("base", "a")
	committed, err := f.Usage(f.ctx, "base")
	f.must(err)
	near("a committed snapshot", committed)
	_, err = f.View(f.ctx, "v", "base", nil)
	f.must(err)
	view, err := f.Usage(f.ctx, "v")
	f.must(err)
	if view != (object.SnapshotUsage{}) {
		f.Errorf("usage of a view: %+v", view)
	}
}
