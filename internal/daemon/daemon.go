// Package daemon is the wiring: it makes the components in order, serves the
// API on them, and takes them down in reverse. Each component is reported by
// introspection under the name of the plugin that it is in containerd.
//
// On disk it owns, in root: berth.lock (locked while a daemon uses the
// directory; its PID), berth.run (how the last daemon ended, see mark.go),
// io.containerd.grpc.v1.introspection/uuid, tmpmounts; in state: berth.lock.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/config"
	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/failpoint"
	"berth/internal/grpcapi"
	"berth/internal/meta"
	"berth/internal/metrics"
	"berth/internal/mount"
	"berth/internal/mount/activation"
	"berth/internal/remote"
	"berth/internal/sandbox"
	"berth/internal/snapshot"
	"berth/internal/task"
	"berth/internal/trace"
	"berth/internal/transfer"
	"berth/internal/version"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/credentials"
)

const (
	// closeTimeout bounds how long calls under way hold up the end of the daemon.
	closeTimeout = 3 * time.Second
	// partTimeout bounds how long each part of it does.
	partTimeout = 30 * time.Second
)

// Daemon is the components, in the order in which they are made.
type Daemon struct {
	cfg *config.Config
	log *slog.Logger

	run           mark
	rebooted      bool // since the last daemon
	ready         bool // New has succeeded
	hangs         bool // a part has not ended in time
	patience      time.Duration
	tempDir       string // TMPDIR before the daemon set its own
	content       content.Store
	localContent  *content.Local // nil when a proxy plugin is the content store
	snapshotters  map[string]snapshot.Backend
	differs       map[string]openDiffer
	unpackDiffer  string // of transfers; the walking one when empty
	proxies       map[string]*remote.Proxy
	events        *events.Exchange
	db            *meta.DB
	mounts        *activation.Table
	garbage       chan struct{} // capacity 1: garbage was collected
	tasks         *task.Manager
	sandboxers    map[string]sandbox.Controller // by the names of their plugins
	transfer      *transfer.Service
	api           *grpcapi.Server
	shimEvents    *ttrpc.Server
	grpcListener  net.Listener
	ttrpcListener net.Listener
	tcpAPI        *grpcapi.Server // on the TCP address; nil without one
	tcpListener   net.Listener
	tcpCreds      credentials.TransportCredentials // nil without TLS
	https         []*httpServer
	tracer        *trace.Tracer // nil when nobody traces
	calls         *metrics.Calls
	collections   metrics.Collections

	// live is the configuration as it was reloaded last; cfg is that of the start.
	live atomic.Pointer[config.Config]

	plugins []grpcapi.Plugin
	// undo takes down what is there, the last first.
	undo []func() error
	// settled is closed when what an earlier daemon left is dealt with.
	settled chan struct{}
	// adopted is closed before that, when it is so of the tasks.
	adopted chan struct{}
	// life ends with Close; background is what runs beside the API.
	life       context.Context
	end        context.CancelFunc
	background sync.WaitGroup
}

// New makes a daemon that is ready to serve: directories are locked, stores
// open, sockets bound. A component that the daemon cannot be without makes it
// fail, with nothing left behind; another is reported as failed.
func New(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *Daemon, err error) {
	d := &Daemon{cfg: cfg, log: log, patience: partTimeout, settled: make(chan struct{}), adopted: make(chan struct{})}
	d.live.Store(cfg)
	d.life, d.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, d.takeDown())
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"tracing", d.openTracing},
		{"directories", d.openDirs},
		{"mark of the last run", d.readMark},
		{"proxy plugins", d.openProxies},
		{"content store", d.openContent},
		{"snapshotters", d.openSnapshotters},
		{"differs", d.openDiffers},
		{"mounts", d.openMounts},
		{"metadata", d.openMetadata},
		{"tasks", d.openTasks},
		{"transfer service", d.openTransfer},
		{"sockets", d.listen},
		{"API", d.openAPI},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("start of the %s: %w", step.what, err)
		}
	}
	d.ready = true
	failpoint.Hit("daemon.start.ready")
	return d, nil
}

func (d *Daemon) onClose(fn func() error) { d.undo = append(d.undo, fn) }

