package meta

import (
	"context"

	"berth/internal/filter"
	"berth/internal/object"

	bolt "go.etcd.io/bbolt"
)

// Sandboxes keeps sandbox records. Their events tell of the sandboxes
// themselves and come from whoever runs them.
type Sandboxes struct{ scope Scope }

func sandboxKind() *kind[object.Sandbox] {
	return &kind[object.Sandbox]{name: "sandbox", path: []string{keySandboxes}, read: readSandbox, fields: sandboxFields}
}

// Get returns a sandbox; errdefs.ErrNotFound.
func (s Sandboxes) Get(ctx context.Context, id string) (object.Sandbox, error) {
	return sandboxKind().get(ctx, s.scope, id)
}

// List returns the sandboxes that match any of the filters; fields: id, labels.<key>.
func (s Sandboxes) List(ctx context.Context, filters ...string) ([]object.Sandbox, error) {
	return sandboxKind().list(ctx, s.scope, filters)
}

// Create records a sandbox. The times of sb are not used.
// errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument.
func (s Sandboxes) Create(ctx context.Context, sb object.Sandbox) (object.Sandbox, error) {
	if err := s.check(&sb); err != nil {
		return object.Sandbox{}, err
	}
	sb.Labels = withoutEmpty(sb.Labels)
	if err := s.scope.db.update(ctx, func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, s.scope.namespace, keySandboxes)
		if err != nil {
			return err
		}
		b, err := create(all, "sandbox", sb.ID)
		if err != nil {
			return err
		}
		sb.CreatedAt = s.scope.db.now()
		sb.UpdatedAt = sb.CreatedAt
		return s.put(b, sb)
	}); err != nil {
		return object.Sandbox{}, err
	}
	return sb, nil
}

// Update changes the field paths ("labels", "labels.<key>", "extensions",
// "extensions.<name>", "spec", "runtime"); none means all of them, and then the
// runtime's name must be that of the record: errdefs.ErrInvalidArgument otherwise.
func (s Sandboxes) Update(ctx context.Context, sb object.Sandbox, fieldpaths ...string) (updated object.Sandbox, err error) {
	all := len(fieldpaths) == 0
	if all {
		fieldpaths = []string{keyLabels, keyExtensions, keySpec, keyRuntime}
	}
	if err := s.scope.db.update(ctx, func(tx *bolt.Tx) error {
		if updated, err = sandboxKind().in(tx, s.scope, sb.ID); err != nil {
			return err
		}
		if all && updated.Runtime.Name != sb.Runtime.Name {
			return invalid("sandbox %s: the runtime is %q and cannot be changed to %q", sb.ID, updated.Runtime.Name, sb.Runtime.Name)
		}
		if err := (fieldMask{"sandbox " + sb.ID, fieldpaths}).apply(func(field string, e entry) bool {
			switch {
			case field == keyLabels:
				updated.Labels = mergeLabels(updated.Labels, sb.Labels, e)
			case field == keyExtensions:
				updated.Extensions = merge(updated.Extensions, sb.Extensions, e)
			case e.one:
				return false
			case field == keySpec:
				updated.Spec = sb.Spec
			case field == keyRuntime:
				updated.Runtime = sb.Runtime
			default:
				return false
			}
			return true
		}); err != nil {
			return err
		}
		if err := s.check(&updated); err != nil {
			return err
		}
		updated.UpdatedAt = s.scope.db.now()
		return s.put(inNamespace(tx, s.scope.namespace, keySandboxes, sb.ID), updated)
	}); err != nil {
		return object.Sandbox{}, err
	}
	return updated, nil
}

// Delete removes a sandbox's record; errdefs.ErrNotFound.
func (s Sandboxes) Delete(ctx context.Context, id string) error {
	return s.scope.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		return remove(inNamespace(tx, s.scope.namespace, keySandboxes), "sandbox", id)
	})
}

func (s Sandboxes) check(sb *object.Sandbox) error {
	if err := s.scope.check(); err != nil {
		return err
	}
	return checkIdentifier("sandbox ID", sb.ID) // Compat: labels are of any length
}

func (s Sandboxes) put(b *bolt.Bucket, sb object.Sandbox) error {
	s.scope.db.touch(node{kindSandbox, s.scope.namespace, sb.ID})
	if err := putTimes(b, sb.CreatedAt, sb.UpdatedAt); err != nil {
		return err
	}
	if err := putMap(b, keyLabels, sb.Labels); err != nil {
		return err
	}
	if err := putExtensions(b, sb.Extensions); err != nil {
		return err
	}
	if err := putAny(b, keySpec, sb.Spec); err != nil {
		return err
	}
	if err := putString(b, keySandboxer, sb.Sandboxer); err != nil {
		return err
	}
	return putRuntime(b, sb.Runtime)
}

func readSandbox(id string, b *bolt.Bucket) (sb object.Sandbox, err error) {
	sb = object.Sandbox{ID: id, Labels: getMap(b, keyLabels), Sandboxer: getString(b, keySandboxer)}
	if sb.Runtime, err = getRuntime(b); err != nil {
		return sb, err
	}
	if sb.Spec, err = getAny(b, keySpec); err != nil {
		return sb, err
	}
	if sb.Extensions, err = getExtensions(b); err != nil {
		return sb, err
	}
	return sb, getTimes(b, &sb.CreatedAt, &sb.UpdatedAt)
}

func sandboxFields(sb *object.Sandbox) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "id":
			return present(sb.ID)
		case "labels":
			return filter.Label(sb.Labels, path[1:])
		}
		return "", false
	}
}
