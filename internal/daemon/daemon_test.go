package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/internal/content"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestRestart(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	d := start(t, cfg)
	if _, err := versionapi.NewVersionClient(d.conn).Version(t.Context(), &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	uuid := serverUUID(t, d)
	_, err := namespacesapi.NewNamespacesClient(d.conn).Create(t.Context(), &namespacesapi.CreateNamespaceRequest{
		Namespace: &namespacesapi.Namespace{Name: "ns", Labels: map[string]string{"a": "b"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if lastMark(t, cfg).Clean {
		t.Error("the mark of a daemon that runs says that it has stopped")
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if !lastMark(t, cfg).Clean {
		t.Error("the mark does not say that the daemon was stopped")
	}
	for _, path := range []string{cfg.Plugins.GRPC.Address, cfg.Plugins.TTRPC.Address} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("socket %s is left", path)
		}
	}

	d = start(t, cfg)
	resp, err := namespacesapi.NewNamespacesClient(d.conn).Get(t.Context(), &namespacesapi.GetNamespaceRequest{Name: "ns"})
	if err != nil || resp.Namespace.Labels["a"] != "b" {
		t.Errorf("after the restart: %v, %v", resp, err)
	}
	if again := serverUUID(t, d); again != uuid {
		t.Errorf("identity %s has become %s", uuid, again)
	}
}

func serverUUID(t *testing.T, d *running) string {
	t.Helper()
	resp, err := introspectionapi.NewIntrospectionClient(d.conn).Server(t.Context(), &emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Pid != uint64(os.Getpid()) || resp.Pidns == 0 {
		t.Errorf("server: %v", resp)
	}
	return resp.UUID
}

func TestSecondDaemonIsRefused(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	start(t, cfg)
	elsewhere := testConfig(t, t.TempDir())
	for name, change := range map[string]func(*config.Config){
		"all":    func(c *config.Config) { *c = *cfg },
		"root":   func(c *config.Config) { c.Root = cfg.Root },
		"state":  func(c *config.Config) { c.State = cfg.State },
		"socket": func(c *config.Config) { c.Plugins.GRPC.Address = cfg.Plugins.GRPC.Address },
	} {
		t.Run(name, func(t *testing.T) {
			second := *elsewhere
			change(&second)
			_, err := New(t.Context(), &second, slog.New(slog.DiscardHandler))
			if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "daemon.test") {
				t.Errorf("got %v, want the name of the process that is there", err)
			}
		})
	}
	// What was refused has let go of what it had.
	if _, err := lockDir(elsewhere.Root); err != nil {
		t.Error(err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: cfg.Plugins.GRPC.Address}); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	d := start(t, cfg)
	if _, err := versionapi.NewVersionClient(d.conn).Version(t.Context(), &emptypb.Empty{}); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(cfg.Plugins.GRPC.Address)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
}

func TestSocketNeverReplacesAFile(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	if err := os.WriteFile(cfg.Plugins.GRPC.Address, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(cfg.Plugins.GRPC.Address); string(data) != "precious" {
		t.Errorf("the file is %q, %v", data, err)
	}
}

// Nobody else may connect in the moment before owner and mode are set.
func TestSocketIsPrivateAtOnce(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	l, err := bindUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.SetAddress(filepath.Join(t.TempDir(), strings.Repeat("x", 100)))
	if _, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "107") {
		t.Errorf("got %v", err)
	}
}

// A start that fails puts back the mark of the run before: it must not look
// like a clean stop.
func TestFailedStartKeepsTheMark(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	before := mark{Boot: "another", Started: time.Unix(1, 0).UTC()}
	if err := before.write(cfg.Root); err != nil {
		t.Fatal(err)
	}
	cfg.RequiredPlugins = []string{"io.containerd.snapshotter.v1.zfs"}
	_, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "required plugin io.containerd.snapshotter.v1.zfs") {
		t.Fatalf("got %v", err)
	}
	if got := lastMark(t, cfg); got != before {
		t.Errorf("mark %+v, want %+v", got, before)
	}
}

// After a power cut a blob whose bytes did not reach the disk is removed, and
// the doubt with it.
func TestVerifyAfterPowerCut(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	store, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(cfg.Root, contentDir)})
	if err != nil {
		t.Fatal(err)
	}
	good, lost := digest.FromString("good"), digest.FromString("lost")
	dir := filepath.Join(cfg.Root, contentDir, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d, data := range map[digest.Digest]string{good: "good", lost: "\x00\x00\x00\x00"} {
		if err := os.WriteFile(filepath.Join(dir, d.Encoded()), []byte(data), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := (mark{Boot: "another boot", Started: time.Now().Add(-time.Hour)}).write(cfg.Root); err != nil {
		t.Fatal(err)
	}
	d := start(t, cfg)
	<-d.settled
	if _, err := store.Info(t.Context(), good); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, lost.Encoded())); err == nil {
		t.Error("the lost blob is still there")
	}
	if !strings.Contains(d.log.String(), lost.String()) {
		t.Error("the log does not name the lost blob")
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if m := lastMark(t, cfg); !m.Clean || m.Doubt != nil {
		t.Errorf("mark %+v", m)
	}
}

func TestDoubt(t *testing.T) {
	d := &Daemon{cfg: config.Default(), run: mark{Boot: "now"}}
	d.cfg.Root = t.TempDir()
	started := time.Unix(1000, 0).UTC()
	for name, tc := range map[string]struct {
		last  mark
		doubt bool
	}{
		"clean stop":              {mark{Boot: "now", Clean: true}, false},
		"clean stop, then reboot": {mark{Boot: "before", Clean: true}, false},
		"killed":                  {mark{Boot: "now", Started: started}, false},
		"power cut":               {mark{Boot: "before", Started: started}, true},
		"stopped in doubt":        {mark{Boot: "now", Clean: true, Doubt: &started}, true},
		"torn mark":               {mark{}, true},
	} {
		if got := d.doubt(tc.last); (got != nil) != tc.doubt {
			t.Errorf("%s: doubt since %v", name, got)
		}
	}
}

// A damaged database does not keep the daemon from starting.
func TestCorruptDatabase(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	d := start(t, cfg)
	if _, err := namespacesapi.NewNamespacesClient(d.conn).Create(t.Context(), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: "ns"}}); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Root, metadataDir, "meta.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("garbage!"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d = start(t, cfg)
	if _, err := namespacesapi.NewNamespacesClient(d.conn).List(t.Context(), &namespacesapi.ListNamespacesRequest{}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(d.log.String(), "damaged") {
		t.Errorf("the log says nothing of the damage:\n%s", d.log)
	}
}

// A daemon starts where it was before on a disk that is full now: without it
// nobody could make room. How it ends is told all the same.
func TestStartOnFullDisk(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", cfg.Root, "tmpfs", 0, "size=16m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(cfg.Root, unix.MNT_DETACH) })
	if err := start(t, cfg).stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Root, "fill"), make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	d := start(t, cfg)
	if _, err := namespacesapi.NewNamespacesClient(d.conn).List(t.Context(), &namespacesapi.ListNamespacesRequest{}); err != nil {
		t.Error(err)
	}
	if lastMark(t, cfg).Clean {
		t.Error("the mark does not say that a daemon runs")
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if m := lastMark(t, cfg); !m.Clean || m.Boot != bootID() {
		t.Errorf("the mark does not tell of the orderly stop: %+v", m)
	}
}

