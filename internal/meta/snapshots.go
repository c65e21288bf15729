package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/filter"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// inheritedLabels is the prefix of the labels that reach the backend; the
// others, among them those of the collector, concern the records only.
const inheritedLabels = "containerd.io/snapshot/"

// snapshots is a snapshotter as a namespace sees it. Kind, files and usage are
// the backend's; names, parents, labels and times are the record's.
//
// A change takes a call to the backend and one transaction, in an order in
// which a crash between the two leaves a backend snapshot that no record names
// (the collector takes it) or a record without a backend snapshot (it counts
// as absent, and Prepare replaces it). The lock of the key spans both, not the
// database's: a backend that hangs keeps only callers of that key waiting.
type snapshots struct {
	Scope
	name    string
	backend *backend
}

// snapRecord is the record of a snapshot.
type snapRecord struct {
	backend string // key in the backend
	info    object.SnapshotInfo
}

func readSnapshot(key string, b *bolt.Bucket) (snapRecord, error) {
	r := snapRecord{getString(b, keyName), object.SnapshotInfo{
		Name: key, Parent: getString(b, keyParent), Labels: getMap(b, keyLabels),
	}}
	return r, getTimes(b, &r.info.Created, &r.info.Updated)
}

// over lays the record over what the backend says.
func (r snapRecord) over(info object.SnapshotInfo) object.SnapshotInfo {
	labels := maps.Clone(info.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, r.info.Labels)
	kind := info.Kind
	info = r.info
	info.Kind, info.Labels = kind, labels
	return info
}

func (s *snapshots) bucket(tx *bolt.Tx) *bolt.Bucket {
	return inNamespace(tx, s.namespace, keySnapshots, s.name)
}

func (s *snapshots) node(key string) node {
	return node{kindSnapshot, s.namespace, s.name + "/" + key}
}

func (s *snapshots) read(tx *bolt.Tx, key string) (snapRecord, error) {
	b := sub(s.bucket(tx), key)
	if b == nil {
		return snapRecord{}, notFound("snapshot", key)
	}
	r, err := readSnapshot(key, b)
	if err != nil {
		return r, fmt.Errorf("snapshot %q: %w", key, err)
	}
	return r, nil
}

func (s *snapshots) resolve(ctx context.Context, key string) (r snapRecord, err error) {
	err = s.db.view(ctx, func(tx *bolt.Tx) error {
		r, err = s.read(tx, key)
		return err
	})
	return r, err
}

// lock serialises the changes of keys of this namespace and snapshotter. The
// keys are locked in their order, so that two callers cannot wait for each
// other; empty ones are left out.
func (s *snapshots) lock(ctx context.Context, keys ...string) (unlock func(), err error) {
	slices.Sort(keys)
	var taken []func()
	unlock = func() {
		for _, u := range taken {
			u()
		}
	}
	for _, k := range slices.Compact(keys) {
		if k == "" {
			continue
		}
		u, err := s.db.locks.Lock(ctx, s.name+"\x00"+s.namespace+"\x00"+k)
		if err != nil {
			unlock()
			return nil, err
		}
		taken = append(taken, u)
	}
	return unlock, nil
}

// named puts the caller's key where the backend's stood in an error.
func named(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("snapshot %q: %w", key, err)
}

func (s *snapshots) Stat(ctx context.Context, key string) (object.SnapshotInfo, error) {
	r, err := s.resolve(ctx, key)
	if err != nil {
		return object.SnapshotInfo{}, err
	}
	info, err := s.backend.Stat(ctx, r.backend)
	if err != nil {
		return object.SnapshotInfo{}, named(key, err)
	}
	return r.over(info), nil
}

func (s *snapshots) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	r, err := s.resolve(ctx, key)
	if err != nil {
		return object.SnapshotUsage{}, err
	}
	u, err := s.backend.Usage(ctx, r.backend)
	return u, named(key, err)
}

func (s *snapshots) Mounts(ctx context.Context, key string) ([]object.Mount, error) {
	r, err := s.resolve(ctx, key)
	if err != nil {
		return nil, err
	}
	m, err := s.backend.Mounts(ctx, r.backend)
	return m, named(key, err)
}

