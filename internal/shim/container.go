package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/internal/cgroup"
	"berth/internal/failpoint"
	"berth/internal/mount"
	"berth/internal/object/live"
	"berth/internal/ociruntime"
	"berth/internal/shim/api"
	"berth/internal/stdio"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container is a container of this shim.
type container struct {
	service *service
	id      string
	bundle  string
	options *api.Options
	init    *process
	oci     ociruntime.Container
	group   cgroup.Group
	oom     *cgroup.OOM // nil when memory is not counted
	// mounted: the root filesystem is ours to unmount.
	mounted bool
	// ownPIDs: the kernel ends all processes with the init.
	ownPIDs bool
	// settled is closed when it is made, or could not be.
	settled chan struct{}

	mu    sync.Mutex
	execs map[string]*process
}

// createRequest is what the daemon asks for.
type createRequest struct {
	id, bundle string
	rootfs     []live.Mount
	io         live.TaskIO
	checkpoint string
	options    *api.Options
}

func (c *container) stdioOptions() stdio.Options {
	return stdio.Options{
		UID: int(c.options.IoUid), GID: int(c.options.IoGid),
		Namespace: c.service.namespace, ID: c.id,
		Patience: clientPatience,
	}
}

// clientPatience is how long a client may take to open its end of an output once it
// has asked for the process. containerd's shims wait for as long as the call lasts.
const clientPatience = 3 * time.Second

// create makes the container with its init process. A failure leaves nothing.
func (c *container) create(ctx context.Context, req createRequest) (err error) {
	if path := req.options.ShimCgroup; path != "" {
		c.service.moved.Store(true)
		if err := cgroup.Join(path, os.Getpid()); err != nil {
			return fmt.Errorf("put the shim into the cgroup that the options name: %w", err)
		}
	}
	spec, changed, err := loadSpec(req.bundle, c.service.log)
	if err != nil {
		return err
	}
	c.ownPIDs = privatePIDs(spec)
	if err := writeOptions(req.bundle, req.options); err != nil {
		return fmt.Errorf("keep the options: %w", err)
	}
	spec.Process.Terminal, changed = req.io.Terminal, changed || spec.Process.Terminal != req.io.Terminal
	if len(req.rootfs) > 0 {
		target := filepath.Join(req.bundle, "rootfs")
		if err := os.Mkdir(target, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := mount.All(req.rootfs, target); err != nil {
			return fmt.Errorf("mount the root filesystem: %w", err)
		}
		c.mounted = true
		if err := failpoint.Hit("shim.create.mounted"); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			c.unmount()
		}
	}()
	streams, err := stdio.Open(ctx, req.io, c.stdioOptions())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			streams.Close()
		}
	}()
	in, out, errout := streams.Child()
	release := c.service.reaper.Hold()
	defer release()
	c.oci, err = driverFor(c.options, c.service.namespace, c.bundle).Create(ctx, c.id, ociruntime.CreateOptions{
		Bundle:       req.bundle,
		Spec:         spec,
		Changed:      changed,
		Stdio:        ociruntime.Stdio{Stdin: in, Stdout: out, Stderr: errout},
		NoPivotRoot:  c.options.NoPivotRoot,
		NoNewKeyring: c.options.NoNewKeyring,
		PIDFile:      filepath.Join(req.bundle, pidFile),
		Checkpoint:   req.checkpoint,
		CriuWork:     c.options.CriuWorkPath,
	})
	if err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	failpoint.Hit("shim.create.made")
	if err := c.init.attach(c.oci.Init(), streams); err != nil {
		// Also when the client has left, with whom ctx has ended.
		ctx := context.WithoutCancel(ctx)
		_ = c.oci.KillAll(ctx)
		_, _ = c.oci.Init().Collect()
		return errors.Join(err, c.oci.Delete(ctx))
	}
	c.watch()
	c.service.reaper.Register(c.oci.Init(), c.init.collected)
	return nil
}

