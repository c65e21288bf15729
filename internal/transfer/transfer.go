// Package transfer moves images between registries, archives and the stores,
// and unpacks them, as pipelines that report their progress.
//
// A pull is one pipeline (resolve, fetch, hash, decompress, hash, untar,
// commit, one durability barrier, image record): all layers at once, bounded
// by cores and memory. It runs in the daemon over package meta, and in ctr
// --local over clients of a daemon.
//
// What holds whatever happens: a blob becomes visible only when its digest is
// right, a layer's snapshot only when its diff ID is right too and its parent
// is there, an image record only when everything below it is there and on
// disk. What a failed transfer leaves is ingests, and blobs and snapshots that
// are whole. Whoever waits for the same goes on with them, and so does the next
// transfer under the same lease; the collector takes them once the lease has
// gone, as one does that was made for the transfer alone. What a crash leaves besides is uncommitted snapshots under
// keys that begin with "extract-"; they are held by the lease alone.
//
// Locks: Service.locks holds one lock for each blob (whatever the namespace, for
// their bytes are shared) and each chain ID in work, so that transfers of the
// same content share it instead of doing it twice. A
// transfer takes the lock of a chain ID before that of the blob. While it holds
// the one of a chain ID it waits only for its own layers further down, and it
// holds none of its download slots while it waits for one. Who holds the lock
// of a blob waits for no other lock and no slot.
package transfer

import (
	"context"
	"fmt"
	"runtime"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/object"
	"berth/internal/par"
	"berth/internal/snapshot"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images is what a transfer needs of the image records; meta.Images is one.
type Images interface {
	Get(ctx context.Context, name string) (object.Image, error)
	List(ctx context.Context, filters ...string) ([]object.Image, error)
	Create(ctx context.Context, img object.Image) (object.Image, error)
	Update(ctx context.Context, img object.Image, fieldpaths ...string) (object.Image, error)
}

// Leases is what a transfer needs of the leases; meta.Leases is one.
type Leases interface {
	Create(ctx context.Context, lease object.Lease) (object.Lease, error)
	Delete(ctx context.Context, id string, sync bool) error
}

// Stores is a namespace's stores.
type Stores struct {
	Namespace   string
	Images      Images
	Leases      Leases
	Content     content.Store
	Snapshotter func(name string) (snapshot.Backend, error)
	// Applier, unless it is nil, unpacks the layers instead of Options.Differ:
	// from the content store onto mounts that may be those of another process.
	// Layers are then applied one after the other, each when it has been
	// fetched.
	Applier diff.Applier
}

// Scope opens a namespace's stores so that what is written is held by the
// lease (none when it is empty).
type Scope func(namespace, lease string) Stores

// Options of New.
type Options struct {
	Scope Scope
	// Differ unpacks layers here, while they arrive. It may be nil when every
	// scope has an Applier.
	Differ diff.Unpacker
	// SyncFS makes an Applier bring each layer to the disk: there is no barrier
	// for snapshots that are kept by another process.
	SyncFS bool
	// Snapshotter is the default one.
	Snapshotter string
	// MaxDownloads and MaxUnpacks bound one transfer's parallelism; 0 chooses
	// by the number of cores.
	MaxDownloads, MaxUnpacks int
	// MaxUploads bounds the layers that one transfer pushes at a time; 0 is
	// MaxDownloads.
	MaxUploads int
	// Verify, unless it is nil, is asked whether an image may be pulled, before
	// anything of it is fetched; an error ends the pull.
	Verify func(ctx context.Context, name string, target ispec.Descriptor) error
	// TempDir is for what must be staged on disk.
	TempDir string
}

// Service runs transfers. It is safe for concurrent use.
type Service struct {
	opts  Options
	locks par.Locks[string]
}

// New makes a service.
func New(opts Options) *Service {
	if opts.MaxDownloads <= 0 {
		opts.MaxDownloads = max(4, min(runtime.GOMAXPROCS(0)+2, 8))
	}
	if opts.MaxUploads <= 0 {
		opts.MaxUploads = opts.MaxDownloads
	}
	if opts.MaxUnpacks <= 0 {
		opts.MaxUnpacks = opts.MaxDownloads
	}
	return &Service{opts: opts}
}

// snapshotter opens one of a namespace's snapshotters; the empty name is the
// default one.
func (s *Service) snapshotter(st Stores, name string) (string, snapshot.Backend, error) {
	if name == "" {
		name = s.opts.Snapshotter
	}
	if name == "" {
		return "", nil, fmt.Errorf("no snapshotter is named and there is no default: %w", errdefs.ErrInvalidArgument)
	}
	sn, err := st.Snapshotter(name)
	return name, sn, err
}

// Progress is one report.
type Progress = report.Progress

// ProgressFunc takes reports.
type ProgressFunc = report.Func

// UnpackTarget is a platform to unpack for, and into what.
type UnpackTarget struct {
	Platform    ispec.Platform
	Snapshotter string
}

// ImageTarget says how the result is recorded in the image store.
type ImageTarget struct {
	// Name of the record. Empty for an import that names its images itself.
	Name   string
	Labels map[string]string
	// Platforms to fetch, as specifiers already parsed; none means all there are.
	Platforms []ispec.Platform
	// AllMetadata fetches the manifests and configs of every platform.
	AllMetadata bool
	// MetadataOnly fetches the manifests and configs, and no layer.
	MetadataOnly bool
	// ManifestLimit bounds how many platforms of an index are taken; 0 is no bound.
	ManifestLimit int
	Unpacks       []UnpackTarget
	// ExtraReferences name further images out of an index by their annotations (import).
	ExtraReferences []Reference
}

// Reference makes image names out of an archive's annotations.
type Reference struct {
	Name            string
	IsPrefix        bool
	AllowOverwrite  bool
	AddDigest       bool
	SkipNamedDigest bool
}
