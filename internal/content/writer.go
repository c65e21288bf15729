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
	"sync/atomic"
	"time"

	"berth/internal/failpoint"
	"berth/internal/fsx"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// nameSize is how many bytes make an ingest worth resuming after a crash.
	nameSize = 4 << 20
	// writebackChunk is how many bytes are written before the kernel is asked to
	// put them on the disk, so that Commit finds little left to wait for.
	writebackChunk = 4 << 20
	// copyBuffer is small enough to stay in a core's cache between the write and
	// the hash.
	copyBuffer = 256 << 10
)

// localWriter holds the lock of its reference until it is closed.
type localWriter struct {
	store  *Local
	ref    string
	dir    string
	unlock func()
	file   *fsx.File // nil when closed
	named  bool      // file is dir/data; otherwise it has no name
	hash   digest.Digester
	// flushed counts the bytes handed to StartWriteback.
	flushed int64
	// aborted is set by Abort while the writer is nameless.
	aborted atomic.Bool

	mu     sync.Mutex // Local.Status reads the status of a nameless writer
	status object.IngestStatus
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

func (w *localWriter) open(ctx context.Context, opts WriteOptions) error {
	status, err := readIngest(w.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoIngest) {
		return err
	}
	resume := err == nil &&
		(opts.Size <= 0 || status.Offset <= opts.Size && (status.Total == 0 || status.Total == opts.Size))
	if resume {
		if opts.Size > 0 {
			status.Total = opts.Size
		}
		status.Expected = opts.Expected
		w.status = status
		return w.resume(ctx)
	}
	// Whatever is there is of no use to this ingest.
	if _, err := os.Lstat(w.dir); err == nil {
		if err := w.store.removeIngest(w.dir); err != nil {
			return err
		}
	}
	now := time.Now()
	w.status = object.IngestStatus{Ref: opts.Ref, Total: max(opts.Size, 0), Expected: opts.Expected, StartedAt: now, UpdatedAt: now}
	w.file, err = w.store.os.OpenTemp("ingest data", filepath.Dir(w.dir), 0o644)
	if errors.Is(err, errors.ErrUnsupported) {
		return w.name()
	}
	if err == nil {
		w.store.setNameless(w, true)
	}
	return err
}

func (w *localWriter) dataPath() string { return filepath.Join(w.dir, "data") }

func (w *localWriter) resume(ctx context.Context) (err error) {
	if w.file, err = w.store.os.OpenFile("ingest data", w.dataPath(), os.O_RDWR, 0); err != nil {
		return err
	}
	w.named = true
	w.status.Offset, err = w.store.rehash(ctx, w.hash, w.file)
	w.flushed = w.status.Offset
	return err
}

// name gives the ingest its directory, data last: without it there is nothing
// to resume, and the directory is garbage.
func (w *localWriter) name() error {
	err := w.store.makeIngest(w.dir, w.status)
	if err == nil && w.file == nil {
		w.file, err = w.store.os.OpenFile("ingest data", w.dataPath(), os.O_RDWR|os.O_CREATE, 0o644)
	} else if err == nil {
		failpoint.Hit("content.ingest.before-data")
		err = w.file.Link(w.dataPath())
	}
	w.store.setNameless(w, false)
	// An abort may have come between the files.
	if err != nil || w.aborted.Load() {
		return errors.Join(err, w.gone(), w.store.removeIngest(w.dir))
	}
	w.named = true
	return nil
}

// gone tells of an abort.
func (w *localWriter) gone() error {
	if w.aborted.Load() {
		return fmt.Errorf("the ingest was aborted: %w", errdefs.ErrNotFound)
	}
	return nil
}

// rehash reads r to its end into the hash.
func (l *Local) rehash(ctx context.Context, h digest.Digester, r io.Reader) (int64, error) {
	buf := l.buffers.Get().(*[copyBuffer]byte)
	defer l.buffers.Put(buf)
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
	if !w.named && w.status.Offset >= nameSize {
		if err := w.name(); err != nil {
			return 0, w.writeError(err)
		}
	}
	n, err := w.file.Write(p)
	failpoint.Hit("content.ingest.written")
	w.hash.Hash().Write(p[:n])
	w.setOffset(w.status.Offset + int64(n))
	if unflushed := w.status.Offset - w.flushed; unflushed >= writebackChunk {
		w.file.StartWriteback(w.flushed, unflushed)
		w.flushed = w.status.Offset
	}
	if err != nil {
		return n, w.writeError(err)
	}
	return n, nil
}

func (w *localWriter) writeError(err error) error {
	return fmt.Errorf("ingest %q: %w", w.ref, diskError(w.store.root, err))
}

func (w *localWriter) setOffset(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Offset = offset
	w.status.UpdatedAt = time.Now()
}

// ReadFrom writes what r yields, in larger pieces than io.Copy would.
func (w *localWriter) ReadFrom(r io.Reader) (int64, error) {
	buf := w.store.buffers.Get().(*[copyBuffer]byte)
	defer w.store.buffers.Put(buf)
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

func (w *localWriter) Status() (object.IngestStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, nil
}

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
	w.flushed = 0
	w.setOffset(0)
	return nil
}

// Close leaves the ingest to be resumed. Its bytes are not synced: after a
// power cut Verify drops it.
func (w *localWriter) Close() error {
	if w.file == nil {
		return nil
	}
	defer w.unlock()
	err := w.keep()
	if err := errors.Join(err, w.drop()); err != nil {
		return fmt.Errorf("close ingest %q: %w", w.ref, diskError(w.store.root, err))
	}
	return nil
}

// keep puts the state of the ingest where the next writer finds it.
func (w *localWriter) keep() error {
	if w.aborted.Load() {
		return nil
	}
	if !w.named {
		return w.name()
	}
	stamp, err := w.status.UpdatedAt.MarshalText()
	if err == nil {
		err = w.store.os.Replace("ingest updatedat", filepath.Join(w.dir, "updatedat"), stamp, 0o644)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // aborted meanwhile
	}
	return err
}

// drop closes the file: nothing is left of a nameless ingest.
func (w *localWriter) drop() error {
	w.store.setNameless(w, false)
	err := w.file.Close()
	w.file = nil
	return err
}
