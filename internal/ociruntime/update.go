package ociruntime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// setLimits writes what an OCI specification says over limits. As with runc, some
// that it does not name are not set anew: what else has changed them on the host
// since (a CPU that went away, another program) is to stay.
func setLimits(limits *cgroups.Resources, r *specs.LinuxResources) error {
	setMemory(limits, cmp.Or(r.Memory, &specs.LinuxMemory{}))
	setCPU(limits, cmp.Or(r.CPU, &specs.LinuxCPU{}))
	limits.PidsLimit = nil
	if r.Pids != nil {
		limits.PidsLimit = r.Pids.Limit
	}
	if r.BlockIO != nil {
		setBlockIO(limits, r.BlockIO)
	}
	for _, page := range r.HugepageLimits {
		limits.HugetlbLimit = replace(limits.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: page.Pagesize, Limit: page.Limit},
			func(l *cgroups.HugepageLimit) bool { return l.Pagesize == page.Pagesize })
	}
	for k := range r.Unified {
		if strings.Contains(k, "/") {
			return fmt.Errorf("%q is not a file of a cgroup: %w", k, errdefs.ErrInvalidArgument)
		}
	}
	limits.Unified = maps.Clone(r.Unified)
	return nil
}

func setMemory(limits *cgroups.Resources, m *specs.LinuxMemory) {
	set(&limits.Memory, m.Limit)
	set(&limits.MemoryReservation, m.Reservation)
	set(&limits.MemorySwap, m.Swap)
	if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
		limits.MemorySwap = 0 // it goes with the limit
	}
	limits.MemoryCheckBeforeUpdate = m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate
}

func setCPU(limits *cgroups.Resources, cpu *specs.LinuxCPU) {
	shares := cpu.Shares
	if shares == nil && cpu.Idle != nil {
		shares = new(uint64) // an idle group has none
	}
	if shares != nil {
		limits.CpuShares = *shares
		// cgroup v2 has a weight instead: the manager converts only what is 0.
		limits.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*shares)
	}
	var period uint64
	var quota int64
	set(&period, cpu.Period)
	set(&quota, cpu.Quota)
	// Quota and period depend on each other: if only one is named, the other stays.
	if period != 0 || quota == 0 {
		limits.CpuPeriod = period
	}
	if quota != 0 || period == 0 {
		limits.CpuQuota = quota
	}
	limits.CpuBurst, limits.CPUIdle = cpu.Burst, cpu.Idle
	set(&limits.CpuRtRuntime, cpu.RealtimeRuntime)
	set(&limits.CpuRtPeriod, cpu.RealtimePeriod)
	limits.CpusetCpus, limits.CpusetMems = cpu.Cpus, cpu.Mems
}

func setBlockIO(limits *cgroups.Resources, b *specs.LinuxBlockIO) {
	set(&limits.BlkioWeight, b.Weight)
	set(&limits.BlkioLeafWeight, b.LeafWeight)
	for _, d := range b.WeightDevice {
		is := func(w *cgroups.WeightDevice) bool { return w.Major == d.Major && w.Minor == d.Minor }
		weights := cgroups.NewWeightDevice(d.Major, d.Minor, 0, 0)
		if i := slices.IndexFunc(limits.BlkioWeightDevice, is); i >= 0 {
			*weights = *limits.BlkioWeightDevice[i]
		}
		set(&weights.Weight, d.Weight)
		set(&weights.LeafWeight, d.LeafWeight)
		limits.BlkioWeightDevice = replace(limits.BlkioWeightDevice, weights, is)
	}
	for _, rate := range []struct {
		limits *[]*cgroups.ThrottleDevice
		named  []specs.LinuxThrottleDevice
	}{
		{&limits.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice},
		{&limits.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
		{&limits.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice},
		{&limits.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range rate.named {
			*rate.limits = replace(*rate.limits, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate),
				func(t *cgroups.ThrottleDevice) bool { return t.Major == d.Major && t.Minor == d.Minor })
		}
	}
}

// replace returns a copy of list, which others share, with v in place of what it
// replaces.
func replace[T any](list []T, v T, replaced func(T) bool) []T {
	return append(slices.DeleteFunc(slices.Clone(list), replaced), v)
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
