package shimproc

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// Edition is one build of a shim: its path and what tells that the file there
// was replaced.
type Edition struct {
	Path   string
	dev    uint64
	ino    uint64
	mtime  time.Time
	length int64
}

// EditionOf finds out about the executable at path.
func EditionOf(path string) (Edition, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Edition{}, fmt.Errorf("shim %s: %w", path, err)
	}
	e := Edition{Path: path, mtime: info.ModTime(), length: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.dev, e.ino = st.Dev, st.Ino
	}
	return e, nil
}
