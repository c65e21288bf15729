package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/internal/trace"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestTraces: a call of a client is a span in the client's trace, a collection
// of garbage one of its own.
func TestTraces(t *testing.T) {
	requests := make(chan []byte, 100)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		requests <- data
	}))
	defer collector.Close()
	cfg := testConfig(t, t.TempDir())
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	r := start(t, cfg)
	id := trace.Identity{Trace: [16]byte{7: 0xaa}, Span: [8]byte{7: 0xbb}, Sampled: true}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", id.Header())
	if _, err := versionapi.NewVersionClient(r.conn).Version(ctx, &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.db.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	close(requests)
	var all []byte
	for data := range requests {
		all = append(all, data...)
	}
	if !bytes.Contains(all, []byte("containerd.services.version.v1.Version/Version")) || !bytes.Contains(all, id.Trace[:]) || !bytes.Contains(all, id.Span[:]) {
		t.Errorf("no span of the call: %q", all)
	}
}

func TestBadTracing(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	r := start(t, cfg)
	if !strings.Contains(r.log.String(), `OpenTelemetry protocol \"http/json\"`) {
		t.Errorf("the log does not say what is wrong:\n%s", r.log)
	}
}

func TestDisabledService(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.DisabledPlugins = []string{"io.containerd.grpc.v1.version", "io.containerd.service.v1.containers-service"}
	r := start(t, cfg)
	if _, err := versionapi.NewVersionClient(r.conn).Version(t.Context(), &emptypb.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a disabled service answers %v", err)
	}
	if _, err := eventsapi.NewEventsClient(r.conn).Publish(in(t.Context(), "ns"), &eventsapi.PublishRequest{Topic: "/x"}); status.Code(err) == codes.Unimplemented {
		t.Errorf("one that is not disabled: %v", err)
	}
	for _, p := range r.plugins {
		if p.Type == grpcPlugin && (p.ID == "version" || p.ID == "containers") {
			t.Errorf("%s is reported", p.ID)
		}
	}
}

// TestServiceNames: the server has a service for every plugin, by the name that
// disabling looks for.
func TestServiceNames(t *testing.T) {
	r := start(t, testConfig(t, t.TempDir()))
	have := r.api.GetServiceInfo()
	for _, p := range services() {
		if _, ok := have[serviceOf(p.ID)]; p.Type == grpcPlugin && !ok {
			t.Errorf("%s: there is no service %s", p.ID, serviceOf(p.ID))
		}
	}
}

func TestReload(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	r := start(t, cfg)
	changed := *cfg
	changed.Plugins.GC.DeletionThreshold = 7
	changed.Plugins.Transfer.ConfigPath = "/hosts"
	changed.Timeouts = map[string]config.Duration{config.TimeoutTaskState: config.Duration(9 * time.Second)}
	changed.StreamProcessors = map[string]config.StreamProcessor{"upper": {Accepts: []string{"a"}, Returns: "b", Path: "tr"}}
	changed.OOMScore = 5
	changed.Debug.Format = "json"
	now, later := r.Reload(&changed)
	if want := []string{"plugins.'io.containerd.gc.v1.scheduler'.deletion_threshold", "plugins.'io.containerd.transfer.v1.local'.config_path"}; !slices.Equal(now[:2], want) {
		t.Errorf("took effect: %v", now)
	}
	if want := []string{"debug.format", "oom_score"}; !slices.Equal(later, want) {
		t.Errorf("wait: %v, want %v", later, want)
	}
	if r.registryOptions()().HostDir != "/hosts" || r.taskTimeouts().State != 9*time.Second {
		t.Error("what took effect did not")
	}
	if now, later := r.Reload(&changed); len(now)+len(later) > 0 {
		t.Errorf("the same once more: %v, %v", now, later)
	}
}

func TestStatsTimeout(t *testing.T) {
	d := &Daemon{}
	for given, want := range map[config.Duration]time.Duration{0: 2 * time.Second, config.Duration(time.Second): time.Second} {
		d.live.Store(&config.Config{Timeouts: map[string]config.Duration{config.TimeoutShimStats: given}})
		if got := d.statsTimeout(); got != want {
			t.Errorf("%s means %s, want %s", time.Duration(given), got, want)
		}
	}
}