func (s *snapshots) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error) {
	if len(fieldpaths) == 0 {
		fieldpaths = []string{keyLabels}
	}
	unlock, err := s.lock(ctx, info.Name)
	if err != nil {
		return object.SnapshotInfo{}, err
	}
	defer unlock()
	var r snapRecord
	var before map[string]string
	if err := s.db.update(ctx, func(tx *bolt.Tx) error {
		if r, err = s.read(tx, info.Name); err != nil {
			return err
		}
		if err := checkLabels(info.Labels); err != nil {
			return fmt.Errorf("snapshot %q: %w", info.Name, err)
		}
		before = r.info.Labels
		if err := updateLabels("snapshot "+info.Name, &r.info.Labels, info.Labels, fieldpaths); err != nil {
			return err
		}
		s.db.touch(s.node(info.Name))
		r.info.Updated = s.db.now()
		b := sub(s.bucket(tx), info.Name)
		if err := putTime(b, keyUpdatedAt, r.info.Updated); err != nil {
			return err
		}
		return putMap(b, keyLabels, r.info.Labels)
	}); err != nil {
		return object.SnapshotInfo{}, err
	}
	stat, err := s.updateBackend(ctx, r, before)
	if err != nil {
		return object.SnapshotInfo{}, named(info.Name, err)
	}
	return r.over(stat), nil
}

// updateBackend passes on the labels that concern the backend, if any changed.
func (s *snapshots) updateBackend(ctx context.Context, r snapRecord, before map[string]string) (object.SnapshotInfo, error) {
	old, now := inherited(before), inherited(r.info.Labels)
	if maps.Equal(old, now) {
		return s.backend.Stat(ctx, r.backend)
	}
	var paths []string
	for k, v := range now {
		if old[k] != v {
			paths = append(paths, keyLabels+"."+k)
		}
	}
	for k := range old {
		if _, ok := now[k]; !ok {
			paths = append(paths, keyLabels+"."+k)
		}
	}
	return s.backend.Update(ctx, object.SnapshotInfo{Name: r.backend, Labels: now}, paths...)
}

func inherited(labels map[string]string) map[string]string {
	kept := maps.Clone(labels)
	maps.DeleteFunc(kept, func(k, _ string) bool {
		return k != snapshot.LabelRef && !strings.HasPrefix(k, inheritedLabels)
	})
	return kept
}

// Commit commits in the backend, then moves the record. A crash between the
// two leaves the record of key without its snapshot: a retry that begins with
// Prepare finds the key free.
func (s *snapshots) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := checkName("snapshot name", name); err != nil {
		return err
	}
	if err := checkLabels(opts.Labels); err != nil {
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	if _, ok := opts.Labels[""]; ok { // found later, it would have cost the snapshot
		return invalid("snapshot %q: a label has no key", name)
	}
	// With the parent locked too, it cannot be removed between the backend's
	// commit above it and the link to it.
	unlock, err := s.lock(ctx, name, key, opts.Parent)
	if err != nil {
		return err
	}
	defer unlock()
	r, p, err := s.planCommit(ctx, name, key, opts.Parent)
	if err != nil {
		return err
	}
	claim := s.backend.claim(p.key)
	if err := s.db.claims.hold(ctx, claim); err != nil {
		return err
	}
	defer s.db.claims.release(claim)
	if err := s.backend.Commit(ctx, p.key, r.backend, snapshot.CommitOptions{
		Labels: inherited(opts.Labels), Parent: p.parent,
	}); err != nil {
		return named(key, err)
	}
	failpoint.Hit("meta.snapshot.committed")
	now := s.db.now()
	committed := snapRecord{p.key, object.SnapshotInfo{
		Name: name, Parent: r.info.Parent, Labels: withoutEmpty(opts.Labels), Created: now, Updated: now,
	}}
	// The backend has committed: this is finished even when the caller left, or
	// the lease was deleted meanwhile.
	if err := s.db.update(context.WithoutCancel(ctx), func(tx *bolt.Tx) error {
		s := *s
		if s.checkLease(tx) != nil {
			s.lease = ""
		}
		if err := unlinkSnapshot(s.bucket(tx), key); err != nil {
			return err
		}
		if err := s.release(tx, keySnapshots+"/"+s.name, key); err != nil {
			return err
		}
		p := p
		p.parent = ""
		if parent := sub(s.bucket(tx), committed.info.Parent); parent != nil {
			p.parent = getString(parent, keyName)
		}
		return s.insert(tx, committed, p)
	}); err != nil {
		s.backend.dirty.Store(true)
		return errors.Join(err, s.backend.Remove(context.WithoutCancel(ctx), p.key))
	}
	s.publish(ctx, events.SnapshotCommit(s.name, key, name))
	return nil
}

