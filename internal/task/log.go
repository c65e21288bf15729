package task

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
)

// levelOf guesses the level of a line that a foreign shim logged, in the text
// and JSON forms of logrus.
func levelOf(line []byte) slog.Level {
	for _, l := range []struct {
		name  string
		level slog.Level
	}{
		{"error", slog.LevelError}, {"fatal", slog.LevelError}, {"panic", slog.LevelError},
		{"warn", slog.LevelWarn},
		{"debug", slog.LevelDebug}, {"trace", slog.LevelDebug},
	} {
		if bytes.Contains(line, []byte("level="+l.name)) || bytes.Contains(line, []byte(`"level":"`+l.name)) {
			return l.level
		}
	}
	return slog.LevelInfo
}

// openLog makes the FIFO into which foreign shims log, and copies it to the
// daemon's log. It is opened for writing as well, so that neither side waits for
// the other and a shim that opens it anew finds a reader.
func (m *Manager) openLog(t *task) (*os.File, error) {
	path := t.bundle.file(logFIFO)
	if err := syscall.Mkfifo(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make shim's log FIFO: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open shim's log FIFO: %w", err)
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		f.Close()
		return nil, fmt.Errorf("%s is not a FIFO: %w", path, errdefs.ErrInvalidArgument)
	}
	m.background.Go(func() { m.copyLog(t, f) })
	return f, nil
}

// copyLog ends when the FIFO is closed.
func (m *Manager) copyLog(t *task, f *os.File) {
	log := m.log.With("namespace", t.namespace, "id", t.id)
	buf := make([]byte, 4096)
	held := 0
	for {
		n, err := f.Read(buf[held:])
		held += n
		for {
			end := bytes.IndexByte(buf[:held], '\n')
			if end < 0 {
				break
			}
			log.Log(m.life, levelOf(buf[:end]), "shim: "+string(buf[:end]))
			held = copy(buf, buf[end+1:held])
		}
		if held == len(buf) { // a line longer than the buffer goes in pieces
			log.Log(m.life, levelOf(buf), "shim: "+string(buf))
			held = 0
		}
		if err != nil && err != io.EOF {
			return
		}
	}
}
