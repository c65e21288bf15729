// Package diff applies layers to mounts and computes layers from mounts.
package diff

import (
	"context"
	"io"

	"berth/internal/object"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Applier puts the layer of a descriptor onto mounts.
type Applier interface {
	// Apply unpacks the blob desc, whatever its compression, and returns the
	// descriptor of the uncompressed tar (its digest is the diff ID).
	// errdefs.ErrNotFound: no such blob. errdefs.ErrUnimplemented: no processor
	// for the media type. errdefs.ErrInvalidArgument: the archive is not sound;
	// the message names the entry.
	Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts ApplyOptions) (ispec.Descriptor, error)
}

// ApplyOptions refines Apply.
type ApplyOptions struct {
	// ProcessorPayloads are handed to stream processors, by media type.
	ProcessorPayloads map[string]object.Any
	// Sync returns only when the files are on disk.
	Sync bool
}

// Comparer makes a layer from the difference of two sets of mounts.
type Comparer interface {
	// Compare writes a layer that turns lower into upper into the content
	// store and describes it.
	Compare(ctx context.Context, lower, upper []object.Mount, opts CompareOptions) (ispec.Descriptor, error)
}

// CompareOptions refines Compare.
type CompareOptions struct {
	// MediaType of the layer; OCI gzip when empty.
	MediaType string
	// Ref of the ingest; a random one when empty.
	Ref    string
	Labels map[string]string
	// SourceDateEpoch, in seconds, replaces times later than it; nil leaves them.
	SourceDateEpoch *int64
}

// Unpacked is the outcome of Unpack.
type Unpacked struct {
	// DiffID is the digest of the uncompressed tar.
	DiffID digest.Digest
	// Size of the uncompressed tar in bytes.
	Size int64
	// Implied lists directories, relative to the root and in order, that the
	// archive used without an entry of their own. When the layer is unpacked
	// apart from its parents, they get their attributes from them (FixImplied).
	Implied []string
}

// Unpacker is how a pull unpacks while it downloads.
type Unpacker interface {
	// Unpack reads a layer of that media type from r to its end, past the end
	// of the archive too, so that a digest taken of r is complete. apart says
	// that mounts are those of a snapshot without its parents (see
	// snapshot.CommitOptions): whiteouts are then kept as the snapshotter wants
	// them, not carried out. A failure leaves a partial tree for the caller to
	// remove with the snapshot. Where the mounts are read-only the snapshotter
	// had the layer already: then it is only read.
	Unpack(ctx context.Context, mediaType string, r io.Reader, mounts []object.Mount, apart bool) (Unpacked, error)

	// FixImplied gives the implied directories of a layer that was unpacked
	// apart the owner, mode, times and extended attributes that they have in
	// the parents, or leaves them 0755 root when no parent has them. parents are the mounts of a
	// view of the parent chain, or nil.
	FixImplied(ctx context.Context, mounts, parents []object.Mount, implied []string) error
}
