// Package content stores blobs by digest and the ingests they are written
// through.
//
// The Store interface is the contract; package contenttest is the same as a
// test suite, which every implementation passes: Local here, the namespaced
// view in package meta, and the remote one behind a socket.
package content

import (
	"context"
	"io"

	"berth/internal/object"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ReaderAt reads a committed blob. Size is constant. Closing it twice is fine;
// the blob may be deleted meanwhile, an open reader keeps its bytes.
type ReaderAt interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Provider opens blobs for reading.
type Provider interface {
	// ReaderAt opens the blob desc.Digest; the rest of desc is a hint.
	// errdefs.ErrNotFound when there is no such blob. The caller closes it.
	ReaderAt(ctx context.Context, desc ispec.Descriptor) (ReaderAt, error)
}

// Writer appends to an ingest. One writer is open on a reference at a time. A
// writer is used by one goroutine.
type Writer interface {
	// Write appends. An error leaves the ingest with the bytes that Status tells.
	io.WriteCloser

	// Digest of what has been written so far.
	Digest() digest.Digest

	// Commit makes the blob durable and visible under its digest, and ends the
	// ingest; the writer is closed whatever the outcome. Size (when > 0) and
	// expected (when not empty) must match what was written: otherwise
	// errdefs.ErrFailedPrecondition, and nothing becomes visible.
	// errdefs.ErrAlreadyExists when the blob is there already; the ingest is
	// gone then as well. Labels are set with the commit.
	Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error

	// Status tells how far the ingest is.
	Status() (object.IngestStatus, error)

	// Truncate drops what was written; only size 0 is supported
	// (errdefs.ErrNotImplemented otherwise).
	Truncate(size int64) error
}

// WriteOptions says what will be written.
type WriteOptions struct {
	// Ref names the ingest; required. Opening it again resumes it: what comes
	// first is told by the Offset of the writer's Status.
	Ref string
	// Size in bytes, 0 when not known.
	Size int64
	// Expected digest, empty when not known. When it is known and the blob
	// exists already, Writer returns errdefs.ErrAlreadyExists.
	Expected digest.Digest
}

// Store keeps blobs. All methods are safe for concurrent use. A malformed
// digest or reference is errdefs.ErrInvalidArgument everywhere.
//
// Durability: when Commit has returned, the blob survives a power cut whole. A
// crash leaves ingests as they were, to be resumed or aborted.
type Store interface {
	Provider

	// Info describes a blob, errdefs.ErrNotFound when there is none.
	Info(ctx context.Context, d digest.Digest) (object.BlobInfo, error)

	// Update changes the labels of info.Digest and returns the result. Field
	// paths are "labels" or "labels.<key>"; none means all labels. Immutable
	// fields are errdefs.ErrInvalidArgument. A label set to the empty string
	// by a field path is removed.
	Update(ctx context.Context, info object.BlobInfo, fieldpaths ...string) (object.BlobInfo, error)

	// Walk calls fn for every blob that matches any of the filters (all when
	// there are none) until fn fails, and returns fn's error.
	Walk(ctx context.Context, fn func(object.BlobInfo) error, filters ...string) error

	// Delete removes a blob, errdefs.ErrNotFound when there is none.
	Delete(ctx context.Context, d digest.Digest) error

	// Status describes an ingest, errdefs.ErrNotFound when there is none.
	Status(ctx context.Context, ref string) (object.IngestStatus, error)

	// ListStatuses describes the ingests whose reference matches any filter.
	ListStatuses(ctx context.Context, filters ...string) ([]object.IngestStatus, error)

	// Abort removes an ingest, errdefs.ErrNotFound when there is none.
	Abort(ctx context.Context, ref string) error

	// Writer opens an ingest to begin or resume it. errdefs.ErrUnavailable when
	// another writer has it open: the caller may wait for it or give up.
	Writer(ctx context.Context, opts WriteOptions) (Writer, error)
}
