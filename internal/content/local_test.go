package content_test

import (
	"errors"
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"
	"berth/internal/fsx"
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

// Some file systems have no files without a name.
func TestContractWithoutTempFiles(t *testing.T) {
	noTemp := &fsx.OS{Before: func(op fsx.Op) error {
		if op.Call == "opentemp" {
			return errors.ErrUnsupported
		}
		return nil
	}}
	contenttest.Suite{
		Open: func(t *testing.T) content.Store {
			l, err := content.OpenLocal(content.LocalOptions{Root: t.TempDir(), OS: noTemp})
			if err != nil {
				t.Fatal(err)
			}
			return l
		},
		NoLabels: true,
	}.Run(t)
}
