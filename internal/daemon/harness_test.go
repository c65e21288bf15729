package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"berth/internal/config"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// testConfig is a configuration with everything below dir.
func testConfig(t *testing.T, dir string) *config.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the daemon needs root")
	}
	// The daemon sets these for its process.
	for _, name := range []string{"TMPDIR", "PATH", "LD_LIBRARY_PATH"} {
		t.Setenv(name, os.Getenv(name))
	}
	t.Setenv("NOTIFY_SOCKET", "")
	cfg := config.Default()
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	cfg.Plugins.Opt.Path = filepath.Join(dir, "opt")
	cfg.SetAddress(filepath.Join(dir, "c.sock"))
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// buffer is a log that several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type running struct {
	*Daemon
	conn *grpc.ClientConn
	log  *buffer
	stop func() error
}

// start runs a daemon until stop, or the end of the test.
func start(t *testing.T, cfg *config.Config) *running {
	t.Helper()
	log := &buffer{}
	d, err := New(t.Context(), cfg, NewLogger(log, "", slog.LevelDebug))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx) }()
	conn, err := grpc.NewClient("unix://"+cfg.Plugins.GRPC.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error {
		cancel()
		_ = conn.Close()
		return errors.Join(<-served, d.Close())
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return &running{d, conn, log, stop}
}

func in(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

func lastMark(t *testing.T, cfg *config.Config) mark {
	t.Helper()
	m, ok, err := readMark(cfg.Root)
	if err != nil || !ok {
		t.Fatalf("no mark: %v", err)
	}
	return m
}
