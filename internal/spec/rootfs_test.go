package spec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tree makes files: a path that ends in / is a directory, content "-> x" a link,
// "whiteout" a whiteout, "opaque" a directory that hides those below, "fifo" a FIFO.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		target, isLink := strings.CutPrefix(content, "-> ")
		switch {
		case isLink:
			err = os.Symlink(target, path)
		case content == "whiteout" || content == "opaque":
			if os.Geteuid() != 0 {
				t.Skip("needs root to make whiteouts")
			}
			if content == "whiteout" {
				err = unix.Mknod(path, unix.S_IFCHR, 0)
			} else if err = os.MkdirAll(path, 0o755); err == nil {
				err = unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
			}
		case content == "fifo":
			err = unix.Mkfifo(path, 0o644)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRootfsReadFile(t *testing.T) {
	outside := tree(t, map[string]string{"secret": "outside"})
	for name, tc := range map[string]struct {
		layers []map[string]string // uppermost first
		file   string
		want   string
		err    error // fs.ErrNotExist and the like; anything when errAny
	}{
		"plain":                    {[]map[string]string{{"etc/passwd": "a"}}, "etc/passwd", "a", nil},
		"upper wins":               {[]map[string]string{{"etc/passwd": "up"}, {"etc/passwd": "low"}}, "etc/passwd", "up", nil},
		"lower shows through":      {[]map[string]string{{"etc/": ""}, {"x": ""}, {"etc/passwd": "low"}}, "etc/passwd", "low", nil},
		"whiteout":                 {[]map[string]string{{"etc/passwd": "whiteout"}, {"etc/passwd": "low"}}, "etc/passwd", "", fs.ErrNotExist},
		"whiteout of a directory":  {[]map[string]string{{"etc": "whiteout"}, {"etc/passwd": "low"}}, "etc/passwd", "", fs.ErrNotExist},
		"opaque directory":         {[]map[string]string{{"etc": "opaque"}, {"etc/passwd": "low"}}, "etc/passwd", "", fs.ErrNotExist},
		"file over directory":      {[]map[string]string{{"etc": "file"}, {"etc/passwd": "low"}}, "etc/passwd", "", unix.ENOTDIR},
		"directory, file, dir":     {[]map[string]string{{"etc/": ""}, {"etc": "file"}, {"etc/passwd": "low"}}, "etc/passwd", "", fs.ErrNotExist},
		"relative link":            {[]map[string]string{{"etc/passwd": "-> ../usr/p", "usr/p": "p"}}, "etc/passwd", "p", nil},
		"absolute link":            {[]map[string]string{{"etc/passwd": "-> /nix/p"}, {"nix/p": "p"}}, "etc/passwd", "p", nil},
		"link of a directory":      {[]map[string]string{{"etc": "-> /usr/etc"}, {"usr/etc/passwd": "p"}}, "etc/passwd", "p", nil},
		"absolute link to outside": {[]map[string]string{{"etc/passwd": "-> " + outside + "/secret"}}, "etc/passwd", "", fs.ErrNotExist},
		"relative link to outside": {[]map[string]string{{"etc/passwd": "-> " + strings.Repeat("../", 40) + outside + "/secret"}}, "etc/passwd", "", fs.ErrNotExist},
		"loop":                     {[]map[string]string{{"etc/passwd": "-> passwd"}}, "etc/passwd", "", unix.ELOOP},
		"missing":                  {[]map[string]string{{"x": ""}}, "etc/passwd", "", fs.ErrNotExist},
		"directory":                {[]map[string]string{{"etc/passwd/": ""}}, "etc/passwd", "", unix.EISDIR},
		"fifo":                     {[]map[string]string{{"etc/passwd": "fifo"}}, "etc/passwd", "", unix.EINVAL},
		"too large":                {[]map[string]string{{"etc/passwd": strings.Repeat("x", 101)}}, "etc/passwd", "", errAny},
	} {
		t.Run(name, func(t *testing.T) {
			var dirs []string
			for _, l := range tc.layers {
				dirs = append(dirs, tree(t, l))
			}
			r, err := openLayers(dirs...)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := r.ReadFile(tc.file, 100)
			switch {
			case tc.err == nil && (err != nil || string(b) != tc.want):
				t.Errorf("got %q, %v, want %q", b, err, tc.want)
			case tc.err == errAny && err == nil, tc.err != nil && tc.err != errAny && !errors.Is(err, tc.err):
				t.Errorf("got %q, %v, want error %v", b, err, tc.err)
			}
		})
	}
}

var errAny = errors.New("any")

func TestOpenRootfs(t *testing.T) {
	low, up := tree(t, map[string]string{"f": "low", "g": "low"}), tree(t, map[string]string{"f": "up"})
	for name, mounts := range map[string][]object.Mount{
		"overlay":    {{Type: "overlay", Source: "overlay", Options: []string{"workdir=/w", "upperdir=" + up, "lowerdir=" + low, "index=off"}}},
		"lower only": {{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + up + ":" + low}}},
	} {
		r, err := OpenRootfs(mounts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f, _ := r.ReadFile("f", 10)
		g, _ := r.ReadFile("g", 10)
		if string(f) != "up" || string(g) != "low" {
			t.Errorf("%s: f %q, g %q", name, f, g)
		}
		r.Close()
	}
	for name, mounts := range map[string][]object.Mount{
		"none": nil, "block device": {{Type: "ext4", Source: "/dev/x"}}, "two": {{Type: "bind"}, {Type: "overlay"}},
		"elsewhere": {{Type: "overlay", Options: []string{"lowerdir=/a:/b", "metacopy=on"}}},
		"escaped":   {{Type: "overlay", Options: []string{`lowerdir=/a\:b:/c`}}},
	} {
		if _, err := OpenRootfs(mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v, want not implemented: it has to be mounted", name, err)
		}
	}
	if _, err := OpenRootfs([]object.Mount{{Type: "bind", Source: "/nonexistent"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing layer: %v", err)
	}
}

// No open descriptor is left behind, whatever happened on the way.
func TestRootfsClosesWhatItOpened(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	dir := tree(t, map[string]string{"a/b/c/f": "x", "a/l": "-> /a/b/../b/c/f", "loop": "-> a/../loop", "a/b/d": "-> /nowhere/x"})
	before := count()
	for range 20 {
		r, err := openLayers(dir, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a/b/c/f", "a/l", "loop", "a/b/d", "a/b/c/f/g", "a/b/../../a/b", "../../a/l"} {
			r.ReadFile(name, 10)
		}
		r.Close()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
