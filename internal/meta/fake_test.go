package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/filter"
	"berth/internal/object"
	"berth/internal/snapshot"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeSnapshots is a snapshotter in memory that follows the contract, and can
// be made to hang, to fail and to lose things.
type fakeSnapshots struct {
	mu        sync.Mutex
	all       map[string]object.SnapshotInfo
	noRebase  bool
	onRemove  func(ctx context.Context, key string) error
	onCommit  func()
	onPrepare func()
	onStat    func()
	removed   []string
	walks     int
}

func newFakeSnapshots() *fakeSnapshots {
	return &fakeSnapshots{all: map[string]object.SnapshotInfo{}}
}

func (f *fakeSnapshots) get(key string) (object.SnapshotInfo, error) {
	info, ok := f.all[key]
	if !ok {
		return info, fmt.Errorf("backend snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	return info, nil
}

func (f *fakeSnapshots) Stat(_ context.Context, key string) (object.SnapshotInfo, error) {
	if f.onStat != nil {
		defer f.onStat()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.get(key)
}

func (f *fakeSnapshots) Update(_ context.Context, info object.SnapshotInfo, paths ...string) (object.SnapshotInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stored, err := f.get(info.Name)
	if err != nil {
		return stored, err
	}
	if len(paths) == 0 {
		paths = []string{"labels"}
	}
	if err := updateLabels("backend", &stored.Labels, info.Labels, paths); err != nil {
		return stored, err
	}
	f.all[info.Name] = stored
	return stored, nil
}

func (f *fakeSnapshots) Usage(_ context.Context, key string) (object.SnapshotUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.get(key)
	return object.SnapshotUsage{Inodes: 1, Size: 4096}, err
}

func (f *fakeSnapshots) Mounts(_ context.Context, key string) ([]object.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.get(key)
	return []object.Mount{{Type: "fake", Source: key}}, err
}

func (f *fakeSnapshots) create(kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	if f.onPrepare != nil {
		f.onPrepare()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if target := labels[snapshot.LabelRef]; target != "" {
		for _, info := range f.all {
			if info.Kind == object.SnapshotCommitted && info.Labels[snapshot.LabelRef] == target {
				return nil, fmt.Errorf("target: %w", errdefs.ErrAlreadyExists)
			}
		}
	}
	if _, ok := f.all[key]; ok {
		return nil, fmt.Errorf("backend snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	if parent != "" {
		p, err := f.get(parent)
		if err != nil {
			return nil, err
		}
		if p.Kind != object.SnapshotCommitted {
			return nil, fmt.Errorf("parent is not committed: %w", errdefs.ErrInvalidArgument)
		}
	}
	f.all[key] = object.SnapshotInfo{Kind: kind, Name: key, Parent: parent, Labels: maps.Clone(labels), Created: time.Now(), Updated: time.Now()}
	return []object.Mount{{Type: "fake", Source: key}}, nil
}

func (f *fakeSnapshots) Prepare(_ context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return f.create(object.SnapshotActive, key, parent, labels)
}

func (f *fakeSnapshots) View(_ context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return f.create(object.SnapshotView, key, parent, labels)
}

func (f *fakeSnapshots) Commit(_ context.Context, name, key string, opts snapshot.CommitOptions) error {
	if f.onCommit != nil {
		f.onCommit()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.get(key)
	if err != nil {
		return err
	}
	if _, ok := f.all[name]; ok {
		return fmt.Errorf("backend snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	if info.Kind != object.SnapshotActive {
		return fmt.Errorf("backend snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	if opts.Parent != "" {
		if _, err := f.get(opts.Parent); err != nil {
			return err
		}
		info.Parent = opts.Parent
	}
	delete(f.all, key)
	info.Name, info.Kind, info.Labels = name, object.SnapshotCommitted, maps.Clone(opts.Labels)
	f.all[name] = info
	return nil
}

func (f *fakeSnapshots) Remove(ctx context.Context, key string) error {
	if f.onRemove != nil {
		if err := f.onRemove(ctx, key); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.get(key); err != nil {
		return err
	}
	for _, info := range f.all {
		if info.Parent == key {
			return fmt.Errorf("has children: %w", errdefs.ErrFailedPrecondition)
		}
	}
	delete(f.all, key)
	f.removed = append(f.removed, key)
	return nil
}

func (f *fakeSnapshots) Walk(_ context.Context, fn func(object.SnapshotInfo) error, filters ...string) error {
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.walks++
	all := maps.Clone(f.all)
	f.mu.Unlock()
	for _, info := range all {
		if match.Match(snapshotFields(&info)) {
			if err := fn(info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fakeSnapshots) Close() error { return nil }
func (f *fakeSnapshots) Root() string { return "/fake" }
func (f *fakeSnapshots) Capabilities() []string {
	if f.noRebase {
		return nil
	}
	return []string{"rebase"}
}

func (f *fakeSnapshots) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for k := range f.all {
		keys = append(keys, k)
	}
	return keys
}

// fixture is a database with a real content store and a fake snapshotter.
// Nothing is collected but by Collect, unless a test says otherwise.
type fixture struct {
	*DB
	dir       string
	store     content.Store
	snapshots *fakeSnapshots
	options   func(*Options)
}

func newFixture(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	dir := t.TempDir()
	store, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(dir, "content")})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{dir: dir, store: store, snapshots: newFakeSnapshots(), options: func(o *Options) {
		for _, c := range change {
			c(o)
		}
	}}
	f.open(t)
	t.Cleanup(func() {
		if f.DB != nil {
			f.close(t)
		}
	})
	return f
}

func (f *fixture) path() string { return filepath.Join(f.dir, "meta.db") }

func (f *fixture) open(t testing.TB) {
	t.Helper()
	opts := Options{
		Path:         f.path(),
		Content:      f.store,
		Snapshotters: map[string]snapshot.Backend{"fake": f.snapshots},
		Events:       events.New(),
		GC:           &GCOptions{StartupDelay: time.Hour},
	}
	f.options(&opts)
	db, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	f.DB = db
}

func (f *fixture) close(t testing.TB) {
	t.Helper()
	db := f.DB
	f.DB = nil
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (f *fixture) reopen(t testing.TB) {
	t.Helper()
	f.close(t)
	f.open(t)
}

func (f *fixture) snapshotter(t testing.TB, ns, lease string) *snapshots {
	t.Helper()
	s, err := f.Scope(ns, lease).Snapshotter("fake")
	if err != nil {
		t.Fatal(err)
	}
	return s.(*snapshots)
}

func putBlob(t testing.TB, s Scope, text string, labels map[string]string) digest.Digest {
	t.Helper()
	d := digest.FromString(text)
	w, err := s.Content().Writer(t.Context(), content.WriteOptions{Ref: "put-" + d.Encoded(), Size: int64(len(text)), Expected: d})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := w.Status(); err != nil || st.Offset == 0 {
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context(), int64(len(text)), d, labels); err != nil {
		t.Fatal(err)
	}
	return d
}

func testImage(name string, target digest.Digest) object.Image {
	return object.Image{Name: name, Target: ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: target, Size: 10}}
}

func testContainer(id string) object.Container {
	return object.Container{ID: id, Runtime: object.Runtime{Name: "io.containerd.runc.v2"}, Spec: &object.Any{TypeURL: "spec", Value: []byte(`{"a":1}`)}}
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

func hasPrefix(all []string, prefix string) bool {
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}