// TestMessageSizes: the bounds of the configuration hold in both directions.
func TestMessageSizes(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Plugins.GRPC.MaxRecvMsgSize, cfg.Plugins.GRPC.MaxSendMsgSize = 2000, 1000
	r := start(t, cfg)
	client := namespacesapi.NewNamespacesClient(r.conn)
	long := map[string]string{"a": strings.Repeat("x", 1500)}
	_, err := client.Create(t.Context(), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: "b", Labels: map[string]string{"a": strings.Repeat("x", 3000)}}})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "2000") {
		t.Errorf("a message that is too long: %v", err)
	}
	_, err = client.Create(t.Context(), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: "b", Labels: long}})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "1000") {
		t.Errorf("an answer that is too long: %v", err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	for name, tc := range map[string]struct {
		usec, pid string
		want      time.Duration
	}{
		"none": {"", "", 0}, "given": {"3000000", "", 3 * time.Second}, "nonsense": {"soon", "", 0},
		"negative": {"-1", "", 0}, "another's": {"3000000", "1", 0}, "huge": {strconv.FormatInt(1<<62, 10), "", 0},
	} {
		got := watchdogInterval(func(key string) string {
			return map[string]string{"WATCHDOG_USEC": tc.usec, "WATCHDOG_PID": tc.pid}[key]
		})
		if got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestReloading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	Reloading()()
	buf := make([]byte, 100)
	n, _ := conn.Read(buf)
	if got := string(buf[:n]); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("%q", got)
	}
	if n, _ = conn.Read(buf); string(buf[:n]) != "READY=1" {
		t.Errorf("%q", buf[:n])
	}
}

func TestTraceIDsInLog(t *testing.T) {
	var b bytes.Buffer
	log := WithTraceIDs(NewLogger(&b, "", slog.LevelInfo)).With("a", 1)
	tracer := &trace.Tracer{Sample: func(trace.Identity, [16]byte) bool { return true }, Ended: func(*trace.Span) {}}
	ctx, span := trace.Start(trace.With(context.Background(), tracer), "x")
	log.InfoContext(ctx, "in")
	if want := " span_id="; !strings.Contains(b.String(), want) || !strings.Contains(b.String(), "trace_id="+span.Header()[3:35]) {
		t.Errorf("%s", b.String())
	}
	b.Reset()
	log.Info("out")
	if strings.Contains(b.String(), "trace_id") {
		t.Errorf("%s", b.String())
	}
}

// TestNoSync counts the flushes of a disk: one for each record, or none that
// anybody waits for.
func TestNoSync(t *testing.T) {
	for noSync, enough := range map[bool]func(flushes int) bool{
		false: func(n int) bool { return n >= 20 },
		true:  func(n int) bool { return n < 10 }, // the filesystem has a journal of its own
	} {
		cfg := testConfig(t, t.TempDir())
		cfg.Plugins.Bolt.NoSync = noSync
		device := mountDisk(t, cfg.Root)
		r := start(t, cfg)
		client := namespacesapi.NewNamespacesClient(r.conn)
		before := flushes(t, device)
		for i := range 20 {
			if _, err := client.Create(t.Context(), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: fmt.Sprintf("n%d", i)}}); err != nil {
				t.Fatal(err)
			}
		}
		if n := flushes(t, device) - before; !enough(n) {
			t.Errorf("no_sync %v: 20 records took %d flushes", noSync, n)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
}

// mountDisk mounts a small disk of its own and returns the name of its device.
func mountDisk(t *testing.T, dir string) (device string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"truncate", "-s", "64M", image}, {"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no disk can be made here: %v: %s", err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == dir {
			return filepath.Base(f[0])
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

// flushes is how many a disk has completed (Documentation/block/stat.rst).
func flushes(t *testing.T, device string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/sys/block", device, "stat"))
	if err != nil {
		t.Skip(err)
	}
	f := strings.Fields(string(data))
	if len(f) < 16 {
		t.Skip("the kernel does not count flushes")
	}
	n, err := strconv.Atoi(f[15])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
