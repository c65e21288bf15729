package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/internal/fsx"
	"berth/internal/object"
	"berth/internal/par"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// writebackChunk is how many bytes are written before the kernel is asked to
	// put them on the disk, so that Commit finds little left to wait for.
	writebackChunk = 4 << 20
	// copyBuffer is small enough to stay in a core's cache between the write and
	// the hash.
	copyBuffer = 256 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// localWriter holds the lock of its reference until it is closed.
type localWriter struct {
	store   *Local
	ref     string
	dir     string
	unlock  func()
	file    *fsx.File // nil when closed
	hash    digest.Digester
	status  object.IngestStatus
	flushed int64 // bytes handed to StartWriteback
}

// Writer opens an ingest. What was written before is hashed again, which takes
// its time. An ingest that was begun with another size starts over.
func (l *Local) Writer(ctx context.Context, opts WriteOptions) (Writer, error) {
	if err := checkRef(opts.Ref); err != nil {
		return nil, err
	}
	algorithm := digest.Canonical
	if opts.Expected != "" {
		if _, err := l.blobPath(opts.Expected); err != nil {
			return nil, err
		}
		algorithm = opts.Expected.Algorithm()
		switch whole, err := l.whole(ctx, opts.Expected, opts.Size); {
		case err != nil:
			return nil, err
		case whole:
			return nil, fmt.Errorf("content %s: %w", opts.Expected, errdefs.ErrAlreadyExists)
		}
	}
	unlock, since, ok := l.refs.TryLock(opts.Ref)
	if !ok {
		return nil, fmt.Errorf("ingest %q is being written since %s: %w", opts.Ref, since.Format(time.RFC3339Nano), errdefs.ErrUnavailable)
	}
	w := &localWriter{store: l, ref: opts.Ref, dir: l.ingestDir(opts.Ref), unlock: unlock, hash: algorithm.Digester()}
	if err := w.open(ctx, opts); err != nil {
		if w.file != nil {
			_ = w.file.Close()
		}
		unlock()
		return nil, fmt.Errorf("open ingest %q: %w", opts.Ref, diskError(l.root, err))
	}
	return w, nil
}

func (w *localWriter) open(ctx context.Context, opts WriteOptions) (err error) {
	w.status, err = readIngest(w.dir)
	resume := err == nil && (opts.Size <= 0 || w.status.Offset <= opts.Size && (w.status.Total == 0 || w.status.Total == opts.Size))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoIngest) {
		return err
	}
	flags := os.O_RDWR | os.O_CREATE
	if !resume {
		flags |= os.O_TRUNC
		now := time.Now()
		w.status = object.IngestStatus{Ref: opts.Ref, StartedAt: now, UpdatedAt: now}
		if err := w.store.makeIngest(w.dir, opts, now); err != nil {
			return err
		}
	}
	if opts.Size > 0 {
		w.status.Total = opts.Size
	}
	w.status.Expected = opts.Expected
	w.file, err = w.store.os.OpenFile("ingest data", filepath.Join(w.dir, "data"), flags, 0o644)
	if err != nil || !resume {
		return err
	}
	w.status.Offset, err = rehash(ctx, w.hash, w.file)
	w.flushed = w.status.Offset
	return err
}

