package daemon

import (
	"context"
	"os"

	"berth/internal/grpcapi"
	"berth/internal/snapshot"
	"berth/internal/transfer"
)

// shimTempDir gives shims the TMPDIR that the daemon was started with: its own
// is for its temporary mounts.
func (d *Daemon) shimTempDir() string { return "TMPDIR=" + d.tempDir }

func (d *Daemon) openSnapshotters(context.Context) error {
	d.snapshotters = make(map[string]snapshot.Backend)
	return nil
}

func (d *Daemon) openTransfer(context.Context) error {
	d.transfer = transfer.New(transfer.Options{
		Scope:   d.scope,
		TempDir: os.TempDir(),
	})
	return nil
}

// scope is the stores that a transfer sees.
func (d *Daemon) scope(namespace, lease string) transfer.Stores {
	s := d.db.Scope(namespace, lease)
	return transfer.Stores{
		Namespace:   namespace,
		Images:      s.Images(),
		Leases:      s.Leases(),
		Content:     s.Content(),
		Snapshotter: s.Snapshotter,
	}
}

func (d *Daemon) differ(grpcapi.Scope) grpcapi.Differ { return nil }
