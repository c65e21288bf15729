package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"berth/internal/failpoint"
	"berth/internal/par"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Commit makes a blob of the ingest:
//
//	mode, time    of the data file, while no name that matters leads to it
//	fdatasync     the bytes are on the disk before any name says they are a blob
//	rename        to the blob's name, or link when it had none: a crash leaves the
//	              ingest as it was, or the blob
//	sync          of the blob directory, shared by commits that come at once
//	remove        the rest of the ingest; a crash before leaves it to CleanIngests
//
// After a size or digest that does not fit, the ingest stays, to be committed
// with the right ones or resumed. errdefs.ErrNotFound when it was aborted.
func (w *localWriter) Commit(ctx context.Context, size int64, expected digest.Digest, _ map[string]string) error {
	if w.file == nil {
		return w.closedError()
	}
	err := w.commit(ctx, size, expected)
	failpoint.Hit("content.commit.published")
	if err == nil || errdefs.IsAlreadyExists(err) || errors.Is(err, errSeal) {
		// The ingest is over; what cannot be removed here is garbage for later.
		defer w.unlock()
		_ = w.drop()
		if w.named {
			_ = w.store.removeIngest(w.dir)
		}
	}
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("commit ingest %q: %w", w.ref, diskError(w.store.root, err)), w.Close())
}

func (w *localWriter) commit(ctx context.Context, size int64, expected digest.Digest) error {
	d, err := w.check(ctx, size, expected)
	if err != nil {
		return err
	}
	whole, err := w.store.whole(ctx, d, w.status.Offset)
	if err != nil {
		return err
	}
	if whole {
		return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
	}
	return w.publish(ctx, d)
}

// check compares what was written with what was expected and returns its digest.
func (w *localWriter) check(ctx context.Context, size int64, expected digest.Digest) (digest.Digest, error) {
	if size > 0 && size != w.status.Offset {
		return "", fmt.Errorf("%d bytes were written, %d are expected: %w", w.status.Offset, size, errdefs.ErrFailedPrecondition)
	}
	fi, err := w.file.Stat()
	if err != nil {
		return "", err
	}
	if fi.Size() != w.status.Offset {
		return "", fmt.Errorf("data has %d bytes, %d were written: %w", fi.Size(), w.status.Offset, errdefs.ErrDataLoss)
	}
	if expected == "" {
		return w.hash.Digest(), nil
	}
	if _, err := w.store.blobPath(expected); err != nil {
		return "", err
	}
	if expected.Algorithm() != w.hash.Digest().Algorithm() {
		// The writer was opened without the digest: hash again with its algorithm.
		w.hash = expected.Algorithm().Digester()
		if _, err := w.store.rehash(ctx, w.hash, io.NewSectionReader(w.file, 0, w.status.Offset)); err != nil {
			return "", err
		}
	}
	if d := w.hash.Digest(); d != expected {
		return "", fmt.Errorf("what was written has digest %s, expected is %s: %w", d, expected, errdefs.ErrFailedPrecondition)
	}
	return expected, nil
}

// publish gives the data, which is checked, the name of the blob.
func (w *localWriter) publish(ctx context.Context, d digest.Digest) (err error) {
	target, err := w.store.blobPath(d)
	if err != nil {
		return err
	}
	syncDir, err := w.store.blobDir(filepath.Dir(target))
	if err != nil {
		return err
	}
	if err := w.seal(); err != nil {
		return err
	}
	if err := failpoint.Hit("content.commit.before-rename"); err != nil {
		return err
	}
	if err := w.moveTo(ctx, d, target); err != nil {
		return err
	}
	failpoint.Hit("content.commit.before-dirsync")
	if err := syncDir.Do(); err != nil {
		// Not durable, so not to be seen either.
		return errors.Join(err, w.store.os.Remove("blob", target))
	}
	return nil
}

// moveTo gives the data the name of the blob.
func (w *localWriter) moveTo(ctx context.Context, d digest.Digest, target string) error {
	if err := w.gone(); err != nil {
		return err
	}
	var err error
	if w.named {
		err = w.store.os.RenameNoReplace("blob", w.dataPath(), target)
	} else {
		err = w.file.Link(target)
	}
	if errors.Is(err, fs.ErrExist) {
		// Either somebody was faster, or what is there was cut short by a crash.
		whole, werr := w.store.whole(ctx, d, w.status.Offset)
		if werr != nil {
			return werr
		}
		if whole {
			return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
		}
		if !w.named {
			if err := w.name(); err != nil {
				return err
			}
		}
		err = w.store.os.Rename("blob", w.dataPath(), target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the ingest was aborted: %w", errdefs.ErrNotFound)
	}
	return err
}

// errSeal marks an ingest whose bytes are in doubt.
var errSeal = errors.New("the data could not be put on the disk")

// seal makes the data file read-only, stamps it with the time of the commit and
// puts it on the disk. When that fails nobody knows what the disk has, and
// syncing again would not tell: the ingest has to start over.
func (w *localWriter) seal() error {
	err := w.file.Chmod(0o444)
	if err == nil {
		err = w.file.SetTime(time.Now())
	}
	if err == nil {
		failpoint.Hit("content.commit.before-sync")
		err = w.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errSeal, err)
	}
	return nil
}

// blobDir makes a directory of blobs durable, once, and returns what syncs it.
func (l *Local) blobDir(dir string) (*par.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.dirSyncs[dir]; b != nil {
		return b, nil
	}
	if err := l.os.MkdirAll("blob dir", dir, 0o755); err != nil {
		return nil, err
	}
	b := par.NewBatch(func() error { return l.os.SyncDir("blob dir", dir) })
	l.dirSyncs[dir] = b
	return b, nil
}
