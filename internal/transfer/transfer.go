// Package transfer moves images between registries, archives and the stores,
// and unpacks them, as pipelines that report their progress.
//
// A pull is one pipeline (resolve, fetch, hash, decompress, hash, untar,
// commit, one durability barrier, image record): all layers at once, bounded
// by cores and memory. It runs in the daemon over package meta, and in ctr
// --local over clients of a daemon.
package transfer

import (
	"context"
	"io"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/snapshot"

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
}

// Scope opens a namespace's stores so that what is written is held by the
// lease (none when it is empty).
type Scope func(namespace, lease string) Stores

// Options of New.
type Options struct {
	Scope Scope
	// Differ unpacks locally; Appliers of proxy plugins come with a later step.
	Differ interface {
		diff.Applier
		diff.Unpacker
	}
	// Snapshotter is the default one.
	Snapshotter string
	// MaxDownloads and MaxUnpacks bound one transfer's parallelism; 0 chooses
	// by the number of cores.
	MaxDownloads, MaxUnpacks int
	// TempDir is for what must be staged on disk.
	TempDir string
}

// Service runs transfers.
type Service struct{}

// New makes a service.
func New(opts Options) *Service { return nil }

// Progress is one report; the fields are those of containerd's progress message.
type Progress struct {
	// Event is "waiting", "downloading", "complete", "extracting", "saved", …
	Event    string
	Name     string
	Parents  []string
	Progress int64
	Total    int64
	Desc     *ispec.Descriptor
}

// ProgressFunc takes reports; it is called by one goroutine at a time and must
// not block for long. nil means nobody listens.
type ProgressFunc func(Progress)

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
	// Platforms to fetch, as specifiers already parsed; none means those of the host.
	Platforms []ispec.Platform
	// AllMetadata fetches the manifests and configs of every platform.
	AllMetadata bool
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

// Pull fetches the image that the remote names, unpacks it, and records it.
func (s *Service) Pull(ctx context.Context, namespace, lease string, from *registry.Remote, to ImageTarget, progress ProgressFunc) (object.Image, error) {
	return object.Image{}, nil
}

// Push sends an image to the registry that the remote names.
func (s *Service) Push(ctx context.Context, namespace, lease string, image string, platforms []ispec.Platform, to *registry.Remote, progress ProgressFunc) error {
	return nil
}

// ImportOptions refines Import.
type ImportOptions struct {
	// MediaType of the stream; a tar archive, perhaps compressed, when empty.
	MediaType string
	// ForceCompress compresses uncompressed layers on import.
	ForceCompress bool
}

// Import reads an OCI layout or docker-save archive and records its images.
func (s *Service) Import(ctx context.Context, namespace, lease string, r io.Reader, opts ImportOptions, to ImageTarget, progress ProgressFunc) ([]object.Image, error) {
	return nil, nil
}

// ExportOptions refines Export.
type ExportOptions struct {
	MediaType    string
	Platforms    []ispec.Platform
	AllPlatforms bool
	// SkipDockerManifest leaves manifest.json out.
	SkipDockerManifest bool
	// SkipNonDistributable leaves foreign layers out.
	SkipNonDistributable bool
}

// Export writes images as an OCI layout with a docker-save manifest.
func (s *Service) Export(ctx context.Context, namespace string, images []string, w io.Writer, opts ExportOptions, progress ProgressFunc) error {
	return nil
}

// Tag records the target of an image under another name; force replaces.
func (s *Service) Tag(ctx context.Context, namespace, from, to string, progress ProgressFunc) (object.Image, error) {
	return object.Image{}, nil
}

// Unpack makes the chain of snapshots of an image's manifest for a platform.
func (s *Service) Unpack(ctx context.Context, namespace, lease string, image object.Image, target UnpackTarget, progress ProgressFunc) error {
	return nil
}
