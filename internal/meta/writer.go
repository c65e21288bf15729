package meta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// writer is an open ingest of a namespace. Its out is nil while it only
// stands for a blob of the backend.
type writer struct {
	scope  blobs
	in     ingest
	out    content.Writer
	size   int64 // of the blob that it stands for
	opened time.Time
}

func (w *writer) Close() error {
	if w.out == nil {
		return nil
	}
	return w.out.Close()
}

func (w *writer) Digest() digest.Digest {
	if w.out == nil {
		return w.in.expected
	}
	return w.out.Digest()
}

func (w *writer) Status() (object.IngestStatus, error) {
	if w.out == nil {
		return object.IngestStatus{
			Ref: w.in.ref, Offset: w.size, Total: w.size, Expected: w.in.expected,
			StartedAt: w.opened, UpdatedAt: w.opened,
		}, nil
	}
	st, err := w.out.Status()
	st.Ref = w.in.ref
	return st, err
}

// Write to an ingest that stands for a blob makes it a real one, which begins
// with the blob's bytes.
func (w *writer) Write(p []byte) (int, error) {
	if w.out == nil {
		if len(p) == 0 {
			return 0, nil
		}
		if err := w.unshare(w.size); err != nil {
			return 0, err
		}
	}
	return w.out.Write(p)
}

func (w *writer) Truncate(size int64) error {
	if w.out == nil {
		if size != 0 {
			return fmt.Errorf("truncate ingest %q to %d bytes, only 0 is supported: %w", w.in.ref, size, errdefs.ErrNotImplemented)
		}
		return w.unshare(0)
	}
	return w.out.Truncate(size)
}

// unshare opens an ingest in the backend and copies the first n bytes of the
// blob into it. A writer has no context; its calls end with the daemon's stores.
func (w *writer) unshare(n int64) (err error) {
	ctx := context.Background()
	own, err := w.scope.db.content.store.Writer(ctx, content.WriteOptions{Ref: w.in.backend})
	if err != nil {
		return fmt.Errorf("open ingest %q: %w", w.in.ref, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, own.Close())
		}
	}()
	if err := own.Truncate(0); err != nil {
		return err
	}
	if n > 0 {
		blob, err := w.scope.db.content.store.ReaderAt(ctx, ispec.Descriptor{Digest: w.in.expected, Size: w.size})
		if err != nil {
			return err
		}
		defer blob.Close()
		if _, err := io.Copy(own, io.NewSectionReader(blob, 0, n)); err != nil {
			return fmt.Errorf("copy %s into ingest %q: %w", w.in.expected, w.in.ref, err)
		}
	}
	w.out = own
	return nil
}

// Commit lets the backend make the bytes durable, then writes the record. A
// crash between the two leaves a blob that no record names: the next writer
// that expects it takes it over, or the collector removes it.
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) (err error) {
	defer w.Close() // nothing is left to be written, whatever the outcome
	if err := checkLabels(labels); err != nil {
		return fmt.Errorf("content %s: %w", w.Digest(), err)
	}
	if _, ok := labels[""]; ok { // found later, it would have cost the ingest
		return invalid("content %s: a label has no key", w.Digest())
	}
	actual := w.Digest()
	if expected != "" && expected.Algorithm() != actual.Algorithm() {
		actual = expected // if the backend finds it to be right
	}
	claim := contentClaim(actual)
	if err := w.scope.db.claims.hold(ctx, claim); err != nil {
		return err
	}
	defer w.scope.db.claims.release(claim)
	actualSize, err := w.commitBytes(ctx, size, expected)
	if err != nil {
		return fmt.Errorf("commit ingest %q: %w", w.in.ref, err)
	}
	failpoint.Hit("meta.content.bytes-committed")
	exists := false
	if err := w.scope.db.update(ctx, func(tx *bolt.Tx) error {
		if exists, err = w.record(tx, actual, actualSize, labels); err != nil {
			return err
		}
		if err := w.scope.end(tx, w.in); err != nil {
			return err
		}
		return w.scope.hold(tx, keyContent, actual.String())
	}); err != nil {
		w.scope.db.content.dirty.Store(true)
		return err
	}
	if exists {
		return alreadyExists(actual)
	}
	w.scope.publish(ctx, events.ContentCreate(actual, actualSize, ""))
	return nil
}

// commitBytes commits in the backend, unless the blob is there already.
func (w *writer) commitBytes(ctx context.Context, size int64, expected digest.Digest) (int64, error) {
	st, err := w.Status()
	if err != nil {
		return 0, err
	}
	if size > 0 && size != st.Offset {
		return 0, fmt.Errorf("%d bytes were written, %d are expected: %w", st.Offset, size, errdefs.ErrFailedPrecondition)
	}
	if actual := w.Digest(); expected != "" && expected != actual && (w.out == nil || expected.Algorithm() == actual.Algorithm()) {
		return 0, fmt.Errorf("the digest is %s, %s is expected: %w", actual, expected, errdefs.ErrFailedPrecondition)
	}
	if w.out == nil {
		// The record of the ingest kept the blob so far; make sure nevertheless.
		_, err := w.scope.db.content.store.Info(ctx, w.in.expected)
		return st.Offset, err
	}
	if err := w.out.Commit(ctx, size, expected, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return 0, err
	}
	return st.Offset, nil
}

// record writes the blob's record; false when the namespace had none before.
func (w *writer) record(tx *bolt.Tx, d digest.Digest, size int64, labels map[string]string) (exists bool, err error) {
	w.scope.db.touch(node{kindContent, w.scope.namespace, d.String()})
	if w.scope.bucket(tx, d) != nil {
		return true, nil
	}
	b, err := ensureInNamespace(tx, w.scope.namespace, keyContent, keyBlob, d.String())
	if err != nil {
		return false, err
	}
	now := w.scope.db.now()
	if err := putTimes(b, now, now); err != nil {
		return false, err
	}
	if err := putInt(b, keySize, size); err != nil {
		return false, err
	}
	return false, putMap(b, keyLabels, labels)
}
