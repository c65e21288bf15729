package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/events"
	"berth/internal/grpcapi"
	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/native"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// serveEngines serves a content store, the snapshotter "mine" and a differ on
// socket, as the process behind proxy plugins does.
func serveEngines(t *testing.T, socket string) *meta.DB {
	t.Helper()
	root := t.TempDir()
	local, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := native.New(filepath.Join(root, "native"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	db, err := meta.Open(t.Context(), meta.Options{
		Path: filepath.Join(root, "meta.db"), Content: local, Events: events.New(),
		Snapshotters: map[string]snapshot.Backend{"mine": snaps},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Namespaces().Create(t.Context(), object.Namespace{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpcapi.NewServer(grpcapi.Options{
		DB: db, Log: slog.New(slog.DiscardHandler),
		Differ: func(s grpcapi.Scope) diff.Applier { return diff.NewWalking(db.Scope(s.Namespace, s.Lease).Content()) },
	}, grpc.WaitForHandlers(true))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
		db.Close()
		snaps.Close()
	})
	return db
}

func namespaced(t *testing.T, d *running) context.Context {
	t.Helper()
	if _, err := namespacesapi.NewNamespacesClient(d.conn).Create(t.Context(), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: "test"}}); err != nil {
		t.Fatal(err)
	}
	return in(t.Context(), "test")
}

// Proxy plugins that are dead or hang cost nobody anything but their own users.
func TestProxyPlugins(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	hung, err := net.Listen("unix", filepath.Join(dir, "hung"))
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	cfg.ProxyPlugins = map[string]config.ProxyPlugin{
		"mine":   {Type: "snapshot", Address: filepath.Join(dir, "live"), Capabilities: []string{"x"}, Exports: map[string]string{"root": "/r"}, Platform: "linux/s390x"},
		"dead":   {Type: "io.containerd.snapshotter.v1", Address: "unix://" + filepath.Join(dir, "dead")},
		"hung":   {Type: "snapshot", Address: filepath.Join(dir, "hung")},
		"native": {Type: "snapshot", Address: filepath.Join(dir, "dead")},
		"blobs":  {Type: "content", Address: filepath.Join(dir, "dead")},
		"apply":  {Type: "diff", Address: filepath.Join(dir, "live")},
		"pods":   {Type: "sandbox", Address: filepath.Join(dir, "dead")},
	}
	cfg.Plugins.Diff.Order = []string{"apply", "walking"}
	d := start(t, cfg)
	ctx := namespaced(t, d)
	snaps := snapshotsapi.NewSnapshotsClient(d.conn)
	prepare := func(snapshotter, key string) error {
		_, err := snaps.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key})
		return err
	}
	if err := prepare("dead", "a"); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), filepath.Join(dir, "dead")) {
		t.Errorf("a dead one: %v", err)
	}
	if _, err := sandboxapi.NewControllerClient(d.conn).Shutdown(ctx, &sandboxapi.ControllerShutdownRequest{Sandboxer: "pods", SandboxID: "x"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a dead sandbox controller: %v", err)
	}
	waiting, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := snaps.Prepare(waiting, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "hung", Key: "a"})
		done <- err
	}()
	for _, s := range []string{"native", "overlayfs"} {
		if err := prepare(s, "a"); err != nil {
			t.Errorf("%s beside one that hangs: %v", s, err)
		}
	}
	if err := prepare("mine", "a"); status.Code(err) != codes.Unavailable {
		t.Errorf("before it is there: %v", err)
	}
	db := serveEngines(t, filepath.Join(dir, "live"))
	if err := prepare("mine", "b"); err != nil {
		t.Errorf("once it is there: %v", err)
	}
	count := 0
	backend, err := db.Scope("test", "").Snapshotter("mine")
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.Walk(t.Context(), func(object.SnapshotInfo) error { count++; return nil }); err != nil || count != 1 {
		t.Errorf("%d snapshots behind the proxy, %v", count, err)
	}
	_, err = diffapi.NewDiffClient(d.conn).Apply(ctx, &diffapi.ApplyRequest{
		Diff: &types.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: digest.FromString("x").String(), Size: 1},
	})
	if status.Code(err) != codes.NotFound {
		t.Errorf("the differ behind the proxy: %v", err)
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("one that hangs, given up: %v", err)
	}
	checkProxyPlugins(t, d, dir)
}

