package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

func (s *snapshots) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	m, err := s.create(ctx, key, parent, labels, s.backend.Prepare)
	if err == nil {
		s.publish(ctx, events.SnapshotPrepare(s.name, key, parent))
	}
	return m, err
}

// View publishes no event, as in containerd.
func (s *snapshots) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return s.create(ctx, key, parent, labels, s.backend.View)
}

type createFunc func(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error)

// create makes the snapshot in the backend, then the record. While there is no
// record yet, the claim keeps the collector away.
func (s *snapshots) create(ctx context.Context, key, parent string, labels map[string]string, inBackend createFunc) ([]object.Mount, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := checkName("snapshot key", key); err != nil {
		return nil, err
	}
	if err := checkLabels(labels); err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	plan, mounts, release, err := s.make(ctx, key, parent, labels, inBackend)
	if err != nil {
		return nil, err
	}
	defer release()
	failpoint.Hit("meta.snapshot.made")
	now := s.db.now()
	r := snapRecord{plan.key, object.SnapshotInfo{
		Name: key, Parent: parent, Labels: withoutEmpty(labels), Created: now, Updated: now,
	}}
	if err := s.db.update(ctx, func(tx *bolt.Tx) error { return s.insert(tx, r, plan) }); err != nil {
		s.backend.dirty.Store(true)
		return nil, errors.Join(err, s.backend.Remove(context.WithoutCancel(ctx), plan.key))
	}
	return mounts, nil
}

// maxTaken bounds how many numbers a crash may have left used in the backend.
const maxTaken = 100

// make makes the snapshot in the backend, under a number that it does not have
// yet. The claim on it is the caller's until it calls release.
func (s *snapshots) make(ctx context.Context, key, parent string, labels map[string]string, inBackend createFunc) (p plan, mounts []object.Mount, release func(), err error) {
	target := labels[snapshot.LabelRef]
	for range maxTaken {
		p, err = s.plan(ctx, key, parent, target)
		if errors.Is(err, errCollected) {
			continue
		}
		if err != nil {
			return p, nil, nil, err
		}
		claim := s.backend.claim(p.key)
		if err := s.db.claims.hold(ctx, claim); err != nil {
			return p, nil, nil, err
		}
		release = func() { s.db.claims.release(claim) }
		mounts, err = inBackend(ctx, p.key, p.parent, inherited(labels))
		if err == nil {
			return p, mounts, release, nil
		}
		release()
		if !errdefs.IsAlreadyExists(err) {
			break
		}
		if _, serr := s.backend.Stat(ctx, p.key); serr != nil && target != "" {
			return p, nil, nil, s.adopt(ctx, target, parent, p.parent, labels)
		}
		s.backend.dirty.Store(true)
	}
	return p, nil, nil, named(key, err)
}

// plan is what create finds before it calls the backend.
type plan struct {
	key, parent string // in the backend
	number      uint64
	replaces    bool // there is a record without a backend snapshot
}

func (s *snapshots) plan(ctx context.Context, key, parent, target string) (p plan, err error) {
	var taken, targetTaken *snapRecord
	var orphan error // told only where the names are free
	if err := s.db.view(ctx, func(tx *bolt.Tx) error {
		taken, targetTaken = s.find(tx, key), s.find(tx, target)
		if parent != "" {
			r, err := s.read(tx, parent)
			if err != nil {
				orphan = fmt.Errorf("parent %w", err)
			}
			p.parent = r.backend
		}
		var used uint64
		if b := s.bucket(tx); b != nil {
			used = b.Sequence()
		}
		p.number = s.db.numbers.next(s.name+"\x00"+s.namespace, used)
		p.key = backendKey(s.namespace, p.number, key)
		return nil
	}); err != nil {
		return p, err
	}
	if targetTaken != nil {
		if missing, err := s.missing(ctx, *targetTaken); err != nil || !missing {
			return p, errors.Join(err, s.exists(ctx, target))
		}
	}
	if taken != nil {
		if p.replaces, err = s.missing(ctx, *taken); err != nil || !p.replaces {
			return p, errors.Join(err, s.exists(ctx, key))
		}
	}
	return p, orphan
}

func (s *snapshots) find(tx *bolt.Tx, key string) *snapRecord {
	if sub(s.bucket(tx), key) == nil {
		return nil
	}
	r, _ := s.read(tx, key) // what cannot be read has no backend key, and is missing
	return &r
}

