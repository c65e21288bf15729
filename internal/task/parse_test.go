package task

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.sandbox-id":"p"},"linux":{"gidMappings":[{"containerID":0,"hostID":7}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		facts, err := parseSpec(b)
		if err == nil {
			facts.rootGID()
			facts.group("id")
		}
	})
}

func TestIdentifier(t *testing.T) {
	for _, ok := range []string{"a", "a-b_c.d", "0", strings.Repeat("x", 76)} {
		if err := identifier("ID", ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "-a", "a-", "a..b", "a\x00b", "ä", strings.Repeat("x", 77)} {
		if err := identifier("ID", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestBundleModes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: chown")
	}
	m, _ := newManager(t)
	plain, mapped := m.bundleOf(key{"ns", "plain"}, false), m.bundleOf(key{"ns", "mapped"}, false)
	if err := plain.create([]byte("{}"), 0); err != nil {
		t.Fatal(err)
	}
	facts, err := parseSpec([]byte(`{"linux":{"gidMappings":[{"containerID":1,"hostID":5},{"containerID":0,"hostID":4200,"size":10}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := mapped.create([]byte("{}"), facts.rootGID()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		plain.path: 0o700, mapped.path: 0o710,
		plain.file(rootfsName): 0o711, plain.work: 0o711,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if link, err := os.Readlink(plain.file(workLink)); err != nil || link != plain.work {
		t.Errorf("work link %q, %v", link, err)
	}
	for _, b := range []bundle{plain, mapped, plain} {
		if err := b.remove(nil); err != nil {
			t.Error(err)
		}
	}
	m.wantEmpty(t)
}

// What somebody stored in an unmounted rootfs is not deleted.
func TestRemoveKeepsRootfsContents(t *testing.T) {
	m, _ := newManager(t)
	b := m.bundleOf(key{"ns", "c"}, false)
	if err := b.create([]byte("{}"), 0); err != nil {
		t.Fatal(err)
	}
	kept := b.file(rootfsName) + "/kept"
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.remove(nil); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func TestLevelOf(t *testing.T) {
	for line, want := range map[string]string{
		`time="x" level=warning msg="y"`: "WARN", `{"level":"error","msg":"y"}`: "ERROR",
		`level=debug msg=y`: "DEBUG", `runc: something`: "INFO",
	} {
		if got := levelOf([]byte(line)).String(); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}
