package content_test

import (
	"os"
	"strings"
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A full disk is said to be one, and the ingest goes on when there is room.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := openLocal(t, root)
	ballast, _ := contenttest.Blob(1, 4<<20)
	ballastDigest := contenttest.Put(t, l, "ballast", ballast, nil)

	blob, d := contenttest.Blob(2, 10<<20)
	opts := content.WriteOptions{Ref: "ref", Size: int64(len(blob)), Expected: d}
	w, err := l.Writer(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	written := 0
	for err == nil && written < len(blob) {
		var n int
		n, err = w.Write(blob[written:min(written+1<<20, len(blob))])
		written += n
	}
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), root) {
		t.Fatalf("after %d bytes: %v", written, err)
	}
	if st, err := w.Status(); err != nil || st.Offset != int64(written) {
		t.Fatalf("%d bytes were written, status is %+v, %v", written, st, err)
	}
	_ = w.Close() // there may be no room to note the time

	if err := l.Delete(t.Context(), ballastDigest); err != nil {
		t.Fatal(err)
	}
	w, err = l.Writer(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil || st.Offset != int64(written) {
		t.Fatalf("resumed at %+v, %v; %d bytes were written", st, err, written)
	}
	if _, err := w.Write(blob[written:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), int64(len(blob)), d, nil); err != nil {
		t.Fatal(err)
	}
}
