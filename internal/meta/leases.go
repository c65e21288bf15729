package meta

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Leases keeps leases and what they hold.
type Leases struct{ scope Scope }

func leaseKind() *kind[object.Lease] {
	return &kind[object.Lease]{name: "lease", path: []string{keyLeases}, read: readLease, fields: leaseFields}
}

// Create makes a lease; one without an ID gets a random one.
// errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument.
func (l Leases) Create(ctx context.Context, lease object.Lease) (object.Lease, error) {
	if lease.ID == "" {
		lease.ID = rand.Text()
	}
	if err := l.check(lease); err != nil {
		return object.Lease{}, err
	}
	lease.Labels = withoutEmpty(lease.Labels)
	if err := l.scope.db.update(ctx, func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, l.scope.namespace, keyLeases)
		if err != nil {
			return err
		}
		b, err := create(all, "lease", lease.ID)
		if err != nil {
			return err
		}
		l.scope.db.touch(node{kindLease, l.scope.namespace, lease.ID})
		lease.CreatedAt = l.scope.db.now()
		if err := putTime(b, keyCreatedAt, lease.CreatedAt); err != nil {
			return err
		}
		return putMap(b, keyLabels, lease.Labels)
	}); err != nil {
		return object.Lease{}, err
	}
	if expiry, ok := lease.Labels[labelExpire]; ok {
		l.scope.db.expires(expiry)
	}
	return lease, nil
}

// List returns the leases that match any of the filters; fields: id, labels.<key>.
func (l Leases) List(ctx context.Context, filters ...string) ([]object.Lease, error) {
	return leaseKind().list(ctx, l.scope, filters)
}

// Delete removes a lease; sync runs a collection before it returns.
// errdefs.ErrNotFound.
func (l Leases) Delete(ctx context.Context, id string, sync bool) error {
	if err := l.scope.db.updateAndCollect(ctx, sync, func(tx *bolt.Tx) error {
		return remove(inNamespace(tx, l.scope.namespace, keyLeases), "lease", id)
	}); err != nil {
		return err
	}
	if sync {
		return l.scope.db.collectNow(ctx)
	}
	return nil
}

// AddResource makes the lease hold a resource, which need not exist yet. Types
// are those of object.Resource and "images". errdefs.ErrNotFound when there is
// no such lease, errdefs.ErrNotImplemented for a type that is not known.
func (l Leases) AddResource(ctx context.Context, id string, r object.Resource) error {
	return l.scope.db.update(ctx, func(tx *bolt.Tx) error {
		lease := inNamespace(tx, l.scope.namespace, keyLeases, id)
		if lease == nil {
			return notFound("lease", id)
		}
		path, n, err := l.parse(r)
		if err != nil {
			return err
		}
		if err := checkName("ID of the "+r.Type+" resource", r.ID); err != nil {
			return err
		}
		if path[len(path)-1] == "" {
			return invalid("resource type %q names no snapshotter", r.Type)
		}
		l.scope.db.touch(n)
		b, err := ensure(lease, path...)
		if err != nil {
			return err
		}
		return b.Put([]byte(r.ID), nil)
	})
}

// DeleteResource makes the lease let a resource go; it is no error when it did
// not hold it. errdefs.ErrNotFound when there is no such lease.
func (l Leases) DeleteResource(ctx context.Context, id string, r object.Resource) error {
	return l.scope.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		lease := inNamespace(tx, l.scope.namespace, keyLeases, id)
		if lease == nil {
			return notFound("lease", id)
		}
		path, _, err := l.parse(r)
		if err != nil {
			return err
		}
		if b := sub(lease, path...); b != nil {
			return b.Delete([]byte(r.ID))
		}
		return nil
	})
}

// ListResources returns what the lease holds; errdefs.ErrNotFound.
func (l Leases) ListResources(ctx context.Context, id string) (held []object.Resource, err error) {
	err = l.scope.db.view(ctx, func(tx *bolt.Tx) error {
		lease := inNamespace(tx, l.scope.namespace, keyLeases, id)
		if lease == nil {
			return notFound("lease", id)
		}
		forEachHeld(lease, func(typ string, id string) {
			held = append(held, object.Resource{Type: typ, ID: id})
		})
		return nil
	})
	return held, err
}

