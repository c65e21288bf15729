package transfer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/image"
	"berth/internal/object"
	"berth/internal/registry"
	"berth/internal/registry/registrytest"
	"berth/internal/snapshot"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stores are the stores of one namespace, in memory but for the blobs.
type stores struct {
	t    testing.TB
	root string
	*labelled
	images *images
	leases *leases
	snaps  *snaps
	diff   *differ
	svc    *transfer.Service
}

func newStores(t testing.TB, change ...func(*stores, *transfer.Options)) *stores {
	root := t.TempDir()
	local, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	s := &stores{
		t: t, root: root, labelled: &labelled{Local: local, labels: map[digest.Digest]map[string]string{}},
		images: &images{m: map[string]object.Image{}}, leases: &leases{m: map[string]object.Lease{}},
		snaps: &snaps{root: filepath.Join(root, "snapshots"), m: map[string]*snap{}, caps: []string{"rebase"}},
		diff:  &differ{},
	}
	opts := transfer.Options{Differ: s.diff, Snapshotter: "fake", TempDir: root, Scope: func(ns, lease string) transfer.Stores {
		return transfer.Stores{Namespace: ns, Images: s.images, Leases: s.leases, Content: s, Snapshotter: func(name string) (snapshot.Backend, error) {
			if name != "fake" {
				return nil, fmt.Errorf("snapshotter %q: %w", name, errdefs.ErrNotFound)
			}
			return s.snaps, nil
		}}
	}}
	for _, c := range change {
		c(s, &opts)
	}
	s.svc = transfer.New(opts)
	return s
}

// clean checks that a transfer left nothing behind but what is whole.
func (s *stores) clean() {
	s.t.Helper()
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	for k, sn := range s.snaps.m {
		if sn.info.Kind != object.SnapshotCommitted {
			s.t.Errorf("snapshot %q stayed behind", k)
		}
	}
	if len(s.leases.m) > 0 {
		s.t.Errorf("leases stayed behind: %v", s.leases.m)
	}
	s.Walk(context.Background(), func(b object.BlobInfo) error {
		ra, err := s.ReaderAt(context.Background(), ispec.Descriptor{Digest: b.Digest})
		if err != nil {
			return err
		}
		defer ra.Close()
		if d, _ := digest.FromReader(io.NewSectionReader(ra, 0, ra.Size())); d != b.Digest {
			s.t.Errorf("blob %s has the digest %s", b.Digest, d)
		}
		return nil
	})
}

// labelled is a local content store with labels.
type labelled struct {
	*content.Local
	mu     sync.Mutex
	labels map[digest.Digest]map[string]string
}

func (l *labelled) Info(ctx context.Context, d digest.Digest) (object.BlobInfo, error) {
	i, err := l.Local.Info(ctx, d)
	l.mu.Lock()
	defer l.mu.Unlock()
	i.Labels = maps.Clone(l.labels[d])
	return i, err
}

func (l *labelled) Update(ctx context.Context, info object.BlobInfo, paths ...string) (object.BlobInfo, error) {
	if _, err := l.Local.Info(ctx, info.Digest); err != nil {
		return info, err
	}
	l.set(info.Digest, info.Labels, paths)
	return l.Info(ctx, info.Digest)
}

func (l *labelled) set(d digest.Digest, labels map[string]string, paths []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.labels[d] == nil {
		l.labels[d] = map[string]string{}
	}
	for k, v := range labels {
		if paths == nil || slices.Contains(paths, "labels."+k) {
			l.labels[d][k] = v
		}
	}
}

func (l *labelled) Writer(ctx context.Context, opts content.WriteOptions) (content.Writer, error) {
	w, err := l.Local.Writer(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &labelWriter{w, l}, nil
}

type labelWriter struct {
	content.Writer
	l *labelled
}

func (w *labelWriter) Commit(ctx context.Context, size int64, d digest.Digest, labels map[string]string) error {
	got := w.Digest()
	err := w.Writer.Commit(ctx, size, d, labels)
	if err == nil {
		w.l.set(got, labels, nil)
	}
	return err
}

type images struct {
	mu sync.Mutex
	m  map[string]object.Image
}

func (i *images) Get(_ context.Context, name string) (object.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	img, ok := i.m[name]
	if !ok {
		return img, fmt.Errorf("image %q: %w", name, errdefs.ErrNotFound)
	}
	return img, nil
}

func (i *images) List(context.Context, ...string) ([]object.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Values(i.m)), nil
}

func (i *images) Create(_ context.Context, img object.Image) (object.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.m[img.Name]; ok {
		return img, errdefs.ErrAlreadyExists
	}
	i.m[img.Name] = img
	return img, nil
}

