package task

import (
	"bytes"
	"log/slog"
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