// watch finds the container's control group and watches its memory. A host that
// has no control groups runs containers all the same.
func (c *container) watch() {
	var err error
	if c.group, err = cgroup.Of(c.oci.Init().PID()); err == nil {
		c.oom, err = c.group.WatchOOM(func() { c.service.publish(oomEvent(c.id)) })
	}
	if err != nil {
		c.service.log.Warn("being out of memory will not be noticed", "container", c.id, "error", err)
	}
}

// unmount undoes the mount of the root filesystem, and with it what is mounted
// below: the list of all mounts, which grows with the number of containers on the
// host, need not be read.
func (c *container) unmount() {
	if !c.mounted {
		return
	}
	if err := mount.Unmount(filepath.Join(c.bundle, "rootfs"), unix.MNT_DETACH); err != nil {
		c.service.log.Error("the root filesystem cannot be unmounted", "container", c.id, "error", err)
	}
	c.mounted = false
}

// unwatch ends the watch of the control group.
func (c *container) unwatch() {
	if c.oom != nil {
		if err := c.oom.Close(); err != nil {
			c.service.log.Warn("the watch for memory does not end", "container", c.id, "error", err)
		}
	}
}

// process finds the init (empty ID) or an exec.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[execID]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s of container %s: %w", execID, c.id, errdefs.ErrNotFound)
}

// beginExec enters the start of an exec, if its container is in a state for it: in
// one that is frozen the new process would be, too, before it is one.
func (c *container) beginExec(p *process) error {
	c.mu.Lock() // against startedExecs: it sees p, or p sees that the init has ended
	defer c.mu.Unlock()
	if err := c.init.admits(); err != nil {
		return err
	}
	_, err := p.begin(opStart)
	return err
}

// admits tells whether a process can start beside the init.
func (p *process) admits() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	if p.end != nil {
		s = stopped
	}
	if r := ruleOf(s, opExec, false); !r.allowed {
		return refusal(s, opExec, r.kind)
	}
	return nil
}

// startedExecs are those that have, or are about to have, a process whose end is not
// told yet.
func (c *container) startedExecs() (started []*process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.execs {
		p.mu.Lock()
		if p.state == starting || p.state == running {
			started = append(started, p)
		}
		p.mu.Unlock()
	}
	return started
}

// beforeExit does what must precede the report of p's end.
func (c *container) beforeExit(p *process) {
	if p.isExec() {
		return
	}
	if c.oom != nil {
		c.oom.Flush()
	}
	if !c.ownPIDs {
		// Without its init a container is not one: what it left ends, too.
		if err := c.service.hold(func() error { return c.oci.KillAll(c.service.ctx) }); err != nil {
			c.service.log.Error("what the container left behind cannot be killed", "container", c.id, "error", err)
		}
	}
}

// maxSpec bounds config.json, which comes from a client.
const maxSpec = 16 << 20

// loadSpec reads a bundle's config.json and adapts it to what this host allows.
func loadSpec(bundle string, log *slog.Logger) (_ *specs.Spec, changed bool, err error) {
	path := filepath.Join(bundle, "config.json")
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, false, err
	}
	if len(raw) > maxSpec {
		return nil, false, fmt.Errorf("%s is larger than %d bytes: %w", path, maxSpec, errdefs.ErrInvalidArgument)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, false, fmt.Errorf("%s is not an OCI runtime configuration: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case spec.Process == nil:
		return nil, false, fmt.Errorf("%s has no process: %w", path, errdefs.ErrInvalidArgument)
	case spec.Linux == nil:
		return nil, false, fmt.Errorf("%s has no linux section: %w", path, errdefs.ErrInvalidArgument)
	case spec.Root == nil:
		return nil, false, fmt.Errorf("%s names no root filesystem: %w", path, errdefs.ErrInvalidArgument)
	}
	return spec, clamp(spec.Process, log), nil
}

func privatePIDs(spec *specs.Spec) bool {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path == ""
		}
	}
	return false
}