func (i *images) Update(_ context.Context, img object.Image, _ ...string) (object.Image, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.m[img.Name] = img
	return img, nil
}

type leases struct {
	mu sync.Mutex
	m  map[string]object.Lease
}

func (l *leases) Create(_ context.Context, lease object.Lease) (object.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[lease.ID] = lease
	return lease, nil
}

func (l *leases) Delete(_ context.Context, id string, _ bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, id)
	return nil
}

// snaps is a snapshotter whose snapshots are directories that hold one layer each.
type snaps struct {
	mu    sync.Mutex
	root  string
	m     map[string]*snap
	n     int
	caps  []string
	syncs int
	// fail makes an operation fail.
	fail func(op, key string) error
}

type snap struct {
	info object.SnapshotInfo
	dir  string
}

func (s *snaps) failing(op, key string) error {
	if s.fail != nil {
		return s.fail(op, key)
	}
	return nil
}

func (s *snaps) Capabilities() []string { return s.caps }
func (s *snaps) Root() string           { return s.root }
func (s *snaps) Close() error           { return nil }
func (s *snaps) Sync(context.Context) error {
	s.mu.Lock()
	s.syncs++
	s.mu.Unlock()
	return s.failing("sync", "")
}

func (s *snaps) Stat(_ context.Context, key string) (object.SnapshotInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sn := s.m[key]; sn != nil {
		return sn.info, nil
	}
	return object.SnapshotInfo{}, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
}

func (s *snaps) Update(_ context.Context, i object.SnapshotInfo, _ ...string) (object.SnapshotInfo, error) {
	return i, nil
}
func (s *snaps) Usage(context.Context, string) (object.SnapshotUsage, error) {
	return object.SnapshotUsage{}, nil
}

func (s *snaps) Mounts(_ context.Context, key string) ([]object.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []object.Mount{{Type: "bind", Source: s.m[key].dir}}, nil
}