func (d *Daemon) openDirs(context.Context) error {
	if err := makeDirs(d.cfg); err != nil {
		return err
	}
	for _, dir := range []string{d.cfg.Root, d.cfg.State} {
		unlock, err := lockDir(dir)
		if err != nil {
			return err
		}
		d.onClose(unlock)
	}
	return d.useTempDir()
}

// useTempDir gives this daemon a place of its own for temporary mounts, and
// takes away what an earlier one has left there.
func (d *Daemon) useTempDir() error {
	d.tempDir = cmp.Or(d.cfg.Temp, os.Getenv("TMPDIR"))
	if dir := d.cfg.Temp; dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("temp: %w", err)
		}
	}
	if err := os.Setenv("TMPDIR", filepath.Join(d.cfg.Root, tempMountsDir)); err != nil {
		return err
	}
	if err := mount.RemoveTemps(); err != nil {
		d.log.Warn("temporary mounts of an earlier daemon stay", "error", err)
	}
	return nil
}

// readMark finds out how the last daemon ended and marks this one as running.
func (d *Daemon) readMark(context.Context) error {
	last, ok, err := readMark(d.cfg.Root)
	if err != nil {
		return err
	}
	d.run = mark{Boot: bootID(), Started: time.Now().UTC()}
	if ok {
		d.run.Doubt = d.doubt(last)
		d.rebooted = last.Boot != d.run.Boot
		if !last.Clean {
			d.log.Info("the last daemon was not stopped in order", "started", last.Started, "rebooted", last.Boot != d.run.Boot)
		}
	}
	if err := d.run.write(d.cfg.Root); isFull(err) {
		// Who wants to make room needs a daemon for it.
		d.log.Warn("the disk is full: after a power cut nobody would know that this daemon ran, and verify what it wrote", "error", err)
	} else if err != nil {
		return err
	}
	// The first to be undone but for the locks: when the stores are closed.
	d.onClose(func() error {
		if !d.ready {
			return last.writeIf(ok, d.cfg.Root)
		}
		d.run.Clean = !d.hangs
		return d.run.write(d.cfg.Root)
	})
	return nil
}

func (d *Daemon) openContent(ctx context.Context) error {
	if p, err := d.contentProxy(); err != nil || p != nil {
		d.content = p
		return err
	}
	dir := filepath.Join(d.cfg.Root, contentDir)
	return d.essential(grpcapi.Plugin{Type: contentPlugin, ID: "content", Exports: map[string]string{"root": dir}}, func() (err error) {
		d.localContent, err = content.OpenLocal(content.LocalOptions{Root: dir})
		if err != nil {
			return err
		}
		d.content = d.localContent
		if removed, err := d.localContent.CleanIngests(ctx); err != nil {
			d.log.Warn("what earlier crashes left among the ingests stays", "error", err)
		} else if removed > 0 {
			d.log.Info("removed what earlier crashes left among the ingests", "removed", removed)
		}
		return nil
	})
}

func (d *Daemon) openMetadata(ctx context.Context) error {
	d.events = events.New()
	d.working(grpcapi.Plugin{Type: "io.containerd.event.v1", ID: "exchange"})

	path := filepath.Join(d.cfg.Root, metadataDir, "meta.db")
	bolt := d.cfg.Plugins.Bolt
	err := d.essential(grpcapi.Plugin{
		Type: "io.containerd.metadata.v1", ID: "bolt",
		Requires: []string{"io.containerd.content.v1", "io.containerd.event.v1", "io.containerd.snapshotter.v1"},
		Exports:  map[string]string{"policy": bolt.ContentSharingPolicy, "path": path},
	}, func() (err error) {
		d.db, err = meta.Open(trace.With(ctx, d.tracer), meta.Options{
			Path:         path,
			Content:      d.content,
			Snapshotters: d.snapshotters,
			Events:       d.events,
			Isolated:     bolt.ContentSharingPolicy == config.SharingIsolated,
			GC:           gcOptions(d.cfg),
			Collected:    d.collected,
			NoSync:       bolt.NoSync,
			LockTimeout:  d.cfg.Timeout(config.TimeoutBoltOpen),
			Log:          d.log,
		})
		return err
	})
	if err != nil {
		return err
	}
	d.onClose(func() error {
		err := d.db.Close()
		if isFull(err) {
			// Its records are there; what is not written is for a faster next start.
			d.log.Warn("the disk is full at the end of the metadata database", "error", err)
			return nil
		}
		return err
	})
	d.distrust(ctx)
	d.reportDamage(d.db.Report())
	d.working(d.gcPlugin())
	return nil
}

