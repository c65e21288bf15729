package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"golang.org/x/sys/unix"
)

// makerLabel, on a lease that a ctr makes for the time of its work, tells which
// process that is: "<boot ID> <PID namespace> <PID> <start time>", as the kernel
// has them.
const makerLabel = "berth.ctr/maker"

// maker is the present process, empty when /proc does not tell.
func maker() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	started, err := startTicks("self")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %s %d %s", strings.TrimSpace(string(boot)), ns, os.Getpid(), started)
}

// startTicks is when a process was started, in the kernel's clock ticks.
func startTicks(pid string) (string, error) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	// The name in parentheses may contain anything; field 22 is the 20th after it.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return "", os.ErrInvalid
	}
	return fields[19], nil
}

// makerIsDead tells whether the process that made a lease has certainly ended. Of
// another host's, or another PID namespace's, that is not known.
func makerIsDead(lease *leasesapi.Lease) bool {
	made, now := strings.Fields(lease.Labels[makerLabel]), strings.Fields(maker())
	if len(made) != 4 || len(now) != 4 {
		return false
	}
	if made[0] != now[0] {
		// Of an earlier boot, or of another host that shares the daemon.
		var up unix.Timespec
		err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
		return err == nil && lease.CreatedAt.AsTime().Before(time.Now().Add(-time.Duration(up.Nano())))
	}
	if made[1] != now[1] {
		return false
	}
	started, err := startTicks(made[2])
	return err != nil || started != made[3]
}

// releaseAbandoned ends the lease under which a ctr that has died, or that was
// left by its daemon, made a snapshot and then no container, and tells whether
// there was one. The garbage collector removes the snapshot then, unless somebody
// else refers to it.
func releaseAbandoned(ctx context.Context, s *session, snapshotter, key string) (bool, error) {
	client := leasesapi.NewLeasesClient(s)
	resp, err := client.List(ctx, &leasesapi.ListRequest{})
	if err != nil {
		return false, err
	}
	for _, lease := range resp.Leases {
		if !makerIsDead(lease) {
			continue
		}
		held, err := client.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: lease.ID})
		if err != nil {
			continue // ended meanwhile
		}
		for _, r := range held.Resources {
			if r.Type == "snapshots/"+snapshotter && r.ID == key {
				return true, deleteLease(ctx, s, lease.ID, true)
			}
		}
	}
	return false, nil
}
