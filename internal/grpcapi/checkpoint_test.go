package grpcapi

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"berth/internal/archive"
	"berth/internal/content"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

// What is stored of a checkpoint comes back, and what failed leaves nothing.
func TestCheckpointStore(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s, err := content.OpenLocal(content.LocalOptions{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	images := t.TempDir()
	if err := os.WriteFile(filepath.Join(images, "pages-1.img"), []byte("pages"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(w io.Writer) error { return archive.Diff(t.Context(), w, "", images, archive.DiffOptions{}) }
	d, err := store(t.Context(), s, mediaCheckpoint, "ref", write)
	if err != nil || d.MediaType != mediaCheckpoint || d.Size == 0 {
		t.Fatalf("%v, %v", d, err)
	}
	if again, err := store(t.Context(), s, mediaCheckpoint, "ref", write); err != nil || again.Digest != d.Digest {
		t.Errorf("the same once more: %v, %v", again, err)
	}
	dir, err := fetchCheckpoint(t.Context(), s, d)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "pages-1.img")); err != nil || string(b) != "pages" {
		t.Errorf("%q, %v", b, err)
	}
	os.RemoveAll(dir)

	broken := errors.New("broken")
	if _, err := store(t.Context(), s, mediaCheckpoint, "torn", func(w io.Writer) error { w.Write([]byte("x")); return broken }); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
	if list, err := s.ListStatuses(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("ingests are left: %v, %v", list, err)
	}
	for name, bad := range map[string]*types.Descriptor{
		"media type": {MediaType: "nonsense", Digest: d.Digest, Size: d.Size},
		"digest":     {MediaType: mediaCheckpoint, Digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000", Size: 1},
	} {
		if _, err := fetchCheckpoint(t.Context(), s, bad); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("%s is left", left[0].Name())
	}
}
