package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"berth/internal/ociruntime/ocinit"

	"github.com/containerd/errdefs"
	_ "github.com/opencontainers/cgroups/devices" // device rules, which cgroup managers have only by this
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Builtin is the driver that runs libcontainer in the calling process.
type Builtin struct {
	// Root is the directory of the containers' state.
	Root string
	// SystemdCgroup has systemd make the cgroups.
	SystemdCgroup bool
}

var _ Driver = (*Builtin)(nil)

// builtin is a container of this process.
//
// libcontainer holds a lock of the container while it starts a process in it.
// So that a start that hangs does not hold up another, or a kill, only one
// user at a time has lc: who does not get busy loads the state from disk.
type builtin struct {
	driver  *Builtin
	id      string
	busy    sync.Mutex
	lc      *libcontainer.Container
	init    *builtinProcess
	ownPIDs bool
	// restored: the container runs already.
	restored bool
}

func (d *Builtin) Create(ctx context.Context, id string, opts CreateOptions) (_ Container, err error) {
	ocinit.Linked()
	if err := checkProcess(opts.Spec.Process); err != nil {
		return nil, err
	}
	if opts.Spec.Linux != nil && opts.Spec.Linux.Seccomp != nil && !seccomp.Enabled {
		return nil, fmt.Errorf("%w: container %s has a seccomp profile, and this program was built without seccomp: build it with the tag, as scripts/build does", errdefs.ErrNotImplemented, id)
	}
	if _, err := unix.Getcwd(make([]byte, unix.PathMax)); errors.Is(err, unix.ENOENT) {
		// The bundle of an earlier container, now deleted: libcontainer wants one
		// that exists, whichever.
		if err := os.Chdir("/"); err != nil {
			return nil, err
		}
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: d.SystemdCgroup,
		NoPivotRoot:      opts.NoPivotRoot,
		NoNewKeyring:     opts.NoNewKeyring,
		Spec:             absolute(opts.Spec, opts.Bundle),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: config.json of container %s: %w", errdefs.ErrInvalidArgument, id, err)
	}
	// The last label is libcontainer's own: where it takes the bundle to be.
	if n := len(config.Labels); n > 0 && strings.HasPrefix(config.Labels[n-1], "bundle=") {
		config.Labels[n-1] = "bundle=" + opts.Bundle
	}
	lc, err := libcontainer.Create(d.Root, id, config)
	if errors.Is(err, libcontainer.ErrExist) {
		return nil, fmt.Errorf("%w: container %s has state in %s", errdefs.ErrAlreadyExists, id, d.Root)
	} else if err != nil {
		return nil, err
	}
	c := &builtin{driver: d, id: id, lc: lc, ownPIDs: ownPIDs(opts.Spec), restored: opts.Checkpoint != ""}
	defer func() {
		if err != nil {
			// What failed is more telling than what could not be removed.
			_ = lc.Destroy()
		}
	}()
	process, err := newProcess(opts.Spec.Process)
	if err != nil {
		return nil, err
	}
	process.Init = true
	start := lc.Start
	if opts.Checkpoint != "" {
		criu := &libcontainer.CriuOpts{ImagesDirectory: opts.Checkpoint, WorkDirectory: opts.CriuWork}
		start = func(p *libcontainer.Process) error { return lc.Restore(p, criu) }
	}
	c.init, err = startProcess(process, opts.Stdio, opts.Spec.Process.Terminal, start)
	if err != nil {
		return nil, err
	}
	if opts.PIDFile != "" {
		if err = os.WriteFile(opts.PIDFile, strconv.AppendInt(nil, int64(c.init.pid), 10), 0o644); err != nil {
			_ = unix.Kill(c.init.pid, unix.SIGKILL)
			_, _ = c.init.Collect()
			return nil, fmt.Errorf("record the container's PID: %w", err)
		}
	}
	return c, nil
}

