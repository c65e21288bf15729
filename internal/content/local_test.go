package content_test

import (
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"
)

func openLocal(t testing.TB, root string) *content.Local {
	t.Helper()
	l, err := content.OpenLocal(content.LocalOptions{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestContract(t *testing.T) {
	contenttest.Suite{
		Open:     func(t *testing.T) content.Store { return openLocal(t, t.TempDir()) },
		NoLabels: true,
	}.Run(t)
}
