package mount

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"berth/internal/object/live"

	"golang.org/x/sys/unix"
)

// fuseHelper splits a type such as fuse3.fuse-overlayfs.
func fuseHelper(fstype string) (helper, rest string, ok bool) {
	for _, prefix := range []string{"fuse3", "fuse"} {
		if rest, ok := strings.CutPrefix(fstype, prefix+"."); ok {
			return "mount." + prefix, rest, true
		}
	}
	return "", "", false
}

func runHelper(helper, fstype string, m live.Mount, path string) error {
	args := []string{m.Source, path}
	for _, o := range m.Options {
		args = append(args, "-o", o)
	}
	before, err := mountID(path)
	if err != nil {
		return err
	}
	out, err := exec.Command(helper, append(args, "-t", fstype)...).CombinedOutput()
	if errors.Is(err, unix.ECHILD) {
		// A reaper of orphans in this process took the exit status. Only the
		// mount can tell.
		if after, err := mountID(path); err == nil && after != before {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", helper, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Mnt_id, nil
}
