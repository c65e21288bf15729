package spec

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "100": 100, "10k": 10000, "1.5M": 1500000, "2Gi": 2 << 30, "1Ki": 1024, "0.5": 1, "1E": 1e18,
	} {
		if n, err := parseRate(text); err != nil || *n != want {
			t.Errorf("%s: %v, %v, want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"-1", "x", "1/3", "1e3", "1Mb", "10kk", "9Ei", "0x10", "1_000", "k", "123456789012345678901234567890"} {
		if n, err := parseRate(text); err == nil {
			t.Errorf("%s: %d, want an error", text, *n)
		}
	}
}

func TestBlockIOClasses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "classes.yaml")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{
		"Classes: [1]", "Klasses: {}", "Classes: {a: [{Weight: 5}]}", "Classes: {a: [{Weight: 1001}]}",
		"Classes: {a: [{ThrottleReadBps: 5M}]}", "Classes: {a: [{Devices: [/dev/x], ThrottleReadBps: lots}]}", "{", "",
	} {
		write(bad)
		if _, err := ReadBlockIO(file); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid argument", bad, err)
		}
	}
	if _, err := ReadBlockIO(filepath.Join(dir, "missing")); err == nil {
		t.Error("a file that is not there: no error")
	}
	write("Classes:\n  slow:\n    - Weight: 80\n    - Devices: [" + dir + "/nothing*, /dev/null]\n      ThrottleReadBps: 1M\n")
	classes, err := ReadBlockIO(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := classes.Class("fast"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown class: %v", err)
	}
	io, err := classes.Class("slow")
	if err != nil || io.Weight == nil || *io.Weight != 80 || io.ThrottleReadBpsDevice != nil {
		t.Errorf("slow: %+v, %v", io, err)
	}

	if err := unix.Mknod(dir+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 16))); err != nil {
		t.Skip("needs root to make a block device: ", err)
	}
	if err := os.Symlink("disk", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	write("Classes:\n  slow:\n    - Devices: [" + dir + "/d*, " + dir + "/link]\n      ThrottleReadBps: 1M\n      Weight: 50\n      ThrottleWriteIOPS: 1k\n" +
		"    - Devices: [" + dir + "/link]\n      ThrottleReadBps: 2M\n")
	if classes, err = ReadBlockIO(file); err != nil {
		t.Fatal(err)
	}
	if io, err = classes.Class("slow"); err != nil {
		t.Fatal(err)
	}
	if len(io.ThrottleReadBpsDevice) != 1 || io.ThrottleReadBpsDevice[0].Rate != 2e6 || io.ThrottleReadBpsDevice[0].Major != 8 || io.ThrottleReadBpsDevice[0].Minor != 16 {
		t.Errorf("read rates: %+v", io.ThrottleReadBpsDevice)
	}
	if len(io.WeightDevice) != 1 || *io.WeightDevice[0].Weight != 50 || len(io.ThrottleWriteIOPSDevice) != 1 || io.ThrottleWriteBpsDevice != nil {
		t.Errorf("%+v", io)
	}
}

func FuzzParseBlockIO(f *testing.F) {
	f.Add([]byte("Classes:\n  slow:\n    - Weight: 80\n    - Devices: [/dev/null]\n      ThrottleReadBps: 1M\n"))
	f.Add([]byte("Classes: {a: [{ThrottleReadIOPS: 1e3}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		classes, err := parseBlockIO(b)
		for name := range classes {
			if err != nil {
				t.Fatal("classes with an error")
			}
			for i := range classes[name] {
				classes[name][i].Devices = nil // what is on the host is not under test
			}
			if _, err := classes.Class(name); err != nil {
				t.Fatal(err)
			}
		}
	})
}