// absolute makes the paths of a specification that are relative to the bundle
// absolute. libcontainer would take them as relative to the working directory,
// which is that of all containers of this process.
func absolute(spec *specs.Spec, bundle string) *specs.Spec {
	s := *spec
	if s.Root != nil && !filepath.IsAbs(s.Root.Path) {
		root := *s.Root
		root.Path = filepath.Join(bundle, root.Path)
		s.Root = &root
	}
	s.Mounts = slices.Clone(s.Mounts)
	for i, m := range s.Mounts {
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if bind && m.Source != "" && !filepath.IsAbs(m.Source) {
			s.Mounts[i].Source = filepath.Join(bundle, m.Source)
		}
	}
	return &s
}

func (d *Builtin) Destroy(ctx context.Context, id string, spec *specs.Spec) error {
	lc, err := libcontainer.Load(d.Root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return d.destroyHalfMade(ctx, id, spec)
	} else if err != nil {
		return err
	}
	return destroy(lc)
}

func (c *builtin) Init() Process { return c.init }

func (c *builtin) Start(ctx context.Context) error {
	if c.restored {
		return nil
	}
	lc, done, err := c.container()
	if err != nil {
		return err
	}
	defer done()
	return lc.Exec()
}

// container returns the container for one use, ended by done.
func (c *builtin) container() (lc *libcontainer.Container, done func(), err error) {
	if c.busy.TryLock() {
		return c.lc, c.busy.Unlock, nil
	}
	lc, err = libcontainer.Load(c.driver.Root, c.id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		err = fmt.Errorf("%w: container %s", errdefs.ErrNotFound, c.id)
	}
	return lc, func() {}, err
}

func (c *builtin) Exec(ctx context.Context, opts ExecOptions) (Process, error) {
	if err := checkProcess(opts.Spec); err != nil {
		return nil, err
	}
	process, err := newProcess(opts.Spec)
	if err != nil {
		return nil, err
	}
	lc, done, err := c.container()
	if err != nil {
		return nil, err
	}
	defer done()
	p, err := startProcess(process, opts.Stdio, opts.Spec.Terminal, lc.Start)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (c *builtin) Signal(ctx context.Context, sig syscall.Signal) error {
	if sig == unix.SIGKILL && !c.ownPIDs {
		return c.KillAll(ctx)
	}
	// The PID cannot be another's: it is free only once we have collected it.
	return c.init.signal(sig)
}

func (c *builtin) KillAll(ctx context.Context) error {
	lc, done, err := c.container()
	if err != nil {
		return err
	}
	defer done()
	err = lc.Signal(unix.SIGKILL)
	switch {
	case errors.Is(err, libcontainer.ErrNotRunning), errors.Is(err, libcontainer.ErrCgroupNotExist), errors.Is(err, os.ErrProcessDone):
		return nil
	case err != nil:
		return fmt.Errorf("kill the processes of container %s: %w", c.id, err)
	}
	return nil
}

func (c *builtin) Pause(ctx context.Context) error {
	return c.with(func(lc *libcontainer.Container) error { return lc.Pause() })
}

func (c *builtin) Resume(ctx context.Context) error {
	return c.with(func(lc *libcontainer.Container) error { return lc.Resume() })
}

func (c *builtin) Pids(ctx context.Context) (pids []int, err error) {
	err = c.with(func(lc *libcontainer.Container) error {
		pids, err = lc.Processes()
		return err
	})
	return pids, err
}

func (c *builtin) with(fn func(*libcontainer.Container) error) error {
	lc, done, err := c.container()
	if err != nil {
		return err
	}
	defer done()
	return fn(lc)
}

func (c *builtin) Delete(ctx context.Context) error {
	c.busy.Lock()
	defer c.busy.Unlock()
	return destroy(c.lc)
}

// destroy kills what still runs and removes cgroups and state.
func destroy(lc *libcontainer.Container) error {
	status, err := lc.Status()
	if err != nil {
		return err
	}
	if status != libcontainer.Stopped {
		if err := lc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
			return err
		}
		if err := awaitStopped(lc); err != nil {
			return err
		}
	}
	return lc.Destroy()
}