// What hangs does not hold up the end for ever, and the end is no clean one.
func TestEndUnderHangingPart(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	d, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	defer close(release)
	d.background.Go(func() { <-release })
	d.patience = time.Second
	if err := d.Close(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if lastMark(t, cfg).Clean {
		t.Error("the mark tells of an orderly stop")
	}
	if err := start(t, cfg).stop(); err != nil {
		t.Error(err)
	}
}

// The first start on a full disk fails with the reason, and leaves no lock behind.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t, dir)
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", cfg.Root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(cfg.Root, unix.MNT_DETACH) })
	f, err := os.Create(filepath.Join(cfg.Root, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write(make([]byte, 1<<20))
	_ = f.Close()
	if _, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockDir(cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	_ = unlock()
}

func TestPlugins(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.DisabledPlugins = []string{"io.containerd.snapshotter.v1.native", "io.containerd.grpc.v1.cri"}
	d := start(t, cfg)
	resp, err := introspectionapi.NewIntrospectionClient(d.conn).Plugins(t.Context(), &introspectionapi.PluginsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var working, failed []string
	for _, p := range resp.Plugins {
		name := p.Type + "." + p.ID
		if p.InitErr == nil {
			working = append(working, name)
		} else {
			failed = append(failed, name)
		}
		if p.ID == "overlayfs" && p.Exports["root"] != filepath.Join(cfg.Root, "io.containerd.snapshotter.v1.overlayfs") {
			t.Errorf("overlayfs exports %v", p.Exports)
		}
	}
	// The names that containerd has for what is built here.
	for _, name := range strings.Fields(`content.v1.content internal.v1.opt event.v1.exchange snapshotter.v1.overlayfs metadata.v1.bolt
		gc.v1.scheduler service.v1.containers-service service.v1.content-service differ.v1.walking service.v1.diff-service
		service.v1.images-service service.v1.introspection-service service.v1.namespaces-service service.v1.snapshots-service
		shim.v1.manager runtime.v2.task service.v1.tasks-service grpc.v1.containers grpc.v1.content grpc.v1.diff grpc.v1.events
		grpc.v1.images grpc.v1.introspection lease.v1.manager grpc.v1.leases grpc.v1.namespaces sandbox.store.v1.local
		transfer.v1.local grpc.v1.sandboxes grpc.v1.snapshots streaming.v1.manager grpc.v1.streaming grpc.v1.tasks
		grpc.v1.transfer grpc.v1.version grpc.v1.healthcheck server.v1.ttrpc server.v1.grpc
		monitor.task.v1.cgroups metrics.v1.grpc-prometheus`) {
		if !slices.Contains(working, "io.containerd."+name) {
			t.Errorf("%s is not reported as working", name)
		}
	}
	if slices.Contains(working, "io.containerd.snapshotter.v1.native") {
		t.Error("a disabled snapshotter works")
	}
	for _, name := range []string{"server.v1.grpc-tcp", "server.v1.debug", "server.v1.metrics"} {
		if !slices.Contains(failed, "io.containerd."+name) {
			t.Errorf("%s is not reported as skipped", name)
		}
	}
	names := slices.Sorted(slices.Values(append(working, failed...)))
	if dup := slices.Compact(slices.Clone(names)); len(dup) != len(names) {
		t.Errorf("names are not unique: %v", names)
	}
}

func TestDebugSocket(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Plugins.DebugServer.Address = filepath.Join(t.TempDir(), "d.sock")
	start(t, cfg)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Plugins.DebugServer.Address)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://debug/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(body, []byte("goroutine profile")) {
		t.Errorf("%v: %.100s", err, body)
	}
}

// Events come from clients over gRPC and from shims over ttrpc, and go to
// whoever listens.
func TestEvents(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	d := start(t, cfg)
	client := eventsapi.NewEventsClient(d.conn)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := client.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{`topic~="^/test"`}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // sent when the subscription stands
		t.Fatal(err)
	}
	body := &anypb.Any{TypeUrl: "containerd.events.TaskExit", Value: []byte{0x0a, 0x01, 'c'}}
	if _, err := client.Publish(in(ctx, "ns"), &eventsapi.PublishRequest{Topic: "/test/publish", Event: body}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", cfg.Plugins.TTRPC.Address)
	if err != nil {
		t.Fatal(err)
	}
	shim := ttrpc.NewClient(conn)
	defer shim.Close()
	at := time.Unix(1700000000, 5).UTC()
	_, err = ttrpcevents.NewTTRPCEventsClient(shim).Forward(ctx, &ttrpcevents.ForwardRequest{Envelope: &types.Envelope{
		Timestamp: timestamppb.New(at), Namespace: "other", Topic: "/test/forward", Event: body,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ topic, namespace string }{{"/test/publish", "ns"}, {"/test/forward", "other"}} {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.Topic != want.topic || e.Namespace != want.namespace || e.Event.TypeUrl != body.TypeUrl || !bytes.Equal(e.Event.Value, body.Value) {
			t.Errorf("got %v, want %v", e, want)
		}
		if e.Topic == "/test/forward" && !e.Timestamp.AsTime().Equal(at) {
			t.Errorf("the time of a forwarded event is %v", e.Timestamp.AsTime())
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
		t.Errorf("the end of the daemon: %v", err)
	}
}

// TestRecords drives the services over the engines: what is created is found,
// twice is refused, and what is unknown has its code.
func TestRecords(t *testing.T) {
	d := start(t, testConfig(t, t.TempDir()))
	ctx := in(t.Context(), "ns")
	code := func(what string, want codes.Code, err error) {
		t.Helper()
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	images := imagesapi.NewImagesClient(d.conn)
	image := &imagesapi.Image{Name: "img", Target: &types.Descriptor{MediaType: "m", Digest: digest.FromString("x").String(), Size: 1}}
	created, err := images.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	code("create", codes.OK, err)
	if created.GetImage().GetCreatedAt().AsTime().Before(time.Now().Add(-time.Minute)) {
		t.Errorf("created at %v", created.GetImage().GetCreatedAt())
	}
	_, err = images.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	code("create twice", codes.AlreadyExists, err)
	_, err = images.Create(ctx, &imagesapi.CreateImageRequest{})
	code("create nothing", codes.InvalidArgument, err)
	_, err = images.Get(in(t.Context(), "other"), &imagesapi.GetImageRequest{Name: "img"})
	code("get in another namespace", codes.NotFound, err)
	_, err = images.Delete(ctx, &imagesapi.DeleteImageRequest{Name: "img", Target: &types.Descriptor{Digest: digest.FromString("y").String()}})
	code("delete with another target", codes.NotFound, err)

	leases := leasesapi.NewLeasesClient(d.conn)
	lease, err := leases.Create(ctx, &leasesapi.CreateRequest{})
	code("lease", codes.OK, err)
	if lease.GetLease().GetID() == "" {
		t.Error("a lease without an ID")
	}

	snapshots := snapshotsapi.NewSnapshotsClient(d.conn)
	_, err = snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: "k"})
	code("no snapshotter", codes.InvalidArgument, err)
	_, err = snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "none", Key: "k"})
	code("unknown snapshotter", codes.InvalidArgument, err)
	leased := metadata.AppendToOutgoingContext(ctx, "containerd-lease", lease.GetLease().GetID())
	for i := range snapshotBatch {
		_, err = snapshots.Prepare(leased, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: string(rune('a'+i%26)) + strings.Repeat("x", i)})
		code("prepare", codes.OK, err)
	}
	stream, err := snapshots.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "native"})
	code("list", codes.OK, err)
	listed := 0
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			break
		}
		code("list", codes.OK, err)
		if err != nil {
			break
		}
		listed += len(m.Info)
	}
	if listed != snapshotBatch {
		t.Errorf("%d snapshots listed, %d made", listed, snapshotBatch)
	}
	held, err := leases.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: lease.GetLease().GetID()})
	if err != nil || len(held.Resources) != snapshotBatch {
		t.Errorf("the lease holds %d resources, %v", len(held.GetResources()), err)
	}
	_, err = snapshots.Prepare(metadata.AppendToOutgoingContext(ctx, "containerd-lease", "gone"), &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "orphan"})
	code("prepare under a lease that is gone", codes.NotFound, err)
}

