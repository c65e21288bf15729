package meta

import (
	"context"
	"fmt"

	"berth/internal/events"
	"berth/internal/filter"
	"berth/internal/object"

	bolt "go.etcd.io/bbolt"
)

// Containers keeps container records.
type Containers struct{ scope Scope }

func containerKind() *kind[object.Container] {
	return &kind[object.Container]{name: "container", path: []string{keyContainers}, read: readContainer, fields: containerFields}
}

// Get returns a container; errdefs.ErrNotFound.
func (c Containers) Get(ctx context.Context, id string) (object.Container, error) {
	return containerKind().get(ctx, c.scope, id)
}

// List returns the containers that match any of the filters; fields: id,
// image, runtime.name, labels.<key>.
func (c Containers) List(ctx context.Context, filters ...string) ([]object.Container, error) {
	return containerKind().list(ctx, c.scope, filters)
}

// Create records a container. The times of ctr are not used.
// errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument.
func (c Containers) Create(ctx context.Context, ctr object.Container) (object.Container, error) {
	if err := c.check(&ctr); err != nil {
		return object.Container{}, err
	}
	ctr.Labels = withoutEmpty(ctr.Labels)
	if err := c.scope.db.update(ctx, func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, c.scope.namespace, keyContainers)
		if err != nil {
			return err
		}
		b, err := create(all, "container", ctr.ID)
		if err != nil {
			return err
		}
		ctr.CreatedAt = c.scope.db.now()
		ctr.UpdatedAt = ctr.CreatedAt
		return c.put(b, ctr)
	}); err != nil {
		return object.Container{}, err
	}
	c.scope.publish(ctx, events.ContainerCreate(ctr))
	return ctr, nil
}

// Update changes the field paths ("labels", "labels.<key>", "spec",
// "extensions", "extensions.<name>", "image", "snapshotkey"); none means
// everything that may change, and then the snapshotter and the runtime's name
// must be those of the record: errdefs.ErrInvalidArgument otherwise.
func (c Containers) Update(ctx context.Context, ctr object.Container, fieldpaths ...string) (updated object.Container, err error) {
	all, cleared := len(fieldpaths) == 0, false
	if all {
		fieldpaths = []string{keyLabels, keySpec, keyExtensions, keyImage, "snapshotkey"}
	}
	if err := c.scope.db.update(ctx, func(tx *bolt.Tx) error {
		if updated, err = containerKind().in(tx, c.scope, ctr.ID); err != nil {
			return err
		}
		cleared = false
		if all && updated.Snapshotter != ctr.Snapshotter {
			return invalid("container %s: the snapshotter is %q and cannot be changed to %q", ctr.ID, updated.Snapshotter, ctr.Snapshotter)
		}
		if all && updated.Runtime.Name != ctr.Runtime.Name {
			return invalid("container %s: the runtime is %q and cannot be changed to %q", ctr.ID, updated.Runtime.Name, ctr.Runtime.Name)
		}
		if err := (fieldMask{"container " + ctr.ID, fieldpaths}).apply(func(field string, e entry) bool {
			switch {
			case field == keyLabels:
				updated.Labels = mergeLabels(updated.Labels, ctr.Labels, e)
			case field == keyExtensions:
				updated.Extensions = merge(updated.Extensions, ctr.Extensions, e)
			case e.one:
				return false
			case field == keySpec:
				// Compat: no spec leaves the one that is recorded, and is answered.
				if cleared = ctr.Spec == nil; !cleared {
					updated.Spec = ctr.Spec
				}
			case field == keyImage:
				updated.Image = ctr.Image
			case field == "snapshotkey":
				updated.SnapshotKey = ctr.SnapshotKey
			default:
				return false
			}
			return true
		}); err != nil {
			return err
		}
		if err := c.check(&updated); err != nil {
			return err
		}
		if updated.Spec == nil && !cleared {
			return invalid("container %s has no spec, and an update must give it one", ctr.ID)
		}
		updated.UpdatedAt = c.scope.db.now()
		return c.put(inNamespace(tx, c.scope.namespace, keyContainers, ctr.ID), updated)
	}); err != nil {
		return object.Container{}, err
	}
	if cleared {
		updated.Spec = nil
	}
	c.scope.publish(ctx, events.ContainerUpdate(updated))
	return updated, nil
}

