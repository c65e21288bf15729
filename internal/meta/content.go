package meta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	// ingestLife is how long an ingest that no lease holds may rest.
	ingestLife = 24 * time.Hour
	// walkPage is how many records a walk reads at a time: no transaction is
	// open while the caller's function runs.
	walkPage = 128
)

// blobs is the content store as a namespace sees it. The bytes are shared by
// all namespaces; what belongs to one is the record of each blob.
type blobs struct{ Scope }

// Info describes a blob; errdefs.ErrNotFound when the namespace has none, or the
// store has lost its bytes (after a power cut those that are wrong are removed).
// The record then stays, with its references, and the blob can be written again.
func (s blobs) Info(ctx context.Context, d digest.Digest) (info object.BlobInfo, err error) {
	if err := checkDigest(d); err != nil {
		return info, err
	}
	if err = s.db.view(ctx, func(tx *bolt.Tx) error {
		info, err = s.read(tx, d)
		return err
	}); err != nil {
		return info, err
	}
	if _, err := s.db.content.store.Info(ctx, d); errdefs.IsNotFound(err) {
		return object.BlobInfo{}, fmt.Errorf("%w: the store has lost its bytes", err)
	}
	return info, nil
}

func (s blobs) Update(ctx context.Context, info object.BlobInfo, fieldpaths ...string) (updated object.BlobInfo, err error) {
	if err := checkDigest(info.Digest); err != nil {
		return updated, err
	}
	if len(fieldpaths) == 0 {
		fieldpaths = []string{keyLabels}
	}
	err = s.db.update(ctx, func(tx *bolt.Tx) error {
		if updated, err = s.read(tx, info.Digest); err != nil {
			return err
		}
		if err := checkLabels(info.Labels); err != nil {
			return fmt.Errorf("content %s: %w", info.Digest, err)
		}
		if err := updateLabels("content "+info.Digest.String(), &updated.Labels, info.Labels, fieldpaths); err != nil {
			return err
		}
		s.db.touch(node{kindContent, s.namespace, info.Digest.String()})
		updated.UpdatedAt = s.db.now()
		b := s.bucket(tx, info.Digest)
		if err := putTime(b, keyUpdatedAt, updated.UpdatedAt); err != nil {
			return err
		}
		return putMap(b, keyLabels, updated.Labels)
	})
	if err != nil {
		return object.BlobInfo{}, err
	}
	return updated, nil
}

func (s blobs) Walk(ctx context.Context, fn func(object.BlobInfo) error, filters ...string) error {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return fmt.Errorf("walk content: %w", err)
	}
	for after := ""; ; {
		var found []object.BlobInfo
		if err := s.db.view(ctx, func(tx *bolt.Tx) error {
			after = page(inNamespace(tx, s.namespace, keyContent, keyBlob), after, walkPage, func(k []byte, b *bolt.Bucket) {
				if info, err := readBlob(digest.Digest(k), b); err == nil && f.Match(blobFields(&info)) {
					found = append(found, info)
				}
			})
			return nil
		}); err != nil {
			return err
		}
		for _, info := range found {
			if err := fn(info); err != nil {
				return err
			}
		}
		if after == "" {
			return nil
		}
	}
}

// Delete removes the namespace's record; the bytes go with the next
// collection, unless another namespace has the blob.
func (s blobs) Delete(ctx context.Context, d digest.Digest) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	if err := s.db.updateRemoving(ctx, func(tx *bolt.Tx) error {
		if err := remove(inNamespace(tx, s.namespace, keyContent, keyBlob), "content", d.String()); err != nil {
			return err
		}
		return s.release(tx, keyContent, d.String())
	}); err != nil {
		return err
	}
	s.db.content.dirty.Store(true)
	s.publish(ctx, events.ContentDelete(d))
	return nil
}

