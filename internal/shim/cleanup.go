package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/internal/failpoint"
	"berth/internal/mount"
	"berth/internal/object/live"
	"berth/internal/shim/api"

	"golang.org/x/sys/unix"
)

// Files in a bundle, besides those of the OCI runtime specification. Compat: names
// and contents are those of containerd's shim, so that either cleans up after
// the other.
const (
	pidFile     = "init.pid"     // PID of the init process
	optionsFile = "options.json" // options of the runtime; none means defaults
	exitFile    = "exit.json"    // how the init process ended
)

// exitRecord is the content of exitFile.
type exitRecord struct {
	Timestamp time.Time
	Pid       int
	Status    int
}

// writeExit leaves the end of the init process in the bundle, for the case that the
// shim is killed before anybody has asked.
func writeExit(bundle string, e live.Exit) error {
	raw, err := json.Marshal(exitRecord{e.At, int(e.PID), int(e.Status)})
	if err != nil {
		return err
	}
	path := filepath.Join(bundle, exitFile)
	if err := os.WriteFile(path+".tmp", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// writeOptions keeps the options that Cleanup will need.
func writeOptions(bundle string, o *api.Options) error {
	raw, err := json.Marshal(o)
	if err != nil || string(raw) == "{}" {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, optionsFile), raw, 0o600)
}

func readOptions(bundle string) (*api.Options, error) {
	o := new(api.Options)
	raw, err := os.ReadFile(filepath.Join(bundle, optionsFile))
	if errors.Is(err, os.ErrNotExist) {
		return o, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("%s: %w", optionsFile, err)
	}
	return o, nil
}

// Cleanup is the action "delete": it kills and removes what a shim that is gone left
// of a container, and writes a DeleteResponse message to out. What cannot be
// removed is told on warnings; how the container ended is reported in any case.
func Cleanup(ctx context.Context, f Flags, out, warnings io.Writer) error {
	bundle := f.Bundle
	if bundle == "" {
		cwd, err := os.Getwd()
		if err != nil {
			return err
		}
		// A shim of a group may be started in the bundle of another container.
		bundle = filepath.Join(filepath.Dir(cwd), filepath.Base(f.ID))
	}
	opts, err := readOptions(bundle)
	if err != nil {
		return err
	}
	spec, _, err := loadSpec(bundle, slog.New(slog.DiscardHandler))
	if err != nil {
		spec = nil // the state tells all, unless the shim was killed before it was saved
	}
	if err := driverFor(opts, f.Namespace, bundle).Destroy(ctx, f.ID, spec); err != nil {
		fmt.Fprintf(warnings, "remove container %s: %v\n", f.ID, err)
	}
	killed := time.Now()
	removeDeadSocket(bundle)
	failpoint.Hit("shim.cleanup.destroyed")
	if err := mount.UnmountRecursive(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
		fmt.Fprintf(warnings, "unmount the root filesystem of %s: %v\n", f.ID, err)
	}
	e, err := readExit(bundle)
	if err != nil {
		e = exitRecord{Timestamp: killed, Pid: readPID(bundle), Status: 128 + int(unix.SIGKILL)}
	}
	_, err = out.Write(api.Marshal(&api.DeleteResponse{Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: api.Time(e.Timestamp)}))
	return err
}

// removeDeadSocket removes the socket that the daemon noted in the bundle, unless
// another shim of the group, or this one against all odds, serves it.
func removeDeadSocket(bundle string) {
	raw, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return
	}
	var noted struct{ Address string }
	if json.Unmarshal(raw, &noted) != nil {
		return
	}
	path, ok := strings.CutPrefix(noted.Address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return
	}
	conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
	if err == nil {
		conn.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path)
	}
}

func readExit(bundle string) (e exitRecord, err error) {
	raw, err := os.ReadFile(filepath.Join(bundle, exitFile))
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(raw, &e)
}

func readPID(bundle string) int {
	raw, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return max(pid, 0)
}
