// Package logrelay passes on what linked packages (ttrpc, libcontainer) write by
// logrus, in the form and to the place of all else that a program logs.
package logrelay

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/sirupsen/logrus"
)

type relay struct{ log *slog.Logger }

// Install is called once in the life of a process: logrus's own output ends.
func Install(log *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.AddHook(relay{log})
}

func (r relay) Levels() []logrus.Level { return logrus.AllLevels }

func (r relay) Fire(e *logrus.Entry) error {
	level := slog.LevelError
	switch {
	case strings.HasPrefix(e.Message, "ttrpc: "), e.Message == "error receiving message":
		// Clients that come and go are no errors.
		level = slog.LevelDebug
	case e.Level >= logrus.DebugLevel:
		level = slog.LevelDebug
	case e.Level == logrus.InfoLevel:
		level = slog.LevelInfo
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	r.log.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}