func (s blobs) ReaderAt(ctx context.Context, desc ispec.Descriptor) (content.ReaderAt, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	if err := s.db.view(ctx, func(tx *bolt.Tx) error {
		if s.bucket(tx, desc.Digest) == nil {
			return notFound("content", desc.Digest.String())
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return s.db.content.store.ReaderAt(ctx, desc)
}

func (s blobs) bucket(tx *bolt.Tx, d digest.Digest) *bolt.Bucket {
	return inNamespace(tx, s.namespace, keyContent, keyBlob, d.String())
}

func (s blobs) read(tx *bolt.Tx, d digest.Digest) (object.BlobInfo, error) {
	b := s.bucket(tx, d)
	if b == nil {
		return object.BlobInfo{}, notFound("content", d.String())
	}
	info, err := readBlob(d, b)
	if err != nil {
		return info, fmt.Errorf("content %s: %w", d, err)
	}
	return info, nil
}

func readBlob(d digest.Digest, b *bolt.Bucket) (object.BlobInfo, error) {
	info := object.BlobInfo{Digest: d, Size: getInt(b, keySize), Labels: getMap(b, keyLabels)}
	return info, getTimes(b, &info.CreatedAt, &info.UpdatedAt)
}

// ingest is the record of an ingest.
type ingest struct {
	ref, backend string
	// expected is set while the ingest stands for a blob of the backend.
	expected digest.Digest
}

func readIngest(ref string, b *bolt.Bucket) ingest {
	return ingest{ref, getString(b, keyRef), digest.Digest(getString(b, keyExpected))}
}

func (s blobs) Status(ctx context.Context, ref string) (object.IngestStatus, error) {
	var in ingest
	if err := s.db.view(ctx, func(tx *bolt.Tx) error {
		b := inNamespace(tx, s.namespace, keyContent, keyIngests, ref)
		if b == nil {
			return notFound("ingest", ref)
		}
		in = readIngest(ref, b)
		return nil
	}); err != nil {
		return object.IngestStatus{}, err
	}
	return s.status(ctx, in)
}

// status asks the backend. An ingest that stands for a blob is complete.
func (s blobs) status(ctx context.Context, in ingest) (object.IngestStatus, error) {
	st, err := s.db.content.store.Status(ctx, in.backend)
	if errdefs.IsNotFound(err) && in.expected != "" {
		info, err := s.db.content.store.Info(ctx, in.expected)
		if err != nil {
			return st, notFound("ingest", in.ref)
		}
		return object.IngestStatus{
			Ref: in.ref, Offset: info.Size, Total: info.Size, Expected: in.expected,
			StartedAt: info.CreatedAt, UpdatedAt: info.UpdatedAt,
		}, nil
	}
	if errdefs.IsNotFound(err) {
		return st, notFound("ingest", in.ref)
	}
	st.Ref = in.ref
	return st, err
}

func (s blobs) ListStatuses(ctx context.Context, filters ...string) ([]object.IngestStatus, error) {
	f, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, fmt.Errorf("list ingests: %w", err)
	}
	var found []ingest
	if err := s.db.view(ctx, func(tx *bolt.Tx) error {
		return records(inNamespace(tx, s.namespace, keyContent, keyIngests), func(ref []byte, b *bolt.Bucket) error {
			in := readIngest(string(ref), b)
			if f.Match(filter.AdaptorFunc(func(path []string) (string, bool) {
				return in.ref, len(path) > 0 && path[0] == "ref"
			})) {
				found = append(found, in)
			}
			return nil
		})
	}); err != nil {
		return nil, err
	}
	var all []object.IngestStatus
	for _, in := range found {
		st, err := s.status(ctx, in)
		if errdefs.IsNotFound(err) {
			continue // ended meanwhile, or its writer never came to open it
		}
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

// Abort removes the record first: a crash then leaves an ingest in the backend
// that no record names, which the collector takes.
func (s blobs) Abort(ctx context.Context, ref string) error {
	var in ingest
	if err := s.db.update(ctx, func(tx *bolt.Tx) error {
		all := inNamespace(tx, s.namespace, keyContent, keyIngests)
		if b := sub(all, ref); b != nil {
			in = readIngest(ref, b)
		}
		if err := remove(all, "ingest", ref); err != nil {
			return err
		}
		return s.release(tx, keyIngests, ref)
	}); err != nil {
		return err
	}
	if err := s.db.content.store.Abort(ctx, in.backend); err != nil && !errdefs.IsNotFound(err) {
		s.db.content.dirty.Store(true)
		return fmt.Errorf("abort ingest %q: %w", ref, err)
	}
	return nil
}

// Writer opens an ingest. Under the shared policy, an expected blob that the
// backend has, for whichever namespace, need not be written: the writer is
// complete at once and its commit only makes the record.
func (s blobs) Writer(ctx context.Context, opts content.WriteOptions) (content.Writer, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := checkName("ingest reference", opts.Ref); err != nil {
		return nil, err
	}
	var there inBackend
	if opts.Expected != "" {
		if err := checkDigest(opts.Expected); err != nil {
			return nil, err
		}
		// From the look at the backend until the record names the blob.
		claim := contentClaim(opts.Expected)
		if err := s.db.claims.hold(ctx, claim); err != nil {
			return nil, err
		}
		defer s.db.claims.release(claim)
		var err error
		if there, err = s.look(ctx, opts); err != nil {
			return nil, err
		}
	}
	in, isNew, err := s.begin(ctx, opts, there)
	if err != nil {
		return nil, err
	}
	w := &writer{scope: s, in: in, size: there.size, opened: s.db.now()}
	if in.expected != "" {
		return w, nil
	}
	w.out, err = s.db.content.store.Writer(ctx, content.WriteOptions{Ref: in.backend, Size: opts.Size})
	if err != nil && isNew && !errdefs.IsUnavailable(err) { // else another was faster to open what this one has recorded
		err = errors.Join(err, s.forget(ctx, in))
	}
	if err != nil {
		return nil, fmt.Errorf("open ingest %q: %w", opts.Ref, err)
	}
	return w, nil
}

// inBackend is what the backend has of an expected blob.
type inBackend struct {
	size   int64
	shared bool // it may be taken over
	lost   bool // the namespace has a record of it, the backend no bytes
}

// look looks for the expected blob in the backend. errdefs.ErrAlreadyExists when
// the namespace has it and no lease is to hold it.
func (s blobs) look(ctx context.Context, opts content.WriteOptions) (there inBackend, err error) {
	allowed, recorded := !s.db.isolated, false
	if err := s.db.view(ctx, func(tx *bolt.Tx) error {
		recorded = s.bucket(tx, opts.Expected) != nil
		allowed = allowed || isShareable(tx, opts.Expected)
		return nil
	}); err != nil || !allowed && !recorded {
		return there, err
	}
	info, err := s.db.content.store.Info(ctx, opts.Expected)
	switch {
	case errdefs.IsNotFound(err):
		return inBackend{lost: recorded}, nil
	case err != nil:
		return there, err
	case recorded && s.lease == "":
		return there, alreadyExists(opts.Expected)
	case opts.Size != 0 && opts.Size != info.Size:
		return there, nil // a wrong size comes to light at the commit
	}
	return inBackend{size: info.Size, shared: allowed}, nil
}

// begin finds or makes the record of the ingest.
func (s blobs) begin(ctx context.Context, opts content.WriteOptions, there inBackend) (in ingest, isNew bool, err error) {
	exists := false
	err = s.db.update(ctx, func(tx *bolt.Tx) error {
		exists = opts.Expected != "" && !there.lost && s.bucket(tx, opts.Expected) != nil
		if exists {
			s.db.touch(node{kindContent, s.namespace, opts.Expected.String()})
			return s.hold(tx, keyContent, opts.Expected.String())
		}
		all, err := ensureInNamespace(tx, s.namespace, keyContent, keyIngests)
		if err != nil {
			return err
		}
		b, err := ensure(all, opts.Ref)
		if err != nil {
			return err
		}
		s.db.touch(node{kindIngest, s.namespace, opts.Ref})
		if err := s.hold(tx, keyIngests, opts.Ref); err != nil {
			return err
		}
		if isNew = b.Get([]byte(keyRef)) == nil; isNew {
			// Never used before, not in a namespace of this name that was deleted
			// either, so that nothing is found in the backend that an earlier ingest
			// of this name left. containerd's numbers are all 1.
			n := s.db.numbers.next("ingests\x00"+s.namespace, max(1, all.Sequence()))
			if err := all.SetSequence(n); err != nil {
				return err
			}
			if err := putString(b, keyRef, backendKey(s.namespace, n, opts.Ref)); err != nil {
				return err
			}
		}
		if s.lease == "" {
			expiry := s.db.now().Add(ingestLife)
			s.db.sched.expireAt(expiry)
			if err := putTime(b, keyExpireAt, expiry); err != nil {
				return err
			}
		}
		in = readIngest(opts.Ref, b)
		if there.shared && isNew {
			in.expected = opts.Expected
			return putString(b, keyExpected, opts.Expected.String())
		}
		if in.expected != "" && in.expected != opts.Expected {
			in.expected = "" // the reference is used for something else now
			return b.Delete([]byte(keyExpected))
		}
		return nil
	})
	if err == nil && exists {
		err = alreadyExists(opts.Expected)
	}
	return in, isNew, err
}

// forget removes the record of an ingest that could not be opened.
func (s blobs) forget(ctx context.Context, in ingest) error {
	return s.db.update(context.WithoutCancel(ctx), func(tx *bolt.Tx) error { return s.end(tx, in) })
}

// end removes the record of an ingest, unless that was aborted and the reference
// is another ingest's by now.
func (s blobs) end(tx *bolt.Tx, in ingest) error {
	all := inNamespace(tx, s.namespace, keyContent, keyIngests)
	if b := sub(all, in.ref); b != nil && getString(b, keyRef) != in.backend {
		return nil
	}
	if err := drop(all, in.ref); err != nil {
		return err
	}
	return s.release(tx, keyIngests, in.ref)
}

// isShareable tells whether a namespace that shares its blobs has this one.
func isShareable(tx *bolt.Tx, d digest.Digest) (found bool) {
	_ = records(tx.Bucket([]byte(schemaVersion)), func(_ []byte, ns *bolt.Bucket) error {
		labels := sub(ns, keyLabels)
		found = found || labels != nil && getString(labels, labelShareable) == "true" &&
			sub(ns, keyContent, keyBlob, d.String()) != nil
		return nil
	})
	return found
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return invalid("digest %.200q: %v", string(d), err)
	}
	return nil
}

func alreadyExists(d digest.Digest) error {
	return fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
}

// backendKey is the name of an object of one namespace in a backend that all share.
func backendKey(namespace string, n uint64, key string) string {
	return fmt.Sprintf("%s/%d/%s", namespace, n, key)
}

func contentClaim(d digest.Digest) string { return "content " + d.String() }

func blobFields(info *object.BlobInfo) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "digest":
			return present(info.Digest.String())
		case "size":
			return fmt.Sprint(info.Size), true
		case "labels":
			return filter.Label(info.Labels, path[1:])
		}
		return "", false
	}
}
