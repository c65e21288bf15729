package content_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"

	"golang.org/x/sys/unix"
)

// BenchmarkWrite compares the writing of blobs with its floor: the same bytes
// written, hashed and synced by hand, with the directory.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20, 8 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("size=%d/floor", size), func(b *testing.B) {
			dir := b.TempDir()
			benchBlobs(b, size, 1, func(i uint64, blob []byte) error { return plainWrite(dir, i, blob) })
		})
		b.Run(fmt.Sprintf("size=%d/store", size), func(b *testing.B) { benchStore(b, size, 1) })
	}
	b.Run("size=4096/floor/parallel", func(b *testing.B) {
		dir := b.TempDir()
		benchBlobs(b, 4<<10, 8, func(i uint64, blob []byte) error { return plainWrite(dir, i, blob) })
	})
	b.Run("size=4096/store/parallel", func(b *testing.B) { benchStore(b, 4<<10, 8) })
}

func benchStore(b *testing.B, size, parallel int) {
	cs := openLocal(b, b.TempDir())
	ctx := b.Context()
	benchBlobs(b, size, parallel, func(i uint64, blob []byte) error {
		w, err := cs.Writer(ctx, content.WriteOptions{Ref: fmt.Sprint("ref-", i), Size: int64(size)})
		if err != nil {
			return err
		}
		for len(blob) > 0 {
			n := min(len(blob), 1<<20)
			if _, err := w.Write(blob[:n]); err != nil {
				return err
			}
			blob = blob[n:]
		}
		return w.Commit(ctx, int64(size), "", nil)
	})
}

func plainWrite(dir string, i uint64, blob []byte) error {
	tmp := filepath.Join(dir, fmt.Sprint("tmp-", i))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	for len(blob) > 0 {
		n := min(len(blob), 1<<20)
		if _, err := f.Write(blob[:n]); err != nil {
			return err
		}
		h.Write(blob[:n])
		blob = blob[n:]
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, fmt.Sprintf("%x", h.Sum(nil)))); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func benchBlobs(b *testing.B, size, parallel int, write func(i uint64, blob []byte) error) {
	proto, _ := contenttest.Blob(1, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.SetParallelism(parallel)
	var next atomic.Uint64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		blob := append([]byte(nil), proto...)
		for pb.Next() {
			i := next.Add(1)
			binary.LittleEndian.PutUint64(blob, i)
			if err := write(i, blob); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
