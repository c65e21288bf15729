package meta

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"berth/internal/boltx"
	"berth/internal/filter"
	"berth/internal/object"
)

// Each calls fn for the containers that match any of the filters, as List finds
// them, in the order of their IDs. What fn is given must not be kept: it lies in
// the database, and all of it is read before Each returns. fn must not wait for
// a client, and must not change anything.
func (c Containers) Each(ctx context.Context, fn func(*object.StoredContainer), filters ...string) error {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.scope.db.bolt.ViewFile(func(file *boltx.File) error {
		all, err := file.Find(schemaVersion, c.scope.namespace, keyContainers)
		if err != nil || all == nil {
			return err
		}
		r := newContainerReader(file)
		return file.Bucket(all, func(id, value []byte, isBucket bool) error {
			// One that cannot be read does not hide the others; Get tells why.
			if isBucket && r.read(id, value) == nil && (len(filters) == 0 || f.Match(filter.AdaptorFunc(r.field))) {
				fn(&r.ctr)
			}
			return nil
		}, func(err error) error { return err })
	})
}

// containerReader reads one record after another into the same place.
type containerReader struct {
	file  *boltx.File
	ctr   object.StoredContainer
	pairs *[]object.StoredPair // where those of the bucket that is being read go
	// The functions that walk are made once, not for each record.
	fields, runtime, pair boltx.EachFunc
}

var errText = errors.New("text is not UTF-8") // no message could carry it

func newContainerReader(file *boltx.File) *containerReader {
	r := &containerReader{file: file}
	r.fields, r.runtime, r.pair = r.readField, r.readRuntime, r.readPair
	return r
}

func fail(err error) error { return err }

func (r *containerReader) read(id, value []byte) error {
	c := &r.ctr
	*c = object.StoredContainer{ID: id, Labels: c.Labels[:0], Extensions: c.Extensions[:0]}
	if err := r.file.Bucket(value, r.fields, fail); err != nil {
		return err
	}
	for _, text := range [...][]byte{c.ID, c.Image, c.Snapshotter, c.SnapshotKey, c.SandboxID, c.RuntimeName} {
		if !utf8.Valid(text) {
			return errText
		}
	}
	for _, l := range c.Labels {
		if !utf8.Valid(l.Key) || !utf8.Valid(l.Value) {
			return errText
		}
	}
	for _, e := range c.Extensions {
		if err := object.CheckAny(e.Value); err != nil {
			return err
		}
		if !utf8.Valid(e.Key) {
			return errText
		}
	}
	if err := object.CheckAny(c.RuntimeOptions); err != nil {
		return err
	}
	return object.CheckAny(c.Spec)
}

func (r *containerReader) readField(k, v []byte, isBucket bool) error {
	c := &r.ctr
	if isBucket {
		switch string(k) {
		case keyLabels:
			r.pairs = &c.Labels
			return r.file.Bucket(v, r.pair, fail)
		case keyExtensions:
			r.pairs = &c.Extensions
			return r.file.Bucket(v, r.pair, fail)
		case keyRuntime:
			return r.file.Bucket(v, r.runtime, fail)
		}
		return nil
	}
	switch string(k) {
	case keyImage:
		c.Image = v
	case keySnapshotter:
		c.Snapshotter = v
	case keySnapshotKey:
		c.SnapshotKey = v
	case keySandboxID:
		c.SandboxID = v
	case keySpec:
		c.Spec = v
	case keyCreatedAt:
		return c.CreatedAt.UnmarshalBinary(v)
	case keyUpdatedAt:
		return c.UpdatedAt.UnmarshalBinary(v)
	}
	return nil
}

func (r *containerReader) readRuntime(k, v []byte, isBucket bool) error {
	switch {
	case isBucket:
	case string(k) == keyName:
		r.ctr.RuntimeName = v
	case string(k) == keyOptions:
		r.ctr.RuntimeOptions = v
	}
	return nil
}

func (r *containerReader) readPair(k, v []byte, isBucket bool) error {
	if !isBucket {
		*r.pairs = append(*r.pairs, object.StoredPair{Key: k, Value: v})
	}
	return nil
}

// field shows the record to a filter as containerFields does.
func (r *containerReader) field(path []string) (string, bool) {
	c := object.Container{ID: string(r.ctr.ID), Image: string(r.ctr.Image)}
	c.Runtime.Name = string(r.ctr.RuntimeName)
	if len(path) > 1 && path[0] == "labels" {
		c.Labels = make(map[string]string, len(r.ctr.Labels))
		for _, l := range r.ctr.Labels {
			c.Labels[string(l.Key)] = string(l.Value)
		}
	}
	return containerFields(&c)(path)
}
