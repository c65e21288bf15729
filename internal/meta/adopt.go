package meta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/object"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	// rescueLease holds, in each namespace, what was adopted after a rescue.
	rescueLease = "berth-rescue"
	// rescueLife is how long: time enough to pull or tag again what has lost its
	// name, without fetching its bytes.
	rescueLife = 24 * time.Hour
	// maxManifest bounds what is read of a blob to find out whether it is one.
	maxManifest = 4 << 20
)

// orphan is a backend object that no record names, with the record it gets.
type orphan struct {
	ns       string
	snapshot *snapRecord // with snapshotter and number
	in       string
	number   uint64
	blob     *object.BlobInfo
}

// adoptOrphans makes records for blobs and snapshots that have none any more,
// before the first collection would take them: a lost database costs names,
// not gigabytes. Snapshots carry namespace and key in their backend's name.
// Blobs do not say whose they were: they go to all namespaces, or, where
// namespaces are isolated from each other, to the only one there is.
func (db *DB) adoptOrphans(ctx context.Context) error {
	var found []orphan
	var failed error
	for name, b := range db.backends {
		orphans, err := db.orphanSnapshots(ctx, name, b)
		failed = errors.Join(failed, err)
		found = append(found, orphans...)
	}
	orphans, err := db.orphanBlobs(ctx, found)
	failed = errors.Join(failed, err)
	found = append(found, orphans...)
	if failed != nil {
		// The database is good; what could not be looked at is not adopted.
		db.log.Warn("some of what has no record could not be adopted", "error", failed)
	}
	if len(found) == 0 {
		return nil
	}
	var adopted []string
	if err := db.update(ctx, func(tx *bolt.Tx) error {
		adopted = nil
		for _, o := range found {
			what, err := db.adoptOne(tx, o)
			if err != nil {
				return err
			}
			if what != "" {
				adopted = append(adopted, o.ns+"/"+what)
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("adopt what has no record: %w", err)
	}
	db.report.Adopted = adopted
	return nil
}

// storesHold tells whether there is a blob or a snapshot. With a new database that
// means that one was lost, before it had a backup: without adoption the first
// collection would remove everything, the files of running containers included. A
// store that cannot tell, as a proxy that has not come up, holds nothing that could
// be adopted.
func (db *DB) storesHold(ctx context.Context) bool {
	found := errors.New("found")
	if errors.Is(db.content.store.Walk(ctx, func(object.BlobInfo) error { return found }), found) {
		return true
	}
	for _, b := range db.backends {
		if errors.Is(b.Walk(ctx, func(object.SnapshotInfo) error { return found }), found) {
			return true
		}
	}
	return false
}

func (db *DB) adoptOne(tx *bolt.Tx, o orphan) (what string, err error) {
	scope := db.Scope(o.ns, rescueLease)
	lease, err := ensureInNamespace(tx, o.ns, keyLeases, rescueLease)
	if err != nil {
		return "", err
	}
	if lease.Get([]byte(keyCreatedAt)) == nil {
		if err := putTime(lease, keyCreatedAt, db.now()); err != nil {
			return "", err
		}
		expiry := db.now().Add(rescueLife).Format(time.RFC3339)
		if err := putMap(lease, keyLabels, map[string]string{labelExpire: expiry}); err != nil {
			return "", err
		}
	}
	if o.blob != nil {
		d := o.blob.Digest.String()
		b, err := ensureInNamespace(tx, o.ns, keyContent, keyBlob, d)
		if err != nil {
			return "", err
		}
		if err := errors.Join(putTimes(b, o.blob.CreatedAt, o.blob.UpdatedAt), putInt(b, keySize, o.blob.Size), putMap(b, keyLabels, o.blob.Labels)); err != nil {
			return "", err
		}
		return "content/" + d, scope.hold(tx, keyContent, d)
	}
	s := &snapshots{scope, o.in, db.backends[o.in]}
	r := *o.snapshot
	if sub(s.bucket(tx), r.info.Name) != nil {
		return "", nil
	}
	p := plan{number: o.number}
	if r.info.Parent != "" {
		parent := sub(s.bucket(tx), r.info.Parent)
		if parent == nil {
			return "", nil
		}
		p.parent = getString(parent, keyName)
	}
	return "snapshots/" + o.in + "/" + r.info.Name, s.insert(tx, r, p)
}

func (db *DB) orphanSnapshots(ctx context.Context, name string, b *backend) ([]orphan, error) {
	recorded, err := db.namedSnapshots(ctx, name)
	if err != nil {
		return nil, err
	}
	parents := map[string]string{}
	infos := map[string]object.SnapshotInfo{}
	if err := b.Walk(ctx, func(info object.SnapshotInfo) error {
		parents[info.Name] = info.Parent
		if _, ok := recorded[info.Name]; !ok {
			infos[info.Name] = info
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look for snapshots of %s: %w", name, err)
	}
	keys := make([]string, 0, len(infos))
	for k := range infos {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	keys = slices.Concat(generations(keys, parents)...)
	slices.Reverse(keys)
	var found []orphan
	for _, k := range keys {
		info := infos[k]
		ns, number, key, ok := parseBackendKey(k)
		if !ok {
			continue
		}
		r := snapRecord{backend: k, info: info}
		r.info.Name, r.info.Labels = key, inherited(info.Labels)
		if info.Parent != "" {
			// The parent's record has the key that is in its name, unless it was
			// taken over from another namespace: then the record is missing, and
			// the snapshot is not adopted.
			if _, _, r.info.Parent, ok = parseBackendKey(info.Parent); !ok {
				continue
			}
		}
		found = append(found, orphan{ns: ns, in: name, number: number, snapshot: &r})
	}
	return found, nil
}

// parseBackendKey is the reverse of backendKey.
func parseBackendKey(s string) (ns string, number uint64, key string, ok bool) {
	ns, rest, _ := strings.Cut(s, "/")
	n, key, _ := strings.Cut(rest, "/")
	number, err := strconv.ParseUint(n, 10, 63)
	return ns, number, key, err == nil && checkNamespace(ns) == nil && checkName("key", key) == nil
}

func (db *DB) orphanBlobs(ctx context.Context, others []orphan) ([]orphan, error) {
	recorded, _, err := db.namedBlobs(ctx)
	if err != nil {
		return nil, err
	}
	all, err := db.Namespaces().List(ctx)
	if err != nil {
		return nil, err
	}
	var to []string
	for _, ns := range all {
		to = append(to, ns.Name)
	}
	for _, o := range others {
		to = append(to, o.ns)
	}
	slices.Sort(to)
	to = slices.Compact(to)
	if len(to) == 0 {
		to = []string{"default"}
	}
	if db.isolated && len(to) > 1 {
		return nil, nil
	}
	var found []orphan
	err = db.content.store.Walk(ctx, func(info object.BlobInfo) error {
		if _, ok := recorded[info.Digest.String()]; ok {
			return nil
		}
		info.Labels = db.childLabels(ctx, info)
		for _, ns := range to {
			found = append(found, orphan{ns: ns, blob: &info})
		}
		return nil
	})
	return found, err
}

// childLabels are the references of a blob that is an index or a manifest, as
// the one who pulled it had set them.
func (db *DB) childLabels(ctx context.Context, info object.BlobInfo) map[string]string {
	if info.Size > maxManifest {
		return nil
	}
	r, err := db.content.store.ReaderAt(ctx, ispec.Descriptor{Digest: info.Digest, Size: info.Size})
	if err != nil {
		return nil
	}
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, info.Size))
	if err != nil || !bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return nil
	}
	var doc struct {
		Manifests []ispec.Descriptor `json:"manifests"`
		Config    ispec.Descriptor   `json:"config"`
		Layers    []ispec.Descriptor `json:"layers"`
	}
	if json.Unmarshal(b, &doc) != nil {
		return nil
	}
	labels := map[string]string{}
	add := func(name string, d ispec.Descriptor) {
		if d.Digest.Validate() == nil {
			labels["containerd.io/gc.ref.content."+name] = d.Digest.String()
		}
	}
	add("config", doc.Config)
	for i, d := range doc.Layers {
		add(fmt.Sprintf("l.%d", i), d)
	}
	for i, d := range doc.Manifests {
		add(fmt.Sprintf("m.%d", i), d)
	}
	return labels
}
