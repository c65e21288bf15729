package grpcapi

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/content"
	"berth/internal/content/contenttest"
	"berth/internal/diff"
	"berth/internal/diff/difftest"
	"berth/internal/events"
	"berth/internal/meta"
	"berth/internal/mount"
	"berth/internal/object"
	"berth/internal/remote"
	"berth/internal/snapshot"
	"berth/internal/snapshot/native"
	"berth/internal/snapshot/overlay"
	"berth/internal/snapshot/snapshottest"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// stores is a daemon's stores behind its own services, and a connection to them.
type stores struct {
	db     *meta.DB
	conn   *grpc.ClientConn
	socket string
}

// leased is a scope of the stores in which the collector takes nothing.
func (s stores) leased(t *testing.T) grpc.ClientConnInterface {
	t.Helper()
	lease, err := remote.NewLeases(remote.Scope(s.conn, "test", "")).Create(t.Context(), object.Lease{ID: "all"})
	if err != nil {
		t.Fatal(err)
	}
	return remote.Scope(s.conn, "test", lease.ID)
}

// proxied is leased through the connection that a daemon has to a proxy plugin.
func (s stores) proxied(t *testing.T, name string) grpc.ClientConnInterface {
	t.Helper()
	s.leased(t)
	p, err := remote.NewProxy(name, s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return remote.Scope(p, "test", "all")
}

// serveStores needs root, to whom snapshots belong. The namespace is "test".
func serveStores(t *testing.T) stores {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("snapshots belong to root")
	}
	root := t.TempDir()
	local, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	over, err := overlay.New(filepath.Join(root, "overlayfs"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	nat, err := native.New(filepath.Join(root, "native"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	db, err := meta.Open(t.Context(), meta.Options{
		Path: filepath.Join(root, "meta.db"), Content: local, Events: events.New(),
		Snapshotters: map[string]snapshot.Backend{"overlayfs": over, "native": nat},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Namespaces().Create(t.Context(), object.Namespace{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(Options{
		DB: db, Log: slog.New(slog.DiscardHandler),
		Differ: func(s Scope) diff.Applier { return diff.NewWalking(db.Scope(s.Namespace, s.Lease).Content()) },
	}, grpc.WaitForHandlers(true))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-done
		db.Close()
		over.Close()
		nat.Close()
	})
	return stores{db, conn, socket}
}

func TestSnapshotContractAcrossSocket(t *testing.T) {
	for name, rebase := range map[string]bool{"overlayfs": true, "native": false} {
		t.Run(name, func(t *testing.T) {
			snapshottest.Run(t, snapshottest.Config{
				Rebase: rebase,
				New: func(t *testing.T) snapshot.Snapshotter {
					return remote.NewSnapshots(serveStores(t).leased(t), remote.Snapshotter{Name: name})
				},
			})
		})
	}
}

func TestSnapshotContractOfProxy(t *testing.T) {
	for name, rebase := range map[string]bool{"overlayfs": true, "native": false} {
		t.Run(name, func(t *testing.T) {
			snapshottest.Run(t, snapshottest.Config{
				Rebase: rebase,
				New: func(t *testing.T) snapshot.Snapshotter {
					return remote.NewSnapshots(serveStores(t).proxied(t, name), remote.Snapshotter{Name: name})
				},
			})
		})
	}
}

func TestContentContractOfProxy(t *testing.T) {
	contenttest.Suite{
		Open:            func(t *testing.T) content.Store { return remote.NewContent(serveStores(t).proxied(t, "content")) },
		StatelessReader: true,
	}.Run(t)
}

func diffFixture(d diff.Differ, store content.Store, s snapshot.Snapshotter) difftest.Fixture {
	return difftest.Fixture{
		Differ: d, Store: store,
		Prepare: func(ctx context.Context, key, parent string) ([]object.Mount, error) {
			return s.Prepare(ctx, key, parent, nil)
		},
		View: func(ctx context.Context, key, parent string) ([]object.Mount, error) {
			return s.View(ctx, key, parent, nil)
		},
		Commit: func(ctx context.Context, name, key string) error {
			return s.Commit(ctx, name, key, snapshot.CommitOptions{})
		},
	}
}

func TestDiffContract(t *testing.T) {
	for name, of := range map[string]func(*testing.T, stores) difftest.Fixture{
		"local": func(t *testing.T, s stores) difftest.Fixture {
			s.leased(t)
			scope := s.db.Scope("test", "all")
			over, err := scope.Snapshotter("overlayfs")
			if err != nil {
				t.Fatal(err)
			}
			return diffFixture(diff.NewWalking(scope.Content()), scope.Content(), over)
		},
		"proxy": func(t *testing.T, s stores) difftest.Fixture {
			p := s.proxied(t, "diff")
			return diffFixture(remote.NewDiff(p), remote.NewContent(p), remote.NewSnapshots(p, remote.Snapshotter{Name: "native"}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			difftest.Run(t, func(t *testing.T) difftest.Fixture { return of(t, serveStores(t)) })
		})
	}
}

// The whole way: the services of a daemon over its stores.
func TestMetaContentContractAcrossSocket(t *testing.T) {
	contenttest.Suite{
		Open: func(t *testing.T) content.Store {
			return remote.NewContent(serveStores(t).leased(t))
		},
		StatelessReader: true,
	}.Run(t)
}

func TestRemoteCleanup(t *testing.T) {
	conn := remote.Scope(serveStores(t).conn, "test", "")
	var cleaner snapshot.Cleaner = remote.NewSnapshots(conn, remote.Snapshotter{Name: "overlayfs"})
	if err := cleaner.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	unknown := remote.NewSnapshots(conn, remote.Snapshotter{Name: "none"})
	if _, err := unknown.Stat(t.Context(), "x"); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("snapshotter of an unknown name: %v", err)
	}
}

func TestRemoteImages(t *testing.T) {
	s := serveStores(t)
	conn := s.leased(t)
	images := remote.NewImages(conn)
	d := contenttest.Put(t, remote.NewContent(conn), "manifest", []byte("{}"), nil)
	img := object.Image{
		Name: "example.com/a:1", Labels: map[string]string{"k": "v"},
		Target: ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: d, Size: 2},
	}
	if _, err := images.Get(t.Context(), img.Name); !errdefs.IsNotFound(err) {
		t.Fatalf("image that is not there: %v", err)
	}
	if _, err := images.Update(t.Context(), img); !errdefs.IsNotFound(err) {
		t.Fatalf("update of an image that is not there: %v", err)
	}
	made, err := images.Create(t.Context(), img)
	if err != nil || made.Name != img.Name || made.CreatedAt.IsZero() || made.Target.Digest != d {
		t.Fatalf("created %+v, %v", made, err)
	}
	if _, err := images.Create(t.Context(), img); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second create: %v", err)
	}
	img.Labels = map[string]string{"k": "w", "other": "x"}
	changed, err := images.Update(t.Context(), img, "labels.k")
	if err != nil || len(changed.Labels) != 1 || changed.Labels["k"] != "w" {
		t.Fatalf("updated %+v, %v", changed, err)
	}
	got, err := s.db.Scope("test", "").Images().Get(t.Context(), img.Name)
	if err != nil || got.Labels["k"] != "w" {
		t.Fatalf("record %+v, %v", got, err)
	}
	list, err := images.List(t.Context(), "name=="+img.Name, "name==none")
	if err != nil || len(list) != 1 || list[0].Target.Digest != d {
		t.Fatalf("list %+v, %v", list, err)
	}
}

// What is made under a lease is held by it, and by nothing but it; the scope
// counts, not what the context says.
func TestRemoteLease(t *testing.T) {
	s := serveStores(t)
	leases := remote.NewLeases(remote.Scope(s.conn, "test", ""))
	lease, err := leases.Create(t.Context(), object.Lease{ID: "l1", Labels: map[string]string{"k": "v"}})
	if err != nil || lease.ID != "l1" || lease.CreatedAt.IsZero() {
		t.Fatalf("lease %+v, %v", lease, err)
	}
	if _, err := leases.Create(t.Context(), object.Lease{ID: "l1"}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second lease of the name: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "elsewhere", "containerd-lease", "none")
	conn := remote.Scope(s.conn, "test", "l1")
	d := contenttest.Put(t, remote.NewContent(scopedTo{conn, ctx}), "ref", []byte("held"), nil)
	sn := remote.NewSnapshots(conn, remote.Snapshotter{Name: "overlayfs"})
	if _, err := sn.Prepare(ctx, "a", "", nil); err != nil {
		t.Fatal(err)
	}
	direct := s.db.Scope("test", "")
	held, err := direct.Leases().ListResources(t.Context(), "l1")
	if err != nil || len(held) != 2 {
		t.Fatalf("the lease holds %v, %v", held, err)
	}
	if err := leases.Delete(t.Context(), "l1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Content().Info(t.Context(), d); !errdefs.IsNotFound(err) {
		t.Fatalf("the blob has outlived the collector: %v", err)
	}
	if _, err := sn.Stat(t.Context(), "a"); !errdefs.IsNotFound(err) {
		t.Fatalf("the snapshot has outlived the collector: %v", err)
	}
	if err := leases.Delete(t.Context(), "l1", false); !errdefs.IsNotFound(err) {
		t.Fatalf("second delete: %v", err)
	}
}

// scopedTo makes every call with one context's metadata.
type scopedTo struct {
	grpc.ClientConnInterface
	ctx context.Context
}

func (s scopedTo) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	md, _ := metadata.FromOutgoingContext(s.ctx)
	return s.ClientConnInterface.NewStream(metadata.NewOutgoingContext(ctx, md), desc, method, opts...)
}

// A layer that Compare makes is what Apply takes, both through the service.
func TestRemoteDiff(t *testing.T) {
	conn := serveStores(t).leased(t)
	sn := remote.NewSnapshots(conn, remote.Snapshotter{Name: "overlayfs"})
	d := remote.NewDiff(conn)
	ctx := t.Context()
	prepare := func(key, parent string) []object.Mount {
		t.Helper()
		m, err := sn.Prepare(ctx, key, parent, nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if err := mount.WithTemp(ctx, prepare("base-work", ""), func(root string) error {
		return os.WriteFile(filepath.Join(root, "gone"), []byte("x"), 0o644)
	}); err != nil {
		t.Fatal(err)
	}
	if err := sn.Commit(ctx, "base", "base-work", snapshot.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
	upper := prepare("upper", "base")
	if err := mount.WithTemp(ctx, upper, func(root string) error {
		if err := os.Remove(filepath.Join(root, "gone")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(root, "new"), []byte("new"), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	lower, err := sn.View(ctx, "lower", "base", nil)
	if err != nil {
		t.Fatal(err)
	}
	epoch := int64(1_000_000_000)
	layer, err := d.Compare(ctx, lower, upper, diff.CompareOptions{Ref: "layer", Labels: map[string]string{"k": "v"}, SourceDateEpoch: &epoch})
	if err != nil {
		t.Fatal(err)
	}
	info, err := remote.NewContent(conn).Info(ctx, layer.Digest)
	if err != nil || info.Labels["k"] != "v" || info.Size != layer.Size {
		t.Fatalf("layer %+v is stored as %+v, %v", layer, info, err)
	}
	again := prepare("again", "base")
	applied, err := d.Apply(ctx, layer, again, diff.ApplyOptions{Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := info.Labels["containerd.io/uncompressed"]; applied.Digest.String() != want {
		t.Fatalf("applied %s, want %s", applied.Digest, want)
	}
	if err := mount.WithTemp(ctx, again, func(root string) error {
		var names []string
		entries, err := os.ReadDir(root)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if strings.Join(names, " ") != "new" {
			t.Errorf("files %v", names)
		}
		if fi, err := os.Stat(filepath.Join(root, "new")); err == nil && fi.ModTime().Unix() != epoch {
			t.Errorf("time %v", fi.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	layer.Digest = "sha256:" + ("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	if _, err := d.Apply(ctx, layer, again, diff.ApplyOptions{}); !errdefs.IsNotFound(err) {
		t.Fatalf("layer that is not there: %v", err)
	}
}