// forEachHeld calls fn with type and ID of everything that a lease holds.
func forEachHeld(lease *bolt.Bucket, fn func(typ, id string)) {
	each := func(b *bolt.Bucket, typ string) {
		if b == nil {
			return
		}
		c := b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			fn(typ, string(k))
		}
	}
	for _, typ := range []string{keyContent, keyImages, keyIngests} {
		each(sub(lease, typ), typ)
	}
	_ = records(sub(lease, keySnapshots), func(name []byte, b *bolt.Bucket) error {
		each(b, keySnapshots+"/"+string(name))
		return nil
	})
}

// parse returns where in a lease's bucket a resource is kept, and its node.
func (l Leases) parse(r object.Resource) ([]string, node, error) {
	typ, snapshotter, below := strings.Cut(r.Type, "/")
	n := node{ns: l.scope.namespace, key: r.ID}
	switch {
	case typ == keySnapshots:
		if !below || strings.Contains(snapshotter, "/") {
			return nil, n, invalid("resource type %q must be snapshots/<snapshotter>", r.Type)
		}
		n.kind, n.key = kindSnapshot, snapshotter+"/"+r.ID
		return []string{keySnapshots, snapshotter}, n, nil
	case below && (typ == keyContent || typ == keyIngests || typ == keyImages):
		return nil, n, invalid("resource type %q must be just %q", r.Type, typ)
	case typ == keyContent:
		if _, err := digest.Parse(r.ID); err != nil {
			return nil, n, invalid("content resource %q: %v", r.ID, err)
		}
		n.kind = kindContent
	case typ == keyIngests:
		n.kind = kindIngest
	case typ == keyImages:
		n.kind = kindImage
	default:
		return nil, n, fmt.Errorf("leases cannot hold resources of type %q, only content, ingests, images and snapshots/<snapshotter>: %w", r.Type, errdefs.ErrNotImplemented)
	}
	return []string{typ}, n, nil
}

func (l Leases) check(lease object.Lease) error {
	if err := l.scope.check(); err != nil {
		return err
	}
	return checkName("lease ID", lease.ID) // Compat: labels are of any length
}

// hold adds a resource to the lease of the scope, if it has one;
// errdefs.ErrNotFound when there is no such lease.
func (s Scope) hold(tx *bolt.Tx, typ, id string) error {
	if s.lease == "" {
		return nil
	}
	if err := s.checkLease(tx); err != nil {
		return err
	}
	b, err := ensure(inNamespace(tx, s.namespace, keyLeases, s.lease), strings.Split(typ, "/")...)
	if err != nil {
		return err
	}
	return b.Put([]byte(id), nil)
}

// checkLease returns errdefs.ErrNotFound when the scope has a lease that is not
// there: for those who must know before they do what cannot be undone.
func (s Scope) checkLease(tx *bolt.Tx) error {
	if s.lease != "" && inNamespace(tx, s.namespace, keyLeases, s.lease) == nil {
		return notFound("lease", s.lease)
	}
	return nil
}

// release takes a resource from the lease of the scope, if it holds it.
func (s Scope) release(tx *bolt.Tx, typ, id string) error {
	if s.lease == "" {
		return nil
	}
	if b := inNamespace(tx, s.namespace, append([]string{keyLeases, s.lease}, strings.Split(typ, "/")...)...); b != nil {
		return b.Delete([]byte(id))
	}
	return nil
}

func readLease(id string, b *bolt.Bucket) (object.Lease, error) {
	created, err := getTime(b, keyCreatedAt)
	return object.Lease{ID: id, Labels: getMap(b, keyLabels), CreatedAt: created}, err
}

func leaseFields(l *object.Lease) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "id":
			return present(l.ID)
		case "labels":
			return filter.Label(l.Labels, path[1:])
		}
		return "", false
	}
}
