package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Update changes the limits that resources names; what it does not name stays.
func (c *builtin) Update(ctx context.Context, resources *specs.LinuxResources) error {
	return c.with(func(lc *libcontainer.Container) error {
		config := lc.Config()
		group := *config.Cgroups
		limits := *group.Resources
		if err := setLimits(&limits, resources); err != nil {
			return err
		}
		// Device rules are set once: an update would take and give them again.
		limits.SkipDevices = true
		defer func() { limits.SkipDevices = false }() // lc keeps limits, and an exec refuses those with the mark
		group.Resources = &limits
		config.Cgroups = &group
		if err := lc.Set(config); errors.Is(err, libcontainer.ErrNotRunning) {
			return fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
		} else if err != nil {
			return err
		}
		return nil
	})
}

// setLimits writes what an OCI specification says over limits.
func setLimits(limits *cgroups.Resources, r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		set(&limits.Memory, m.Limit)
		set(&limits.MemoryReservation, m.Reservation)
		set(&limits.MemorySwap, m.Swap)
		if m.CheckBeforeUpdate != nil {
			limits.MemoryCheckBeforeUpdate = *m.CheckBeforeUpdate
		}
	}
	if cpu := r.CPU; cpu != nil {
		if cpu.Shares != nil {
			limits.CpuShares = *cpu.Shares
			// cgroup v2 has a weight instead: the manager converts only what is 0.
			limits.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		set(&limits.CpuQuota, cpu.Quota)
		if cpu.Burst != nil {
			limits.CpuBurst = cpu.Burst
		}
		set(&limits.CpuPeriod, cpu.Period)
		set(&limits.CpuRtRuntime, cpu.RealtimeRuntime)
		set(&limits.CpuRtPeriod, cpu.RealtimePeriod)
		if cpu.Idle != nil {
			limits.CPUIdle = cpu.Idle
		}
		if cpu.Cpus != "" {
			limits.CpusetCpus = cpu.Cpus
		}
		if cpu.Mems != "" {
			limits.CpusetMems = cpu.Mems
		}
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		limits.PidsLimit = p.Limit
	}
	if b := r.BlockIO; b != nil && b.Weight != nil {
		limits.BlkioWeight = *b.Weight
	}
	for _, page := range r.HugepageLimits {
		limits.HugetlbLimit = append(limits.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: page.Pagesize, Limit: page.Limit})
	}
	if len(r.Unified) > 0 {
		unified := make(map[string]string, len(limits.Unified)+len(r.Unified))
		for k, v := range limits.Unified {
			unified[k] = v
		}
		for k, v := range r.Unified {
			if strings.Contains(k, "/") {
				return fmt.Errorf("%q is not a file of a cgroup: %w", k, errdefs.ErrInvalidArgument)
			}
			unified[k] = v
		}
		limits.Unified = unified
	}
	return nil
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}

// Checkpoint writes the state of all processes to a directory, by CRIU.
func (c *builtin) Checkpoint(ctx context.Context, o CheckpointOptions) error {
	if _, err := exec.LookPath("criu"); err != nil {
		return fmt.Errorf("checkpoints are written by CRIU, which is not installed: %w: %w", err, errdefs.ErrNotImplemented)
	}
	criu := &libcontainer.CriuOpts{
		ImagesDirectory:         o.ImagePath,
		WorkDirectory:           o.WorkPath,
		ParentImage:             o.ParentPath,
		LeaveRunning:            !o.Exit,
		TcpEstablished:          o.OpenTCP,
		ExternalUnixConnections: o.ExternalUnixSockets,
		ShellJob:                o.Terminal,
		FileLocks:               o.FileLocks,
		ManageCgroupsMode:       o.CgroupsMode,
	}
	for _, name := range o.EmptyNamespaces {
		if name != "network" {
			return fmt.Errorf("namespace %q cannot be left out of a checkpoint, only network can: %w", name, errdefs.ErrInvalidArgument)
		}
		criu.EmptyNs |= unix.CLONE_NEWNET
	}
	err := c.with(func(lc *libcontainer.Container) error { return lc.Checkpoint(criu) })
	if err != nil {
		work := o.WorkPath
		if work == "" {
			work = o.ImagePath
		}
		if log := filepath.Join(work, "dump.log"); exists(log) {
			return fmt.Errorf("%w (CRIU's log is %s)", err, log)
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