const snapshotBatch = 120 // more than one message of a list

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere/at/all")
	if err := notify("READY=1"); err == nil {
		t.Error("a socket that is not there took the message")
	}
}

func TestLog(t *testing.T) {
	var b bytes.Buffer
	log := NewLogger(&b, "", levelTrace).With("module", "a b").WithGroup("g")
	log.Warn(`say "hi"`, "n", 1, "empty", "", "err", errors.New("x=y"), slog.Group("in", "k", "v"))
	log.Log(t.Context(), levelTrace, "low")
	got := strings.SplitN(b.String(), "level=", 2)[1]
	want := `warning msg="say \"hi\"" module="a b" g.n=1 g.empty="" g.err="x=y" g.in.k=v` + "\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("got  %swant %s", got, want)
	}
	if !strings.Contains(b.String(), `level=trace msg=low`) {
		t.Errorf("trace: %s", b.String())
	}
	if strings.Count(b.String(), "\n") != 2 {
		t.Errorf("not a line for each message: %q", b.String())
	}

	b.Reset()
	NewLogger(&b, "json", slog.LevelInfo).Warn("hi", "took", time.Second)
	var m map[string]any
	if err := json.Unmarshal(b.Bytes(), &m); err != nil || m["level"] != "warning" || m["msg"] != "hi" || m["took"] != "1s" {
		t.Errorf("%s: %v", b.String(), err)
	}
	NewLogger(&b, "json", slog.LevelInfo).Debug("not this")
	if strings.Contains(b.String(), "not this") {
		t.Error("a message below the level is written")
	}
	if _, err := ParseLevel("loud"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("level loud: %v", err)
	}
}