// planCommit returns the record to be committed, its parent set to what it
// will have, and what to ask of the backend: p.parent is not empty for a rebase.
func (s *snapshots) planCommit(ctx context.Context, name, key, parent string) (r snapRecord, p plan, err error) {
	var taken *snapRecord
	err = s.db.view(ctx, func(tx *bolt.Tx) error {
		if err := s.checkLease(tx); err != nil {
			return err // found later, it would have cost the snapshot
		}
		if taken = s.find(tx, name); taken != nil {
			return nil
		}
		if r, err = s.read(tx, key); err != nil {
			return err
		}
		switch {
		case parent == "" || parent == r.info.Parent:
		case r.info.Parent != "":
			return invalid("snapshot %q has the parent %q and cannot be committed onto %q", key, r.info.Parent, parent)
		case !slices.Contains(s.backend.Capabilities(), "rebase"):
			return invalid("snapshotter %s cannot commit a snapshot onto another parent: it lacks the capability \"rebase\"", s.name)
		default:
			above, err := s.read(tx, parent)
			if err != nil {
				return fmt.Errorf("parent %w", err)
			}
			r.info.Parent, p.parent = parent, above.backend
		}
		p.number = s.db.numbers.next(s.name+"\x00"+s.namespace, s.bucket(tx).Sequence())
		p.key = backendKey(s.namespace, p.number, name)
		return nil
	})
	if err != nil || taken == nil {
		return r, p, err
	}
	if p.replaces, err = s.missing(ctx, *taken); err != nil {
		return r, p, err
	}
	if !p.replaces || name == key {
		if err := s.exists(ctx, name); !errors.Is(err, errCollected) {
			return r, p, err
		}
		return s.planCommit(ctx, name, key, parent)
	}
	// A record without a backend snapshot stands in the way: take it and go on.
	if err := s.db.update(ctx, func(tx *bolt.Tx) error { return unlinkSnapshot(s.bucket(tx), name) }); err != nil {
		return r, p, err
	}
	return s.planCommit(ctx, name, key, parent)
}

// Remove removes the record; the backend's snapshot goes with the next
// collection. errdefs.ErrFailedPrecondition when it has children.
func (s *snapshots) Remove(ctx context.Context, key string) error {
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	backend := ""
	if err := s.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		all := s.bucket(tx)
		b := sub(all, key)
		if b == nil {
			return notFound("snapshot", key)
		}
		backend = getString(b, keyName)
		if child := firstChild(all, key); child != "" {
			return fmt.Errorf("snapshot %q is the parent of %q and cannot be removed before it: %w", key, child, errdefs.ErrFailedPrecondition)
		}
		if err := unlinkSnapshot(all, key); err != nil {
			return err
		}
		return s.release(tx, keySnapshots+"/"+s.name, key)
	}); err != nil {
		return err
	}
	s.backend.lost(backend)
	s.publish(ctx, events.SnapshotRemove(s.name, key))
	return nil
}

// firstChild skips links to children that are gone: containerd's collector
// leaves them behind, and a parent would stay for ever.
func firstChild(all *bolt.Bucket, key string) string {
	children := sub(all, key, keyChildren)
	if children == nil {
		return ""
	}
	c := children.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if child := sub(all, string(k)); child != nil && getString(child, keyParent) == key {
			return string(k)
		}
	}
	return ""
}

func (s *snapshots) Walk(ctx context.Context, fn func(object.SnapshotInfo) error, filters ...string) error {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return fmt.Errorf("walk snapshots: %w", err)
	}
	for after := ""; ; {
		var found []snapRecord
		if err := s.db.view(ctx, func(tx *bolt.Tx) error {
			after = page(s.bucket(tx), after, walkPage, func(k []byte, b *bolt.Bucket) {
				if r, err := readSnapshot(string(k), b); err == nil {
					found = append(found, r)
				}
			})
			return nil
		}); err != nil {
			return err
		}
		for _, r := range found {
			info, err := s.backend.Stat(ctx, r.backend)
			if errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return named(r.info.Name, err)
			}
			info = r.over(info)
			if !f.Match(snapshotFields(&info)) {
				continue
			}
			if err := fn(info); err != nil {
				return err
			}
		}
		if after == "" {
			return nil
		}
	}
}

// Close does nothing: the backend belongs to whoever opened it.
func (s *snapshots) Close() error { return nil }

func (s *snapshots) Capabilities() []string { return s.backend.Capabilities() }
func (s *snapshots) Root() string           { return s.backend.Root() }

// Cleanup passes on to a backend that is a snapshot.Cleaner;
// errdefs.ErrNotImplemented when it is not.
func (s *snapshots) Cleanup(ctx context.Context) error {
	if c, ok := s.backend.Backend.(snapshot.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return fmt.Errorf("snapshotter %s has nothing to clean up: %w", s.name, errdefs.ErrNotImplemented)
}

// Sync passes on to a backend that is a snapshot.Syncer; others have nothing
// that a power cut could take.
func (s *snapshots) Sync(ctx context.Context) error {
	if c, ok := s.backend.Backend.(snapshot.Syncer); ok {
		return c.Sync(ctx)
	}
	return nil
}

func snapshotFields(info *object.SnapshotInfo) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			if info.Kind != object.SnapshotUnknown {
				return strings.ToLower(info.Kind.String()), true
			}
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			return filter.Label(info.Labels, path[1:])
		}
		return "", false
	}
}
