package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/internal/failpoint"
	"berth/internal/fsx"

	"golang.org/x/sys/unix"
)

// markFile in root tells how the last daemon ended: written at the start with
// clean false, and again at the end of an orderly stop.
const markFile = "berth.run"

// mark is the content of the mark file, in JSON.
type mark struct {
	// Boot identifies the boot of the host (/proc/sys/kernel/random/boot_id).
	Boot    string    `json:"boot"`
	Started time.Time `json:"started"`
	Clean   bool      `json:"clean"`
	// Doubt is since when what was written is to be verified, because the host
	// went down under a daemon; nil when there is nothing to verify.
	Doubt *time.Time `json:"doubt,omitempty"`
}

// powerLost tells whether what the last daemon wrote may not all have reached
// the disk: it was not stopped, and the host has been booted since. A daemon
// that was killed leaves its writes in the page cache.
func (m mark) powerLost(boot string) bool { return !m.Clean && m.Boot != boot }

// readMark returns the mark of the last daemon; ok is false when there was
// none, or none that can be read.
func readMark(root string) (m mark, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(root, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, false, nil
	}
	if err != nil {
		return mark{}, false, fmt.Errorf("mark of the last run: %w", err)
	}
	if json.Unmarshal(data, &m) != nil {
		// A mark that a crash has torn is that of an unclean stop.
		return mark{}, true, nil
	}
	return m, true, nil
}

// write replaces the mark durably.
func (m mark) write(root string) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	failpoint.Hit("daemon.mark.before-write")
	var disk *fsx.OS
	path, data := filepath.Join(root, markFile), append(data, '\n')
	err = disk.WriteAtomic("mark", path, data, 0o600)
	if isFull(err) {
		err = overwrite(path, data)
	}
	if err != nil {
		return fmt.Errorf("mark of this run: %w", err)
	}
	return nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// overwrite writes a mark into the blocks that it has, for a full disk has no
// others. Torn by a crash it is that of an unclean stop. unix.ENOSPC when there
// is no mark yet.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return unix.ENOSPC
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if more := int(info.Size()) - len(data); more > 0 && more < 4096 {
		data = append(data, bytes.Repeat([]byte(" "), more)...)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Sync()
}

// writeIf puts back the mark that was there before a start that failed.
func (m mark) writeIf(was bool, root string) error {
	if !was {
		return os.Remove(filepath.Join(root, markFile))
	}
	return m.write(root)
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
