package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/cgroup"
	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/logrelay"
	"berth/internal/version"

	"golang.org/x/sys/unix"
)

// serve runs the daemon until a signal ends it.
func serve(ctx context.Context, f flags, stderr io.Writer) error {
	begin := time.Now()
	cfg, warnings, err := loadConfig(f)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	if err := setLevel(level, cfg); err != nil {
		return err
	}
	log := daemon.NewLogger(stderr, cfg.Debug.Format, level)
	if cfg.Debug.LogTraceID {
		log = daemon.WithTraceIDs(log)
	}
	logrelay.Install(log)
	warn(log, warnings)
	log.Info("starting containerd", "distribution", version.Name, "version", version.Version, "revision", version.Revision())

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Handled from the start: a signal that comes while stores are opened must
	// not be lost. A reload waits until there is something to reload.
	reloads := make(chan struct{}, 1)
	defer handleSignals(log, stop, reloads)()
	setOOMScore(log, cfg.OOMScore)
	if path := cfg.Cgroup.Path; path != "" {
		if err := cgroup.MakeAndJoin(path, os.Getpid()); err != nil {
			return fmt.Errorf("configuration: cgroup.path: %w", err)
		}
	}

	d, err := daemon.New(ctx, cfg, log)
	if err != nil && ctx.Err() != nil {
		log.Info("stopped during the start", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	log.Info("serving...", "address", cfg.Plugins.GRPC.Address)
	log.Info("serving...", "address", cfg.Plugins.TTRPC.Address)
	log.Info(fmt.Sprintf("containerd successfully booted in %fs", time.Since(begin).Seconds()))
	var reloader sync.WaitGroup
	reloader.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-reloads:
				reload(f, d, level, log)
			}
		}
	})
	err = d.Serve(ctx)
	stop()
	reloader.Wait()
	return errors.Join(err, d.Close())
}

func setLevel(level *slog.LevelVar, cfg *config.Config) error {
	l, err := daemon.ParseLevel(cfg.Debug.Level)
	if err == nil {
		level.Set(l)
	}
	return err
}

func warn(log *slog.Logger, warnings []config.Warning) {
	for _, w := range warnings {
		log.Warn("configuration: "+w.Text, "file", w.File, "row", w.Row, "column", w.Column)
	}
}

// reload reads the configuration again. One that is wrong changes nothing.
func reload(f flags, d *daemon.Daemon, level *slog.LevelVar, log *slog.Logger) {
	defer daemon.Reloading()()
	cfg, warnings, err := loadConfig(f)
	if err != nil {
		log.Error("the configuration is wrong and was not reloaded; the daemon goes on with the old one", "error", err)
		return
	}
	warn(log, warnings)
	if err := setLevel(level, cfg); err != nil {
		log.Error("the configuration is wrong and was not reloaded; the daemon goes on with the old one", "error", err)
		return
	}
	now, later := d.Reload(cfg)
	log.Info("the configuration was reloaded", "changed", strings.Join(now, " "))
	if len(later) > 0 {
		log.Warn("some changes of the configuration wait for a restart of the daemon, which leaves containers alone", "changed", strings.Join(later, " "))
	}
}

// handleSignals calls stop when the daemon is asked to end, asks for a reload on
// SIGHUP, and writes all stacks on SIGUSR1. SIGPIPE (a reader of the log that
// leaves) does not end it. The result undoes it.
func handleSignals(log *slog.Logger, stop func(), reloads chan<- struct{}) (undo func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGPIPE)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				switch s {
				case unix.SIGPIPE:
				case unix.SIGHUP:
					select {
					case reloads <- struct{}{}:
					default: // one that has not begun yet serves this signal too
					}
				case unix.SIGUSR1:
					dumpStacks(log)
				default:
					log.Info("received a signal to stop", "signal", s.String())
					stop()
				}
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// dumpStacks writes the stacks of all goroutines to the log and to a file.
func dumpStacks(log *slog.Logger) {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	log.Info("=== BEGIN goroutine stack dump ===\n" + string(buf) + "\n=== END goroutine stack dump ===")
	name := filepath.Join("/tmp", fmt.Sprintf("containerd.%d.stacks.log", os.Getpid()))
	// Never through a link that somebody else has put into /tmp.
	_ = os.Remove(name)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		log.Warn("stacks are not written to a file", "error", err)
		return
	}
	defer f.Close()
	if _, err := f.Write(buf); err != nil {
		log.Warn("stacks are not written to a file", "error", err)
		return
	}
	log.Info("goroutine stack dump written to " + name)
}

// setOOMScore sets how soon the kernel ends the daemon when memory is short.
// To lower it takes CAP_SYS_RESOURCE, which not every host grants: the daemon
// runs without.
func setOOMScore(log *slog.Logger, score int) {
	if score == 0 {
		return
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(score)), 0); err != nil {
		log.Warn("the kernel refuses the configured oom_score", "oom_score", score, "error", err)
	}
}
