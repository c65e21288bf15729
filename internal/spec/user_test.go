package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/:/bin/false\nmany:x:50:51:m:/:/bin/sh\n"

const group = "root:x:0:\nwheel:x:10:root,many\nweb:x:33:\nadm:x:4:many\nmany:x:51:many\n"

func openTree(t *testing.T, files map[string]string) *Rootfs {
	t.Helper()
	r, err := OpenRootfsDir(tree(t, files))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestLookupUser(t *testing.T) {
	full := openTree(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	empty := openTree(t, map[string]string{"etc/": ""})
	for _, tc := range []struct {
		root     *Rootfs
		name     string
		uid, gid uint32
		fails    func(error) bool
	}{
		{full, "web", 33, 33, nil},
		{full, "33", 33, 33, nil},
		{full, "many", 50, 51, nil},
		{full, "77", 77, 0, nil},
		{full, "web:adm", 33, 4, nil},
		{full, "web:7", 33, 7, nil},
		{full, "9:adm", 9, 4, nil},
		{full, "9:8", 9, 8, nil},
		{empty, "9:8", 9, 8, nil},
		{empty, "9", 9, 0, nil},
		{empty, "web", 0, 0, anyError},
		{empty, "9:adm", 0, 0, anyError},
		{full, "nobody", 0, 0, errdefs.IsNotFound},
		{full, "web:nogroup", 0, 0, errdefs.IsNotFound},
		{full, "1:2:3", 0, 0, errdefs.IsInvalidArgument},
		{full, "-1", 0, 0, errdefs.IsOutOfRange},
		{full, "2147483648", 0, 0, errdefs.IsOutOfRange},
		{full, "1:99999999999999999999", 0, 0, errdefs.IsOutOfRange},
	} {
		u, err := LookupUser(tc.root, tc.name)
		if tc.fails != nil {
			if err == nil || !tc.fails(err) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || u.UID != tc.uid || u.GID != tc.gid || !slices.Equal(u.AdditionalGids, []uint32{tc.gid}) {
			t.Errorf("%s: %+v, %v, want %d:%d", tc.name, u, err, tc.uid, tc.gid)
		}
	}
}

// Numbers in an image's files must not become others, 0 among them, when they are cut.
func TestIDsOutOfRange(t *testing.T) {
	root := openTree(t, map[string]string{
		"etc/passwd": "wrap:x:4294967296:1::/:\nmax:x:99999999999999999999:1::/:\nneg:x:-2:-2::/:\ngroup:x:5:4294967296::/:\nfine:x:5:6::/:\n",
		"etc/group":  "wrap:x:4294967296:\nextra:x:4294967296:fine\n",
	})
	for _, name := range []string{"wrap", "max", "neg", "group", "fine:wrap", "5:wrap"} {
		if u, err := LookupUser(root, name); !errdefs.IsOutOfRange(err) {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
	}
	u, err := LookupUser(root, "fine")
	if err != nil {
		t.Fatal(err)
	}
	if err := AdditionalGroups(root, &u, "fine"); !errdefs.IsOutOfRange(err) {
		t.Errorf("additional groups: %+v, %v", u, err)
	}
}

func anyError(err error) bool { return err != nil }

func TestAdditionalGroups(t *testing.T) {
	full := openTree(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	for who, want := range map[string][]uint32{
		"root": {0, 10}, "many": {51, 10, 4}, "50": {51, 10, 4}, "web": {33}, "77": {0}, "nobody": {0},
	} {
		u, _ := LookupUser(full, who)
		if err := AdditionalGroups(full, &u, who); err != nil || !slices.Equal(u.AdditionalGids, want) {
			t.Errorf("%s: %v, %v, want %v", who, u.AdditionalGids, err, want)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	for _, tc := range []struct{ base, changes, want string }{
		{"A=1 B=2", "A=3 C=4", "A=3 B=2 C=4"},
		{"A=1 B=2", "A", "B=2"},
		{"A=1", "B", "A=1"},
		{"", "A=1 A=2", "A=1 A=2"},
		{"A=1", "A=", "A="},
	} {
		got := MergeEnv(strings.Fields(tc.base), strings.Fields(tc.changes))
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s with %s: %q, want %s", tc.base, tc.changes, got, tc.want)
		}
	}
}

// A user database comes with the image: whatever it holds, the lookup ends, and
// what it returns fits the runtime.
func FuzzLookupUser(f *testing.F) {
	f.Add(passwd, group, "web:adm")
	f.Add("a:x:-1:-1:::\n", "g:x:-5:a\n", "a")
	f.Add("::::::\n\x00", "a:b", ":")
	f.Add("u:x:4294967296:1:::\n", "", "u")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		root := openTree(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
		if u, err := LookupUser(root, name); err == nil {
			AdditionalGroups(root, &u, name)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	throttle := ThrottlePaths()
	for b.Loop() {
		if _, err := Build(Container{Namespace: "default", ID: "x", Throttle: throttle, Args: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
	}
}