func (d *Daemon) openTasks(context.Context) error {
	p := d.cfg.Plugins
	env := p.ShimManager.Env
	if dir := p.Opt.Path; dir != "" {
		d.optional(grpcapi.Plugin{Type: "io.containerd.internal.v1", ID: "opt", Exports: map[string]string{"path": dir}}, func() error { return addOpt(dir) })
	}
	return d.essential(grpcapi.Plugin{
		Type: grpcapi.RuntimePluginType, ID: "task", Platforms: d.taskPlatforms(),
		Requires: []string{"io.containerd.shim.v1", "io.containerd.mount-manager.v1", "io.containerd.warning.v1"},
		Exports:  map[string]string{"log-uri-schemes": "fifo,binary,binary-v2,file"},
	}, func() (err error) {
		d.tasks, err = task.New(task.Options{
			Root:         d.cfg.Root,
			State:        d.cfg.State,
			Address:      p.GRPC.Address,
			TTRPCAddress: p.TTRPC.Address,
			SocketDir:    p.ShimManager.SocketDir,
			Version:      version.Version,
			Events:       d.events,
			Mounts:       d.mounts,
			Log:          d.log,
			Timeouts:     d.taskTimeouts,
			Env:          append(env[:len(env):len(env)], d.shimTempDir()),
		})
		if err != nil {
			return err
		}
		d.onClose(d.tasks.Close)
		d.working(grpcapi.Plugin{Type: "io.containerd.shim.v1", ID: "manager", Requires: []string{"io.containerd.event.v1", "io.containerd.metadata.v1"}})
		d.sandboxers = map[string]sandbox.Controller{"shim": d.tasks.Sandboxes()}
		d.working(grpcapi.Plugin{Type: sandboxPlugin, ID: "shim", Requires: []string{"io.containerd.shim.v1", "io.containerd.event.v1"}})
		d.proxySandboxers()
		d.openRestart()
		return nil
	})
}

// Serve answers calls until ctx ends or a server fails. Before it returns it
// has only stopped to accept calls: Close does the rest.
func (d *Daemon) Serve(ctx context.Context) error {
	failed := make(chan error, 3+len(d.https))
	go func() { failed <- wrap("gRPC server on "+d.grpcListener.Addr().String(), d.api.Serve(d.grpcListener)) }()
	if d.tcpAPI != nil {
		go func() { failed <- wrap("gRPC server on "+d.tcpListener.Addr().String(), d.tcpAPI.Serve(d.tcpListener)) }()
	}
	go func() { failed <- wrap("ttrpc server", d.shimEvents.Serve(d.life, d.ttrpcListener)) }()
	for _, s := range d.https {
		go func() { failed <- wrap(s.name+" server", s.serve()) }()
	}
	d.background.Go(d.recover)
	if interval := watchdogInterval(os.Getenv); interval > 0 {
		d.background.Go(func() { d.watchdog(interval) })
	}
	if err := notify("READY=1"); err != nil {
		d.log.Warn("systemd does not know that the daemon is ready", "error", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func wrap(what string, err error) error {
	if err == nil {
		return fmt.Errorf("%s ended", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Close stops the daemon in order: calls under way may finish for a moment,
// containers and their shims live on. The mark of a clean stop is written when
// all stores are closed.
func (d *Daemon) Close() error {
	if err := notify("STOPPING=1"); err != nil {
		d.log.Warn("systemd does not know that the daemon stops", "error", err)
	}
	return d.takeDown()
}

func (d *Daemon) takeDown() error {
	d.end()
	errs := []error{d.ends(func() error { d.background.Wait(); return nil })}
	for i := len(d.undo) - 1; i >= 0; i-- {
		errs = append(errs, d.ends(d.undo[i]))
	}
	return errors.Join(errs...)
}

// ends takes a part down. One that hangs (in a mount, or a program that was asked)
// does not hold up the end of the others for ever; but then the mark does not say
// that all has ended.
func (d *Daemon) ends(part func() error) error {
	done := make(chan error, 1)
	go func() { done <- part() }()
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		d.hangs = true
		return fmt.Errorf("a part of the daemon has not ended within %s, and is left behind: %w", d.patience, context.DeadlineExceeded)
	}
}
