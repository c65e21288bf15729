package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/internal/object"
)

func TestReleased(t *testing.T) {
	dir := room(t)
	needLoop(t)
	needProgram(t, "mkfs.ext4")
	image, a, b := filepath.Join(dir, "image"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
	mkdirs(t, a, b)
	if err := Released(t.Context(), image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	spec := newFilesystem{fs: "ext4", size: 8 << 20}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := spec.make(t.Context(), root, "image"); err != nil {
		t.Fatal(err)
	}
	if err := Released(t.Context(), image); err != nil {
		t.Errorf("never mounted: %v", err)
	}
	if err := All([]object.Mount{{Type: "ext4", Source: image, Options: []string{"loop"}}}, a); err != nil {
		t.Fatal(err)
	}
	if err := All([]object.Mount{{Type: "bind", Source: a, Options: []string{"rbind"}}}, b); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(a, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Released(ctx, image); !errors.Is(err, context.Canceled) {
		t.Errorf("mounted elsewhere, given up: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- Released(t.Context(), image) }()
	if err := Unmount(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("released: %v", err)
	}
}
