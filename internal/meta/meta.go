// Package meta keeps the records of the daemon in one bolt database, in
// containerd's schema, and decides what may be deleted.
package meta

import (
	"context"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/object"
	"berth/internal/snapshot"
)

// Options of Open. All fields but Isolated and Now are required.
type Options struct {
	// Path of meta.db.
	Path         string
	Content      content.Store
	Snapshotters map[string]snapshot.Backend
	Events       *events.Exchange
	// Isolated keeps blobs of one namespace invisible to another until it
	// proves, by writing them, that it has the bytes.
	Isolated bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// DB is the metadata database.
type DB struct{}

// Open opens or makes the database.
func Open(ctx context.Context, opts Options) (*DB, error) { return nil, nil }

// Close ends background work and closes the database; not the stores.
func (db *DB) Close() error { return nil }

// Namespaces returns the namespace records.
func (db *DB) Namespaces() Namespaces { return Namespaces{db} }

// Scope returns the stores as seen in a namespace. What is written through
// them is added to the lease, unless it is empty; errdefs.ErrNotFound comes
// from the write when there is no such lease.
func (db *DB) Scope(namespace, lease string) Scope { return Scope{db, namespace, lease} }

// GCStats is what a collection did and how long its phases took.
type GCStats struct {
	Mark, Sweep time.Duration
	Removed     int
}

// Collect runs a garbage collection now and returns when it is done.
func (db *DB) Collect(ctx context.Context) (GCStats, error) { return GCStats{}, nil }

// Namespaces keeps namespaces and their labels.
type Namespaces struct{ db *DB }

func (n Namespaces) Create(ctx context.Context, ns object.Namespace) error { return nil }
func (n Namespaces) Get(ctx context.Context, name string) (object.Namespace, error) {
	return object.Namespace{}, nil
}
func (n Namespaces) List(ctx context.Context) ([]object.Namespace, error) { return nil, nil }

// Update sets the labels at the field paths ("labels", "labels.<key>"; none
// means all).
func (n Namespaces) Update(ctx context.Context, ns object.Namespace, fieldpaths ...string) (object.Namespace, error) {
	return object.Namespace{}, nil
}

// Delete removes an empty namespace; errdefs.ErrFailedPrecondition names what
// is left in it.
func (n Namespaces) Delete(ctx context.Context, name string) error { return nil }

// Scope is the database as one namespace, and perhaps one lease, sees it.
type Scope struct {
	db        *DB
	namespace string
	lease     string
}

func (s Scope) Namespace() string      { return s.namespace }
func (s Scope) Content() content.Store { return nil }

// Snapshotter returns the namespace's view of a snapshotter; the empty name is
// errdefs.ErrInvalidArgument, an unknown one errdefs.ErrNotFound with the names that there are.
func (s Scope) Snapshotter(name string) (snapshot.Backend, error) { return nil, nil }
func (s Scope) Images() Images                                    { return Images{s} }
func (s Scope) Containers() Containers                            { return Containers{s} }
func (s Scope) Leases() Leases                                    { return Leases{s} }
func (s Scope) Sandboxes() Sandboxes                              { return Sandboxes{s} }

// Images keeps image records.
type Images struct{ scope Scope }

func (i Images) Get(ctx context.Context, name string) (object.Image, error) {
	return object.Image{}, nil
}
func (i Images) List(ctx context.Context, filters ...string) ([]object.Image, error) { return nil, nil }
func (i Images) Create(ctx context.Context, img object.Image) (object.Image, error) {
	return object.Image{}, nil
}

// Update changes the field paths ("labels", "labels.<key>", "target",
// "annotations"); none means everything that may change.
func (i Images) Update(ctx context.Context, img object.Image, fieldpaths ...string) (object.Image, error) {
	return object.Image{}, nil
}

// ImageDelete refines Images.Delete.
type ImageDelete struct {
	// Sync runs a collection before it returns.
	Sync bool
	// Target, when set, must be the digest of the image's target;
	// errdefs.ErrNotFound otherwise.
	Target string
}

func (i Images) Delete(ctx context.Context, name string, opts ImageDelete) error { return nil }

// Containers keeps container records.
type Containers struct{ scope Scope }

func (c Containers) Get(ctx context.Context, id string) (object.Container, error) {
	return object.Container{}, nil
}
func (c Containers) List(ctx context.Context, filters ...string) ([]object.Container, error) {
	return nil, nil
}
func (c Containers) Create(ctx context.Context, ctr object.Container) (object.Container, error) {
	return object.Container{}, nil
}
func (c Containers) Update(ctx context.Context, ctr object.Container, fieldpaths ...string) (object.Container, error) {
	return object.Container{}, nil
}
func (c Containers) Delete(ctx context.Context, id string) error { return nil }

// Leases keeps leases and what they hold.
type Leases struct{ scope Scope }

// Create makes a lease; one without an ID gets a random one.
func (l Leases) Create(ctx context.Context, lease object.Lease) (object.Lease, error) {
	return object.Lease{}, nil
}
func (l Leases) List(ctx context.Context, filters ...string) ([]object.Lease, error) {
	return nil, nil
}

// Delete removes a lease; sync runs a collection before it returns.
func (l Leases) Delete(ctx context.Context, id string, sync bool) error { return nil }
func (l Leases) AddResource(ctx context.Context, id string, r object.Resource) error {
	return nil
}
func (l Leases) DeleteResource(ctx context.Context, id string, r object.Resource) error { return nil }
func (l Leases) ListResources(ctx context.Context, id string) ([]object.Resource, error) {
	return nil, nil
}

// Sandboxes keeps sandbox records.
type Sandboxes struct{ scope Scope }

func (s Sandboxes) Get(ctx context.Context, id string) (object.Sandbox, error) {
	return object.Sandbox{}, nil
}
func (s Sandboxes) List(ctx context.Context, filters ...string) ([]object.Sandbox, error) {
	return nil, nil
}
func (s Sandboxes) Create(ctx context.Context, sb object.Sandbox) (object.Sandbox, error) {
	return object.Sandbox{}, nil
}
func (s Sandboxes) Update(ctx context.Context, sb object.Sandbox, fieldpaths ...string) (object.Sandbox, error) {
	return object.Sandbox{}, nil
}
func (s Sandboxes) Delete(ctx context.Context, id string) error { return nil }
