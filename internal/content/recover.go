package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"berth/internal/object"
	"berth/internal/par"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CleanIngests removes what is no ingest from below ingest/, where a crash left
// it, and returns how many. It is for the start: it must not run while ingests
// are opened.
func (l *Local) CleanIngests(ctx context.Context) (int, error) {
	return l.dropIngests(ctx, func(_ object.IngestStatus, garbage bool) bool { return garbage })
}

func (l *Local) dropIngests(ctx context.Context, drop func(status object.IngestStatus, garbage bool) bool) (int, error) {
	root := filepath.Join(l.root, "ingest")
	entries, err := os.ReadDir(root)
	if err != nil {
		return 0, fmt.Errorf("clean ingests: %w", err)
	}
	removed := 0
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		dir := filepath.Join(root, e.Name())
		status, err := readIngest(dir)
		garbage := !e.IsDir() || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoIngest)
		if err != nil && !garbage {
			errs = append(errs, err)
			continue
		}
		if !drop(status, garbage) {
			continue
		}
		if err := l.removeIngest(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	return removed, errors.Join(errs...)
}

// Damage is what Verify found and removed.
type Damage struct {
	// Blobs whose bytes were not those of their digest, in the order of Walk.
	Blobs []digest.Digest
	// Ingests counts those that were written to at the time in question.
	Ingests int
}

// Verify is for the start after a power cut. It hashes the blobs that were
// committed at or after since and removes those that are wrong: nothing may use
// them, and they can be fetched again. It removes the ingests that were written
// to since then, because nobody knows which of their bytes reached the disk.
//
// It reads all those bytes, on every core. An error means that some blobs could
// be neither verified nor removed; the rest is done nevertheless.
func (l *Local) Verify(ctx context.Context, since time.Time) (Damage, error) {
	var damage Damage
	ingests, err := l.dropIngests(ctx, func(status object.IngestStatus, garbage bool) bool {
		return garbage || !status.UpdatedAt.Before(since)
	})
	damage.Ingests = ingests

	var mu sync.Mutex
	errs := []error{err}
	queue := par.NewQueue(runtime.GOMAXPROCS(0))
	err = l.eachBlob(ctx, func(info object.BlobInfo) error {
		if info.CreatedAt.Before(since) {
			return nil
		}
		queue.Add(func() {
			wrong, err := l.verifyBlob(ctx, info.Digest)
			mu.Lock()
			defer mu.Unlock()
			if wrong {
				damage.Blobs = append(damage.Blobs, info.Digest)
			}
			if err != nil {
				errs = append(errs, err)
			}
		})
		return nil
	})
	<-queue.Idle()
	slices.Sort(damage.Blobs)
	return damage, errors.Join(append(errs, err)...)
}

// verifyBlob removes a blob that is wrong and says so.
func (l *Local) verifyBlob(ctx context.Context, d digest.Digest) (wrong bool, err error) {
	r, err := l.ReaderAt(ctx, ispec.Descriptor{Digest: d})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err == nil {
		defer r.Close()
		h := d.Algorithm().Digester()
		_, err = l.rehash(ctx, h, io.NewSectionReader(r, 0, r.Size()))
		if err == nil && h.Digest() == d {
			return false, nil
		}
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	// A blob that cannot be read (EIO) is as useless as a wrong one.
	if err := l.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	return true, nil
}
