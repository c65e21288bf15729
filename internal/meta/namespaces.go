package meta

import (
	"context"
	"fmt"
	"strings"

	"berth/internal/events"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// labelShareable, "true" on a namespace, lets other namespaces take its blobs
// over by digest although Options.Isolated is set.
const labelShareable = "containerd.io/namespace.shareable"

// Namespaces keeps namespaces and their labels. A namespace also comes into
// being with the first record in it.
type Namespaces struct{ db *DB }

// Create makes a namespace; errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument.
func (n Namespaces) Create(ctx context.Context, ns object.Namespace) error {
	if err := checkNamespace(ns.Name); err != nil {
		return err
	}
	if err := checkLabels(ns.Labels); err != nil {
		return fmt.Errorf("namespace %s: %w", ns.Name, err)
	}
	if err := n.db.update(ctx, func(tx *bolt.Tx) error {
		b, err := create(tx.Bucket([]byte(schemaVersion)), "namespace", ns.Name)
		if err != nil {
			return err
		}
		labels, err := ensure(b, keyLabels)
		if err != nil {
			return err
		}
		for k, v := range ns.Labels { // Compat: those without a value too
			if k == "" {
				return invalid("namespace %s: the label value %.64q has no key", ns.Name, v)
			}
			if err := putString(labels, k, v); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	n.db.publish(ctx, ns.Name, events.NamespaceCreate(ns))
	return nil
}

// Get returns a namespace.
//
// Compat: one that does not exist has no labels; it is no error. A namespace comes
// into being with what is made in it, and clients ask for its labels before.
func (n Namespaces) Get(ctx context.Context, name string) (ns object.Namespace, err error) {
	err = n.db.view(ctx, func(tx *bolt.Tx) error {
		ns = object.Namespace{Name: name, Labels: getMap(inNamespace(tx, name), keyLabels)}
		return nil
	})
	return ns, err
}

// List returns all namespaces in the order of their names.
func (n Namespaces) List(ctx context.Context) (all []object.Namespace, err error) {
	err = n.db.view(ctx, func(tx *bolt.Tx) error {
		return records(tx.Bucket([]byte(schemaVersion)), func(name []byte, b *bolt.Bucket) error {
			all = append(all, object.Namespace{Name: string(name), Labels: getMap(b, keyLabels)})
			return nil
		})
	})
	return all, err
}

// Update sets the labels at the field paths ("labels.<key>"; none means all
// labels). An empty value removes a label. A namespace that does not exist is made
// when there is a label to set.
func (n Namespaces) Update(ctx context.Context, ns object.Namespace, fieldpaths ...string) (updated object.Namespace, err error) {
	if err := checkNamespace(ns.Name); err != nil {
		return updated, err
	}
	if err := n.db.update(ctx, func(tx *bolt.Tx) error {
		labels := getMap(inNamespace(tx, ns.Name), keyLabels)
		if len(fieldpaths) == 0 {
			labels = withoutEmpty(ns.Labels)
		}
		if err := (fieldMask{"namespace " + ns.Name, fieldpaths}).apply(func(field string, e entry) bool {
			if field != keyLabels || !e.one {
				return false
			}
			labels = mergeLabels(labels, ns.Labels, e)
			return true
		}); err != nil {
			return err
		}
		if err := checkLabels(labels); err != nil {
			return fmt.Errorf("namespace %s: %w", ns.Name, err)
		}
		updated = object.Namespace{Name: ns.Name, Labels: labels}
		if len(fieldpaths) == 0 && len(ns.Labels) == 0 && inNamespace(tx, ns.Name) == nil {
			return nil
		}
		b, err := ensureInNamespace(tx, ns.Name)
		if err != nil {
			return err
		}
		return putMap(b, keyLabels, labels)
	}); err != nil {
		return object.Namespace{}, err
	}
	n.db.publish(ctx, ns.Name, events.NamespaceUpdate(updated))
	return updated, nil
}

// Delete removes an empty namespace; errdefs.ErrFailedPrecondition names what
// is left in it.
func (n Namespaces) Delete(ctx context.Context, name string) error {
	if err := n.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		b := inNamespace(tx, name)
		if b == nil {
			return notFound("namespace", name)
		}
		if left := contentsOf(b); len(left) > 0 {
			return fmt.Errorf("namespace %q is not empty, it has %s: %w", name, strings.Join(left, ", "), errdefs.ErrFailedPrecondition)
		}
		return tx.Bucket([]byte(schemaVersion)).DeleteBucket([]byte(name))
	}); err != nil {
		return err
	}
	n.db.content.dirty.Store(true) // it may have had ingests
	n.db.publish(ctx, name, events.NamespaceDelete(name))
	return nil
}

// contentsOf names the kinds of records that keep a namespace from being
// deleted.
//
// Compat: leases, ingests and sandbox records do not, as in containerd.
func contentsOf(ns *bolt.Bucket) (kinds []string) {
	for _, k := range []struct {
		name string
		path []string
	}{
		{"images", []string{keyImages}},
		{"blobs", []string{keyContent, keyBlob}},
		{"containers", []string{keyContainers}},
	} {
		if !isEmpty(sub(ns, k.path...)) {
			kinds = append(kinds, k.name)
		}
	}
	_ = records(sub(ns, keySnapshots), func(name []byte, b *bolt.Bucket) error {
		if !isEmpty(b) {
			kinds = append(kinds, fmt.Sprintf("snapshots on %q", name))
		}
		return nil
	})
	return kinds
}

func checkNamespace(name string) error {
	if err := checkIdentifier("namespace", name); err != nil {
		return err
	}
	if name == keyVersion {
		return invalid("namespace %q: the name is reserved", name)
	}
	return nil
}

// updateLabels applies field paths to an object of which only labels may change.
func updateLabels(what string, labels *map[string]string, update map[string]string, fieldpaths []string) error {
	return fieldMask{what, fieldpaths}.apply(func(field string, e entry) bool {
		if field != keyLabels {
			return false
		}
		*labels = mergeLabels(*labels, update, e)
		return true
	})
}
