package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
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

// releaseAbandoned gives back the name of a container that was never made: a ctr
// that has died, or that was left by its daemon, has made a snapshot for it and
// then no record. The lease that it may have left is ended, and the garbage
// collector asked to run: it removes the snapshot, unless somebody refers to it.
// It tells whether it is worth to try again.
func releaseAbandoned(ctx context.Context, s *session, snapshotter, id string) bool {
	_, err := containersapi.NewContainersClient(s).Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if !errdefs.IsNotFound(err) {
		return false
	}
	client := leasesapi.NewLeasesClient(s)
	// Who is told that a snapshot exists holds it by the lease of the call.
	snapshot := &leasesapi.Resource{Type: "snapshots/" + snapshotter, ID: id}
	if own := leaseOf(ctx); own != "" {
		if _, err := client.DeleteResource(ctx, &leasesapi.DeleteResourceRequest{ID: own, Resource: snapshot}); ignoreNotFound(err) != nil {
			return false
		}
	}
	resp, err := client.List(ctx, &leasesapi.ListRequest{})
	if err != nil {
		return false
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
			if r.Type == snapshot.Type && r.ID == snapshot.ID {
				err := deleteLease(ctx, s, lease.ID, true)
				return ignoreNotFound(err) == nil
			}
		}
	}
	// The lease may have ended without a collection since. The end of another
	// makes the collector run.
	lease := leaseID()
	if err := createLease(ctx, s, lease); err != nil {
		return false
	}
	return deleteLease(ctx, s, lease, true) == nil
}