// Delete removes a container's record; errdefs.ErrNotFound.
func (c Containers) Delete(ctx context.Context, id string) error {
	if err := c.scope.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		return remove(inNamespace(tx, c.scope.namespace, keyContainers), "container", id)
	}); err != nil {
		return err
	}
	c.scope.publish(ctx, events.ContainerDelete(id))
	return nil
}

// check refuses what no container may be.
//
// Compat: one without a spec may be recorded; whoever makes a task of it needs one.
func (c Containers) check(ctr *object.Container) error {
	if err := c.scope.check(); err != nil {
		return err
	}
	if err := checkIdentifier("container ID", ctr.ID); err != nil {
		return err
	}
	what := "container " + ctr.ID
	if err := checkLabels(ctr.Labels); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if _, ok := ctr.Extensions[""]; ok {
		return invalid("%s: extension without a name", what)
	}
	if err := checkRuntime(what, ctr.Runtime); err != nil {
		return err
	}
	if ctr.SnapshotKey != "" && ctr.Snapshotter == "" {
		return invalid("%s names the snapshot %q, but no snapshotter", what, ctr.SnapshotKey)
	}
	return nil
}

func (c Containers) put(b *bolt.Bucket, ctr object.Container) error {
	c.scope.db.touch(node{kindContainer, c.scope.namespace, ctr.ID})
	if err := putTimes(b, ctr.CreatedAt, ctr.UpdatedAt); err != nil {
		return err
	}
	if err := putAny(b, keySpec, ctr.Spec); err != nil {
		return err
	}
	for _, f := range [][2]string{
		{keyImage, ctr.Image},
		{keySnapshotter, ctr.Snapshotter},
		{keySnapshotKey, ctr.SnapshotKey},
		{keySandboxID, ctr.SandboxID},
	} {
		if err := putString(b, f[0], f[1]); err != nil {
			return err
		}
	}
	if err := putRuntime(b, ctr.Runtime); err != nil {
		return err
	}
	if err := putExtensions(b, ctr.Extensions); err != nil {
		return err
	}
	return putMap(b, keyLabels, ctr.Labels)
}

// readContainer goes through the record once: lists of thousands are read.
func readContainer(id string, b *bolt.Bucket) (ctr object.Container, err error) {
	ctr.ID = id
	c := b.Cursor()
	for k, v := c.First(); k != nil && err == nil; k, v = c.Next() {
		switch string(k) {
		case keyLabels:
			ctr.Labels = getMap(b, keyLabels)
		case keyImage:
			ctr.Image = string(v)
		case keySnapshotter:
			ctr.Snapshotter = string(v)
		case keySnapshotKey:
			ctr.SnapshotKey = string(v)
		case keySandboxID:
			ctr.SandboxID = string(v)
		case keyRuntime:
			ctr.Runtime, err = getRuntime(b)
		case keySpec:
			ctr.Spec = new(object.Any)
			err = ctr.Spec.UnmarshalBinary(v)
		case keyExtensions:
			ctr.Extensions, err = getExtensions(b)
		case keyCreatedAt:
			err = ctr.CreatedAt.UnmarshalBinary(v)
		case keyUpdatedAt:
			err = ctr.UpdatedAt.UnmarshalBinary(v)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", k, err)
		}
	}
	return ctr, err
}

func containerFields(ctr *object.Container) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "id":
			return present(ctr.ID)
		case "runtime":
			if len(path) == 2 && path[1] == "name" {
				return present(ctr.Runtime.Name)
			}
		case "image":
			return present(ctr.Image)
		case "labels":
			return filter.Label(ctr.Labels, path[1:])
		}
		return "", false
	}
}
