package activation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// References of an activation: what it is kept for.
type References struct {
	Lease      string
	Containers []string
	Content    []string // digests
	Images     []string
	Snapshots  []Snapshot
}

// Snapshot names one of a snapshotter.
type Snapshot struct{ Snapshotter, Key string }

const backReference = "containerd.io/gc.bref."

func referencesOf(lease string, labels map[string]string) References {
	r := References{Lease: lease}
	for label, value := range labels {
		kind, ok := strings.CutPrefix(label, backReference)
		if !ok {
			continue
		}
		if rest, ok := strings.CutPrefix(kind, "snapshot."); ok {
			snapshotter, _, _ := strings.Cut(rest, "/")
			r.Snapshots = append(r.Snapshots, Snapshot{snapshotter, value})
			continue
		}
		// What follows a dot or a slash tells several of a kind apart.
		if i := strings.IndexAny(kind, "./"); i >= 0 {
			kind = kind[:i]
		}
		switch kind {
		case "container":
			r.Containers = append(r.Containers, value)
		case "content":
			r.Content = append(r.Content, value)
		case "image":
			r.Images = append(r.Images, value)
		}
	}
	return r
}

// Collect deactivates what nothing refers to, and what crashes have left. kept
// tells whether any of the references exists in the namespace; it is called
// without any lock. Errors are of single activations, the others are collected.
func (t *Table) Collect(ctx context.Context, kept func(ctx context.Context, namespace string, r References) (bool, error)) error {
	db, err := t.open(false)
	if err != nil || db == nil {
		return err
	}
	type candidate struct {
		name
		number uint64
		refs   References
	}
	var all []candidate
	err = db.View(func(tx *bolt.Tx) error {
		all = nil
		return eachBucket(tx.Bucket(keyRoot), func(ns []byte, b *bolt.Bucket) error {
			return eachBucket(b.Bucket(keyMounts), func(id []byte, b *bolt.Bucket) error {
				all = append(all, candidate{name{string(ns), string(id)}, readID(b), referencesOf(string(b.Get(keyLease)), readLabels(b))})
				return nil
			})
		})
	})
	if err != nil {
		return fmt.Errorf("collect mounts: %w", err)
	}
	var errs []error
	for _, c := range all {
		ok, err := kept(ctx, c.namespace, c.refs)
		if err == nil && !ok {
			err = t.collect(ctx, c.name, c.number)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("collect mounts %q of namespace %s: %w", c.name.name, c.namespace, err))
		}
	}
	return errors.Join(append(errs, t.collectDirs(ctx))...)
}

// collect deactivates one, unless it is just being activated or deactivated.
func (t *Table) collect(ctx context.Context, n name, number uint64) error {
	unlock, _, ok := t.names.TryLock(n)
	if !ok {
		return nil
	}
	defer unlock()
	if err := t.deactivate(ctx, t.db, n.namespace, n.name, number); !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// collectDirs removes the directories that no record names. They are listed before
// the records are read: a directory is made after its record.
func (t *Table) collectDirs(ctx context.Context) error {
	entries, err := os.ReadDir(t.targets())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("collect directories of mounts: %w", err)
	}
	named := make(map[string]bool)
	err = t.view(func(tx *bolt.Tx) error {
		return eachBucket(tx.Bucket(keyRoot), func(_ []byte, b *bolt.Bucket) error {
			return eachBucket(b.Bucket(keyMounts), func(_ []byte, b *bolt.Bucket) error {
				named[strconv.FormatUint(readID(b), 10)] = true
				return nil
			})
		})
	})
	if err != nil {
		return fmt.Errorf("collect directories of mounts: %w", err)
	}
	var errs []error
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil || named[e.Name()] {
			continue
		}
		errs = append(errs, t.activator.Deactivate(ctx, t.target(id)))
	}
	return errors.Join(errs...)
}
