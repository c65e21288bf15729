package meta

import (
	"context"
	"fmt"

	"berth/internal/filter"

	bolt "go.etcd.io/bbolt"
)

// kind is what the records of one sort have in common.
type kind[T any] struct {
	// name in messages, path of the bucket in a namespace.
	name string
	path []string
	read func(id string, b *bolt.Bucket) (T, error)
	// fields shows a record to filters.
	fields func(*T) filter.AdaptorFunc
}

// get reads one record; errdefs.ErrNotFound.
func (k *kind[T]) get(ctx context.Context, s Scope, id string) (record T, err error) {
	err = s.db.view(ctx, func(tx *bolt.Tx) error {
		record, err = k.in(tx, s, id)
		return err
	})
	return record, err
}

// in reads one record in a transaction.
func (k *kind[T]) in(tx *bolt.Tx, s Scope, id string) (record T, err error) {
	b := sub(inNamespace(tx, s.namespace, k.path...), id)
	if b == nil {
		return record, notFound(k.name, id)
	}
	record, err = k.read(id, b)
	if err != nil {
		return record, fmt.Errorf("%s %q: %w", k.name, id, err)
	}
	return record, nil
}

// list reads the records that match any of the filters, all of them as one
// transaction sees them. A record that cannot be read is left out: what is
// wrong with it is found by get, and it does not hide the others.
func (k *kind[T]) list(ctx context.Context, s Scope, filters []string) ([]T, error) {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", k.name, err)
	}
	var found []T
	err = s.db.view(ctx, func(tx *bolt.Tx) error {
		return records(inNamespace(tx, s.namespace, k.path...), func(id []byte, b *bolt.Bucket) error {
			record, err := k.read(string(id), b)
			if err == nil && (len(filters) == 0 || f.Match(k.fields(&record))) {
				found = append(found, record)
			}
			return nil
		})
	})
	return found, err
}

// present is a field for filters that counts as absent when it is empty.
func present(v string) (string, bool) { return v, v != "" }
