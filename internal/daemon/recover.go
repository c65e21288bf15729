package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// verifyWindow is how long before the last sign of life of a daemon that lost
// power its writes are doubted: much longer than the kernel keeps written
// pages in memory (vm.dirty_expire_centisecs, 30 s).
const verifyWindow = 10 * time.Minute

// recover is what the start does behind the API's back: shims are adopted, and
// after a power cut the newest blobs are read again.
func (d *Daemon) recover() {
	defer close(d.settled)
	begin := time.Now()
	d.recoverTasks()
	close(d.adopted)
	d.log.Debug("tasks are recovered", "took", time.Since(begin))
	d.verify()
}

func (d *Daemon) recoverTasks() {
	list, err := d.db.Namespaces().List(d.life)
	if err != nil {
		d.log.Error("tasks of an earlier daemon are not recovered", "error", err)
		return
	}
	names := make([]string, len(list))
	for i, ns := range list {
		names[i] = ns.Name
	}
	if err := d.tasks.Recover(d.life, names); err != nil && d.life.Err() == nil {
		d.log.Error("some tasks of an earlier daemon are not recovered", "error", err)
	}
	if d.db.Report().Damage != nil {
		d.reportLostContainers(names)
	}
}

// reportLostContainers names the containers that run while their records were lost
// with the database.
func (d *Daemon) reportLostContainers(namespaces []string) {
	for _, ns := range namespaces {
		tasks, err := d.tasks.List(d.life, ns)
		if err != nil {
			d.log.Warn("running containers are not compared with the records", "namespace", ns, "error", err)
			continue
		}
		for _, task := range tasks {
			if _, err := d.db.Scope(ns, "").Containers().Get(d.life, task.ContainerID); errdefs.IsNotFound(err) {
				d.log.Error("the record of a container that has a task is lost; it can be ended and its task removed", "namespace", ns, "id", task.ContainerID, "pid", task.PID)
			}
		}
	}
}

// doubt tells since when what an earlier daemon wrote must be verified, nil
// when it need not be.
func (d *Daemon) doubt(last mark) *time.Time {
	if last.Doubt != nil || !last.powerLost(d.run.Boot) {
		return last.Doubt
	}
	since := last.Started
	if info, err := os.Stat(filepath.Join(d.cfg.Root, metadataDir, "meta.db")); err == nil {
		// Every commit of a blob or layer is followed by one to the database.
		if t := info.ModTime().Add(-verifyWindow); t.After(since) {
			since = t
		}
	}
	return &since
}

// distrust removes, after a reboot and before anybody is served, the layers that no
// image names. A layer's record may have survived a power cut that took its files:
// they are brought to the disk all at once, before the config of the image names
// the chain and the image's record follows. Until then only the lease of the
// transfer, of whom it is, holds them; so such leases, which expire, let go of their
// snapshots. Their blobs stay for the next attempt: they are verified.
func (d *Daemon) distrust(ctx context.Context) {
	if !d.rebooted && d.run.Doubt == nil || d.db.Report().Damage != nil {
		return // what a damaged database does not name any more is not garbage
	}
	begin := time.Now()
	released, err := d.releaseSnapshots(ctx)
	if err == nil {
		_, err = d.db.CollectRecords(ctx) // the start does not wait for a backend that hangs
	}
	if err != nil {
		d.log.Error("layers of unfinished transfers, whose files may be lost, are not removed", "error", err)
		return
	}
	d.log.Info("the host was booted since: layers of unfinished transfers are removed", "released", released, "took", time.Since(begin))
}

// releaseSnapshots makes the leases that expire let go of snapshots.
func (d *Daemon) releaseSnapshots(ctx context.Context) (released int, err error) {
	namespaces, err := d.db.Namespaces().List(ctx)
	if err != nil {
		return 0, err
	}
	for _, ns := range namespaces {
		leases := d.db.Scope(ns.Name, "").Leases()
		list, err := leases.List(ctx)
		if err != nil {
			return released, err
		}
		for _, lease := range list {
			if lease.Labels["containerd.io/gc.expire"] == "" {
				continue
			}
			held, err := leases.ListResources(ctx, lease.ID)
			if err != nil {
				return released, err
			}
			for _, r := range held {
				if !strings.HasPrefix(r.Type, "snapshots/") {
					continue
				}
				if err := leases.DeleteResource(ctx, lease.ID, r); err != nil {
					return released, err
				}
				released++
			}
		}
	}
	return released, nil
}

// verify hashes what was written shortly before a power cut and removes what
// is not what it should be: it is fetched again when it is needed. The doubt
// stays in the mark until that is done.
func (d *Daemon) verify() {
	if d.run.Doubt == nil || d.localContent == nil {
		return
	}
	d.log.Info("the host went down under an earlier daemon: verifying what was written just before", "since", *d.run.Doubt)
	damage, err := d.localContent.Verify(d.life, *d.run.Doubt)
	for _, b := range damage.Blobs {
		d.log.Warn("removed a blob whose bytes were lost in the power cut; pull what needs it again", "digest", b.String())
	}
	if d.life.Err() != nil {
		return
	}
	if err != nil {
		d.log.Error("verification of blobs", "error", err)
	}
	d.log.Info("verification is done", "blobs", len(damage.Blobs), "ingests", damage.Ingests)
	d.run.Doubt = nil
	if err := d.run.write(d.cfg.Root); err != nil {
		d.log.Warn("blobs will be verified once more at the next start", "error", err)
	}
}