func (s *snaps) add(kind object.SnapshotKind, key, parent string, labels map[string]string) ([]object.Mount, error) {
	if err := s.failing("prepare", key); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[key] != nil {
		return nil, errdefs.ErrAlreadyExists
	}
	if parent != "" && s.m[parent] == nil {
		return nil, fmt.Errorf("parent %q: %w", parent, errdefs.ErrNotFound)
	}
	s.n++
	dir := filepath.Join(s.root, fmt.Sprint(s.n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s.m[key] = &snap{object.SnapshotInfo{Kind: kind, Name: key, Parent: parent, Labels: labels}, dir}
	return []object.Mount{{Type: "bind", Source: dir}}, nil
}

func (s *snaps) Prepare(_ context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return s.add(object.SnapshotActive, key, parent, labels)
}

func (s *snaps) View(_ context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	return s.add(object.SnapshotView, key, parent, labels)
}

func (s *snaps) Commit(_ context.Context, name, key string, opts snapshot.CommitOptions) error {
	if err := s.failing("commit", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sn := s.m[key]
	switch {
	case sn == nil:
		return errdefs.ErrNotFound
	case s.m[name] != nil:
		return errdefs.ErrAlreadyExists
	case opts.Parent != "" && !slices.Contains(s.caps, "rebase"):
		return errdefs.ErrInvalidArgument
	case opts.Parent != "" && s.m[opts.Parent] == nil:
		return fmt.Errorf("parent %q: %w", opts.Parent, errdefs.ErrNotFound)
	}
	if opts.Parent != "" {
		sn.info.Parent = opts.Parent
	}
	sn.info.Kind, sn.info.Name = object.SnapshotCommitted, name
	delete(s.m, key)
	s.m[name] = sn
	return nil
}

func (s *snaps) Remove(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[key] == nil {
		return errdefs.ErrNotFound
	}
	os.RemoveAll(s.m[key].dir)
	delete(s.m, key)
	return nil
}

func (s *snaps) Walk(context.Context, func(object.SnapshotInfo) error, ...string) error { return nil }

// chain returns the files of a committed chain, lowest layer first.
func (s *snaps) chain(name string) (files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name != "" {
		sn := s.m[name]
		if sn == nil {
			return append(files, "missing: "+name)
		}
		entries, _ := os.ReadDir(sn.dir)
		for _, e := range entries {
			files = append(files, e.Name())
		}
		name = sn.info.Parent
	}
	slices.Reverse(files)
	return files
}

// differ unpacks regular files; it stands in for the real one to be observed.
type differ struct {
	mu      sync.Mutex
	running int
	most    int
	fixed   []string
	err     error
}

func (d *differ) Apply(context.Context, ispec.Descriptor, []object.Mount, diff.ApplyOptions) (ispec.Descriptor, error) {
	return ispec.Descriptor{}, errdefs.ErrNotImplemented
}

func (d *differ) FixImplied(_ context.Context, mounts, parents []object.Mount, implied []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fixed = append(d.fixed, implied...)
	return nil
}

func (d *differ) Unpack(_ context.Context, mediaType string, r io.Reader, mounts []object.Mount, apart bool) (diff.Unpacked, error) {
	d.mu.Lock()
	d.running++
	d.most = max(d.most, d.running)
	fail := d.err
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.running--; d.mu.Unlock() }()
	if fail != nil {
		return diff.Unpacked{}, fail
	}
	plain := r
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return diff.Unpacked{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		plain = z
	case strings.HasSuffix(mediaType, "zstd"):
		z, err := zstd.NewReader(r)
		if err != nil {
			return diff.Unpacked{}, err
		}
		defer z.Close()
		plain = z
	}
	h := sha256.New()
	tee := io.TeeReader(plain, h)
	tr := tar.NewReader(tee)
	var out diff.Unpacked
	for {
		e, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return out, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if strings.Contains(e.Name, "/") {
			out.Implied = append(out.Implied, filepath.Dir(e.Name))
		}
		f, err := os.Create(filepath.Join(mounts[0].Source, filepath.Base(e.Name)))
		if err != nil {
			return out, err
		}
		_, err = io.Copy(f, tr)
		f.Close()
		if err != nil {
			return out, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return out, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return out, err
	}
	out.DiffID = digest.NewDigest(digest.SHA256, h)
	return out, nil
}

// layer makes a tar with one file of n bytes.
func layer(name string, n int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := make([]byte, n)
	random := rand.New(rand.NewPCG(uint64(name[0]), uint64(n)))
	for i := range data {
		data[i] = byte(random.Uint32()) & 0x3f // that gzip can shrink, but not to nothing
	}
	w.WriteHeader(&tar.Header{Name: name, Size: int64(n), Mode: 0o644, Typeflag: tar.TypeReg})
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	var out bytes.Buffer
	w, _ := zstd.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// built is an image of a test registry.
type built struct {
	repo     string
	target   ispec.Descriptor
	manifest ispec.Manifest
	config   ispec.Image
	chain    digest.Digest
}

// build pushes an image with these layers (gzip, zstd and plain in turn).
func build(r *registrytest.Registry, repo, tag string, layers ...[]byte) built {
	b := built{repo: repo}
	b.config = ispec.Image{Platform: ispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ispec.RootFS{Type: "layers"}}
	b.manifest = ispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageManifest}
	for i, l := range layers {
		b.config.RootFS.DiffIDs = append(b.config.RootFS.DiffIDs, digest.FromBytes(l))
		var d ispec.Descriptor
		switch i % 3 {
		case 0:
			d = r.AddBlob(ispec.MediaTypeImageLayerGzip, gz(l))
		case 1:
			d = r.AddBlob(ispec.MediaTypeImageLayerZstd, zst(l))
		case 2:
			d = r.AddBlob(ispec.MediaTypeImageLayer, l)
		}
		b.manifest.Layers = append(b.manifest.Layers, d)
	}
	if ids := image.ChainIDs(b.config.RootFS.DiffIDs); len(ids) > 0 {
		b.chain = ids[len(ids)-1]
	}
	cfg, _ := json.Marshal(b.config)
	b.manifest.Config = r.AddBlob(ispec.MediaTypeImageConfig, cfg)
	b.target = r.AddManifest(repo, ispec.MediaTypeImageManifest, b.manifest, tag)
	b.target.Platform = &ispec.Platform{OS: "linux", Architecture: "amd64"}
	return b
}

var linuxAMD64 = ispec.Platform{OS: "linux", Architecture: "amd64"}

func target(unpack bool) transfer.ImageTarget {
	t := transfer.ImageTarget{Platforms: []ispec.Platform{linuxAMD64}, AllMetadata: true}
	if unpack {
		t.Unpacks = []transfer.UnpackTarget{{Platform: linuxAMD64}}
	}
	return t
}

func (s *stores) pull(ctx context.Context, ref string, to transfer.ImageTarget, progress transfer.ProgressFunc) (object.Image, error) {
	s.t.Helper()
	return s.svc.Pull(ctx, "test", "", s.remote(ref), to, progress)
}

func (s *stores) remote(ref string) *registry.Remote {
	s.t.Helper()
	r, err := registry.NewRemote(ref, registry.Options{StallTimeout: 200 * time.Millisecond, Retry: registry.Retry{Attempts: 3, Pause: time.Millisecond}})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
