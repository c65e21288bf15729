// Package snapshot is about filesystems in layers: a snapshotter prepares
// writable snapshots above committed ones and says how to mount them.
//
// The Snapshotter interface is the contract; package snapshottest is the same
// as a test suite, which every implementation passes.
package snapshot

import (
	"context"

	"berth/internal/object"
)

// Labels that snapshotters and their callers agree on.
const (
	// LabelRef, on Prepare, is the chain ID that will be committed: a
	// snapshotter that has it already answers errdefs.ErrAlreadyExists.
	LabelRef = "containerd.io/snapshot.ref"
	// LabelUIDMapping and LabelGIDMapping ask for an idmapped root filesystem;
	// "container:host:size".
	LabelUIDMapping = "containerd.io/snapshot/uidmapping"
	LabelGIDMapping = "containerd.io/snapshot/gidmapping"
)

// CommitOptions refines a commit.
type CommitOptions struct {
	Labels map[string]string
	// Parent puts a snapshot that was prepared without a parent onto this
	// committed one: so the layers of an image can be unpacked at the same
	// time. Needs the capability "rebase"; errdefs.ErrInvalidArgument when the
	// snapshot has a parent already, and it is another.
	Parent string
}

// Snapshotter keeps snapshots. All methods are safe for concurrent use. Errors
// to branch on: errdefs.ErrNotFound (no such key, or no such parent),
// errdefs.ErrAlreadyExists (key or name taken), errdefs.ErrFailedPrecondition
// (the snapshot has children, or is of the wrong kind), errdefs.ErrInvalidArgument.
type Snapshotter interface {
	// Stat describes the snapshot of that key or name.
	Stat(ctx context.Context, key string) (object.SnapshotInfo, error)

	// Update changes labels; field paths as in content.Store.Update.
	Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error)

	// Usage of the snapshot itself: for a committed one what was recorded at
	// its commit, for an active one what the disk says now, for a view 0.
	Usage(ctx context.Context, key string) (object.SnapshotUsage, error)

	// Mounts of an active snapshot or view, the same as Prepare or View gave.
	Mounts(ctx context.Context, key string) ([]object.Mount, error)

	// Prepare makes an active snapshot above the committed parent, or above
	// nothing when parent is empty.
	Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error)

	// View makes a read-only snapshot of the committed parent.
	View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error)

	// Commit turns the active snapshot key into the committed snapshot name.
	// The key is gone afterwards. Its files may not be on disk yet: see Sync.
	Commit(ctx context.Context, name, key string, opts CommitOptions) error

	// Remove takes a snapshot away that has no children.
	Remove(ctx context.Context, key string) error

	// Walk calls fn for every snapshot that matches any of the filters (all
	// when there are none) until fn fails, and returns fn's error.
	Walk(ctx context.Context, fn func(object.SnapshotInfo) error, filters ...string) error

	// Close releases the snapshotter's database.
	Close() error
}

// Cleaner is a snapshotter that takes disk space back later than Remove.
type Cleaner interface {
	// Cleanup removes the directories that no snapshot names.
	Cleanup(ctx context.Context) error
}

// Syncer is a snapshotter that keeps files on a local disk.
type Syncer interface {
	// Sync returns when the files of everything committed so far would survive
	// a power cut: the one barrier of a pull, before its image is recorded.
	Sync(ctx context.Context) error
}

// Rescuer is a snapshotter that mends its records when it is opened.
type Rescuer interface {
	// Rescued tells what was wrong and what became of it; nil when nothing was.
	Rescued() error
}

// Backend is a snapshotter as the daemon runs it.
type Backend interface {
	Snapshotter
	// Capabilities are what introspection reports: "rebase", "remap-ids", …
	Capabilities() []string
	// Root is the directory of its files, empty when it has none here.
	Root() string
}