// rehash reads r to its end into the hash.
func rehash(ctx context.Context, h digest.Digester, r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return size, err
		}
		n, err := r.Read(buf[:])
		h.Hash().Write(buf[:n])
		size += int64(n)
		if err == io.EOF {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

func (w *localWriter) closedError() error {
	return fmt.Errorf("ingest %q: the writer is closed: %w", w.ref, errdefs.ErrFailedPrecondition)
}

func (w *localWriter) Write(p []byte) (int, error) {
	if w.file == nil {
		return 0, w.closedError()
	}
	n, err := w.file.Write(p)
	w.hash.Hash().Write(p[:n])
	w.status.Offset += int64(n)
	w.status.UpdatedAt = time.Now()
	if unflushed := w.status.Offset - w.flushed; unflushed >= writebackChunk {
		w.file.StartWriteback(w.flushed, unflushed)
		w.flushed = w.status.Offset
	}
	if err != nil {
		return n, fmt.Errorf("ingest %q: %w", w.ref, diskError(w.store.root, err))
	}
	return n, nil
}

// ReadFrom writes what r yields, in larger pieces than io.Copy would.
func (w *localWriter) ReadFrom(r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	var size int64
	for {
		n, rerr := io.ReadFull(r, buf[:])
		if n > 0 {
			written, err := w.Write(buf[:n])
			size += int64(written)
			if err != nil {
				return size, err
			}
		}
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			return size, nil
		}
		if rerr != nil {
			return size, rerr
		}
	}
}

func (w *localWriter) Digest() digest.Digest { return w.hash.Digest() }

func (w *localWriter) Status() (object.IngestStatus, error) { return w.status, nil }

func (w *localWriter) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("ingest %q: cut to %d bytes: only 0 is supported: %w", w.ref, size, errdefs.ErrNotImplemented)
	}
	if w.file == nil {
		return w.closedError()
	}
	if err := w.file.Truncate(0); err != nil {
		return fmt.Errorf("ingest %q: %w", w.ref, err)
	}
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("ingest %q: %w", w.ref, err)
	}
	w.hash.Hash().Reset()
	w.status.Offset, w.flushed = 0, 0
	w.status.UpdatedAt = time.Now()
	return nil
}

// Close leaves the ingest to be resumed. Its bytes are not synced: after a
// power cut Verify drops it.
func (w *localWriter) Close() error {
	if w.file == nil {
		return nil
	}
	defer w.unlock()
	err := w.file.Close()
	w.file = nil
	stamp, terr := w.status.UpdatedAt.MarshalText()
	if terr == nil {
		terr = w.store.os.Replace("ingest updatedat", filepath.Join(w.dir, "updatedat"), stamp, 0o644)
	}
	if errors.Is(terr, fs.ErrNotExist) {
		terr = nil // aborted meanwhile
	}
	if err := errors.Join(err, terr); err != nil {
		return fmt.Errorf("close ingest %q: %w", w.ref, err)
	}
	return nil
}

// Commit makes a blob of the ingest:
//
//	mode, time    of the data file, while no name that matters leads to it
//	fdatasync     the bytes are on the disk before any name says they are a blob
//	rename        to the blob's name: a crash leaves either the ingest or the blob
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
	if err == nil || errdefs.IsAlreadyExists(err) {
		// The blob is safe; what cannot be removed here is garbage for later.
		_ = w.file.Close()
		w.file = nil
		_ = w.store.removeIngest(w.dir)
		w.unlock()
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
		if _, err := rehash(ctx, w.hash, io.NewSectionReader(w.file, 0, w.status.Offset)); err != nil {
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
	data := filepath.Join(w.dir, "data")
	err = w.store.os.RenameNoReplace("blob", data, target)
	if errors.Is(err, fs.ErrExist) {
		// Either somebody was faster, or what is there was cut short by a crash.
		whole, werr := w.store.whole(ctx, d, w.status.Offset)
		if werr != nil {
			return werr
		}
		if whole {
			return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
		}
		err = w.store.os.Rename("blob", data, target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the ingest was aborted: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := syncDir.Do(); err != nil {
		// Not durable, so not to be seen either.
		return errors.Join(err, w.store.os.Remove("blob", target))
	}
	return nil
}

// seal makes the data file read-only, stamps it with the time of the commit and
// puts it on the disk. When that fails nobody knows what the disk has, and
// syncing again would not tell: the ingest starts over.
func (w *localWriter) seal() error {
	err := w.file.Chmod(0o444)
	if err == nil {
		err = w.file.SetTime(time.Now())
	}
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		return errors.Join(err, w.store.removeIngest(w.dir))
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
