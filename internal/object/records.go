package object

import (
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Namespace separates the records of one client from those of another. All
// other objects but blobs' bytes live in one.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Image names a tree of content: the target is a manifest or an index.
type Image struct {
	Name      string
	Labels    map[string]string
	Target    ispec.Descriptor
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Container is the record of a container: everything that is needed to make a
// task of it. It says nothing of whether one runs.
type Container struct {
	ID     string
	Labels map[string]string
	// Image is the name of the image it was made from; informative, may be empty.
	Image       string
	Runtime     Runtime
	Spec        *Any
	Snapshotter string
	// SnapshotKey names the active snapshot that is the root filesystem, empty
	// when the root filesystem is not a snapshot.
	SnapshotKey string
	SandboxID   string
	Extensions  map[string]Any
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// Runtime names a shim (io.containerd.runc.v2) and the options for it.
type Runtime struct {
	Name    string
	Options *Any
}

// Sandbox is the record of a sandbox: a group of containers with common
// surroundings, a pod.
type Sandbox struct {
	ID         string
	Labels     map[string]string
	Runtime    Runtime
	Spec       *Any
	Sandboxer  string
	Extensions map[string]Any
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

// Lease protects the resources that are added to it, and what they refer to,
// from garbage collection.
type Lease struct {
	ID        string
	Labels    map[string]string
	CreatedAt time.Time
}

// Resource names something a lease can hold. Type is "content", "ingests" or
// "snapshots/<snapshotter>", ID a digest, an ingest reference or a snapshot key.
type Resource struct {
	Type string
	ID   string
}

// BlobInfo describes a committed blob.
type BlobInfo struct {
	Digest    digest.Digest
	Size      int64
	Labels    map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// IngestStatus describes a blob that is being written.
type IngestStatus struct {
	Ref string
	// Offset counts the bytes that are written.
	Offset int64
	// Total is the expected size in bytes, 0 when it is not known.
	Total int64
	// Expected is the digest that the commit must yield, empty when not known.
	Expected  digest.Digest
	StartedAt time.Time
	UpdatedAt time.Time
}

// Event is what happened to an object, as subscribers receive it.
type Event struct {
	Timestamp time.Time
	Namespace string
	// Topic is a path such as /containers/create.
	Topic string
	Body  Any
}