// missing tells whether the backend has lost the snapshot of a record.
func (s *snapshots) missing(ctx context.Context, r snapRecord) (bool, error) {
	if r.backend == "" {
		return true, nil
	}
	_, err := s.backend.Stat(ctx, r.backend)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// errCollected says that a record is not there any more that was a moment ago.
var errCollected = fmt.Errorf("collected meanwhile: %w", errdefs.ErrAborted)

// exists adds the snapshot to the lease, so that the caller that is told of it
// can rely on it, and returns errdefs.ErrAlreadyExists; errCollected when the
// collector was quicker.
func (s *snapshots) exists(ctx context.Context, key string) error {
	if s.lease != "" {
		if err := s.db.update(ctx, func(tx *bolt.Tx) error {
			if sub(s.bucket(tx), key) == nil {
				return errCollected
			}
			s.db.touch(s.node(key))
			return s.hold(tx, keySnapshots+"/"+s.name, key)
		}); err != nil {
			return err
		}
	}
	return fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
}

// insert writes the record of a new snapshot and links it to its parent.
func (s *snapshots) insert(tx *bolt.Tx, r snapRecord, p plan) error {
	all, err := ensureInNamespace(tx, s.namespace, keySnapshots, s.name)
	if err != nil {
		return err
	}
	key := r.info.Name
	if p.replaces {
		if err := unlinkSnapshot(all, key); err != nil {
			return err
		}
	}
	if parent := r.info.Parent; parent != "" {
		pb := sub(all, parent)
		if pb == nil {
			return notFound("parent snapshot", parent)
		}
		if getString(pb, keyName) != p.parent {
			return fmt.Errorf("parent snapshot %q was replaced meanwhile: %w", parent, errdefs.ErrAborted)
		}
		if err := linkChild(all, parent, key); err != nil {
			return err
		}
	}
	s.db.touch(s.node(key))
	if err := s.hold(tx, keySnapshots+"/"+s.name, key); err != nil {
		return err
	}
	if p.number > all.Sequence() {
		if err := all.SetSequence(p.number); err != nil {
			return err
		}
	}
	b, err := create(all, "snapshot", key)
	if err != nil {
		return err
	}
	return putSnapshot(b, r)
}

func putSnapshot(b *bolt.Bucket, r snapRecord) error {
	if err := putString(b, keyName, r.backend); err != nil {
		return err
	}
	if r.info.Parent != "" {
		if err := putString(b, keyParent, r.info.Parent); err != nil {
			return err
		}
	}
	if err := putTimes(b, r.info.Created, r.info.Updated); err != nil {
		return err
	}
	return putMap(b, keyLabels, r.info.Labels)
}

func linkChild(all *bolt.Bucket, parent, child string) error {
	pb := sub(all, parent)
	if pb == nil {
		return nil
	}
	children, err := ensure(pb, keyChildren)
	if err != nil {
		return err
	}
	return children.Put([]byte(child), nil)
}

// unlinkSnapshot removes a record, if it is there, and its parent's link to it.
func unlinkSnapshot(all *bolt.Bucket, key string) error {
	b := sub(all, key)
	if b == nil {
		return nil
	}
	if children := sub(all, getString(b, keyParent), keyChildren); children != nil {
		if err := children.Delete([]byte(key)); err != nil {
			return err
		}
	}
	return all.DeleteBucket([]byte(key))
}

// adopt records a snapshot that the backend has for the target, made for
// another namespace or by a remote snapshotter, and answers
// errdefs.ErrAlreadyExists: the caller need not make it.
func (s *snapshots) adopt(ctx context.Context, target, parent, backendParent string, labels map[string]string) error {
	var found *object.SnapshotInfo
	if err := s.backend.Walk(ctx, func(info object.SnapshotInfo) error {
		if found == nil && info.Kind == object.SnapshotCommitted &&
			info.Labels[snapshot.LabelRef] == target && info.Parent == backendParent {
			found = &info
		}
		return nil
	}, fmt.Sprintf("labels.%q==%q,parent==%q", snapshot.LabelRef, target, backendParent)); err != nil {
		return fmt.Errorf("look for snapshot %q in the backend: %w", target, err)
	}
	if found == nil {
		return fmt.Errorf("the backend says that it has snapshot %q above %q, but does not list it: %w", target, parent, errdefs.ErrNotFound)
	}
	claim := s.backend.claim(found.Name)
	if err := s.db.claims.hold(ctx, claim); err != nil {
		return err
	}
	defer s.db.claims.release(claim)
	if _, err := s.backend.Stat(ctx, found.Name); err != nil {
		return named(target, err) // collected before the claim
	}
	all := maps.Clone(found.Labels)
	maps.Copy(all, labels)
	r := snapRecord{found.Name, object.SnapshotInfo{
		Name: target, Parent: parent, Labels: withoutEmpty(all), Created: found.Created, Updated: found.Updated,
	}}
	if err := s.db.update(ctx, func(tx *bolt.Tx) error {
		return s.insert(tx, r, plan{parent: backendParent})
	}); err != nil {
		return err
	}
	return fmt.Errorf("snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}
