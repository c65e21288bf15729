package crash

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bin holds the programs, built with failpoints.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		// They wait for disks, exits and deadlines more than for processors.
		flag.Set("test.parallel", "4")
	}
	os.Exit(func() int {
		if os.Geteuid() == 0 {
			dir, err := os.MkdirTemp("", "berth-crash-bin-")
			if err != nil {
				fmt.Fprintln(os.Stderr, "crash:", err)
				return 1
			}
			defer os.RemoveAll(dir)
			if err := prepare(dir); err != nil {
				fmt.Fprintln(os.Stderr, "crash:", err)
				return 1
			}
			defer registry.Close()
		}
		return m.Run()
	}())
}

func prepare(dir string) error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	run := func(name string, arg ...string) error {
		var out bytes.Buffer
		cmd := exec.Command(name, arg...)
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.Env = append(os.Environ(), "TAGS=failpoints")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out.Bytes())
		}
		return nil
	}
	if bin = os.Getenv("BERTH_CRASH_BIN"); bin == "" {
		bin = dir
		if err := run(filepath.Join(top, "scripts/build"), bin); err != nil {
			return err
		}
	}
	cache := filepath.Join(top, "bin", "test")
	if err := run(filepath.Join(top, "scripts/busybox"), cache); err != nil {
		return err
	}
	busybox, err := os.ReadFile(filepath.Join(cache, "busybox"))
	if err != nil {
		return err
	}
	return makeImages(dir, busybox)
}
