package logrelay

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestRelay(t *testing.T) {
	var out bytes.Buffer
	l := logrus.New()
	l.SetOutput(&bytes.Buffer{})
	l.AddHook(relay{slog.New(slog.NewTextHandler(&out, nil))})
	l.WithError(errors.New("reset")).Error("error receiving message")
	l.Info("told")
	l.WithField("container", "c").Warn("careful")
	got := out.String()
	if strings.Contains(got, "reset") || !strings.Contains(got, "level=INFO msg=told") || !strings.Contains(got, "level=WARN msg=careful container=c") {
		t.Errorf("logged %s", got)
	}
}
