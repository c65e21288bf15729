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
	const layers = 40
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