func checkProxyPlugins(t *testing.T, d *running, dir string) {
	t.Helper()
	resp, err := introspectionapi.NewIntrospectionClient(d.conn).Plugins(t.Context(), &introspectionapi.PluginsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	failed := map[string]bool{}
	for _, p := range resp.Plugins {
		if p.InitErr != nil {
			failed[p.Type+"."+p.ID] = true
		}
		if p.ID != "mine" {
			continue
		}
		if p.Exports["root"] != "/r" || p.Exports["address"] != filepath.Join(dir, "live") || !slices.Equal(p.Capabilities, []string{"x"}) || p.Platforms[0].Architecture != "s390x" || p.InitErr != nil {
			t.Errorf("%v", p)
		}
	}
	for _, name := range []string{contentPlugin + ".blobs", snapshotterPlugin + ".native"} {
		if !failed[name] {
			t.Errorf("%s took the place of what is built in", name)
		}
	}
}

func TestContentProxy(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.DisabledPlugins = []string{contentPlugin + ".content"}
	cfg.ProxyPlugins = map[string]config.ProxyPlugin{"blobs": {Type: "content", Address: filepath.Join(dir, "live")}}
	db := serveEngines(t, filepath.Join(dir, "live"))
	d := start(t, cfg)
	ctx := namespaced(t, d)
	blob := []byte("a blob")
	w, err := contentapi.NewContentClient(d.conn).Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*contentapi.WriteContentRequest{
		{Action: contentapi.WriteAction_WRITE, Ref: "r", Data: blob},
		// A root: a collection that comes by leaves it alone.
		{Action: contentapi.WriteAction_COMMIT, Ref: "r", Total: int64(len(blob)), Offset: int64(len(blob)), Labels: map[string]string{"containerd.io/gc.root": "test"}},
	} {
		if err := w.Send(req); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := db.Scope("test", "").Content().ReaderAt(t.Context(), ispec.Descriptor{Digest: digest.FromBytes(blob)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(blob))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("behind the proxy: %q %v", got, err)
	}
}

func TestMissingDiffer(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Plugins.Diff.Order = []string{"none"}
	d := start(t, cfg)
	ctx := namespaced(t, d)
	_, err := diffapi.NewDiffClient(d.conn).Apply(ctx, &diffapi.ApplyRequest{Diff: &types.Descriptor{}})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `"none"`) {
		t.Error(err)
	}
}

func TestStreamProcessors(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.StreamProcessors = map[string]config.StreamProcessor{
		"p": {Accepts: []string{"x/y"}, Returns: ispec.MediaTypeImageLayer, Path: "/bin/sh", Args: []string{"-c", "echo not today >&2; exit 1"}},
	}
	d := start(t, cfg)
	ctx := namespaced(t, d)
	scope := d.db.Scope("test", "")
	w, err := scope.Content().Writer(t.Context(), content.WriteOptions{Ref: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 0, "", nil); err != nil {
		t.Fatal(err)
	}
	_, err = diffapi.NewDiffClient(d.conn).Apply(ctx, &diffapi.ApplyRequest{
		Diff:   &types.Descriptor{MediaType: "x/y", Digest: digest.FromString("").String()},
		Mounts: []*types.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}},
	})
	if err == nil || !strings.Contains(err.Error(), "not today") {
		t.Error(err)
	}
}

// TestFirstStartWithoutProxy: a proxy that comes up after the daemon is no sign of
// a lost database.
func TestFirstStartWithoutProxy(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	cfg.ProxyPlugins = map[string]config.ProxyPlugin{"late": {Type: "snapshot", Address: filepath.Join(dir, "late.sock")}}
	d := start(t, cfg)
	if r := d.db.Report(); r.Damage != nil {
		t.Errorf("the database is said to be damaged: %v", r.Damage)
	}
}
