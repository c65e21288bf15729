package main

import (
	"context"
	"errors"
	"fmt"

	"berth/cmd/ctr/output"
	"berth/internal/mount"
	"berth/internal/wire"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/urfave/cli/v3"
)

// mountImageAction mounts an image. A lease named like the snapshot, which is
// the target's path, keeps it until it expires or 'unmount --rm' takes it back.
func mountImageAction(ctx context.Context, cmd *cli.Command, s *session) (err error) {
	if err := needArgs(cmd, "an image reference"); err != nil {
		return err
	}
	ref, target := cmd.Args().First(), cmd.Args().Get(1)
	key := target
	if key == "" {
		key = "ctr-images-mount-" + uuid.NewString()
	}
	snapshotter, err := chooseSnapshotter(ctx, cmd, s)
	if err != nil {
		return err
	}
	_, err = leasesapi.NewLeasesClient(s).Create(ctx, &leasesapi.CreateRequest{ID: key, Labels: expiry(cmd.Duration("expiration"))})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err == nil {
		defer func() {
			if err != nil {
				ctx, cancel := afterwards(ctx)
				defer cancel()
				deleteLease(ctx, s, key, false)
			}
		}()
	}
	ctx = withLease(ctx, key)
	img, err := resolveImage(ctx, s, ref, cmd.String("platform"))
	if err != nil {
		return err
	}
	if err := unpackImage(ctx, s, snapshotter, img, cmd.Bool("sync-fs")); err != nil {
		return fmt.Errorf("unpacking %s: %w", ref, err)
	}
	output.Line("%s", img.chain())
	mounts, made, err := mountSnapshot(ctx, s, snapshotter, key, img.chain(), cmd.Bool("rw"))
	if err != nil {
		return err
	}
	switch {
	case target != "":
		if err := mount.All(wire.MountsFromProto(mounts), target); err != nil {
			if made {
				err = errors.Join(err, removeSnapshot(ctx, s, snapshotter, key))
			}
			return fmt.Errorf("mounting %s at %s: %w", ref, target, err)
		}
	case len(mounts) == 1 && mounts[0].Type == "bind":
		target = mounts[0].Source
	default:
		return invalid("snapshotter %s gives no plain directory for this image; name a directory to mount it at", snapshotter)
	}
	output.Line("%s", target)
	return nil
}

// mountSnapshot makes the snapshot, or takes up the one that is there.
func mountSnapshot(ctx context.Context, s *session, snapshotter, key, parent string, rw bool) (mounts []*types.Mount, made bool, err error) {
	snapshots := snapshotsapi.NewSnapshotsClient(s)
	if rw {
		var resp *snapshotsapi.PrepareSnapshotResponse
		resp, err = snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent})
		mounts = resp.GetMounts()
	} else {
		var resp *snapshotsapi.ViewSnapshotResponse
		resp, err = snapshots.View(ctx, &snapshotsapi.ViewSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent})
		mounts = resp.GetMounts()
	}
	if errdefs.IsAlreadyExists(err) {
		resp, err := snapshots.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: snapshotter, Key: key})
		return resp.GetMounts(), false, err
	}
	return mounts, err == nil, err
}

func unmountImageAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "the directory to unmount"); err != nil {
		return err
	}
	target := cmd.Args().First()
	if err := mount.Unmount(target, 0); err != nil {
		return err
	}
	if cmd.Bool("rm") {
		snapshotter, err := chooseSnapshotter(ctx, cmd, s)
		if err != nil {
			return err
		}
		if err := ignoreNotFound(deleteLease(ctx, s, target, false)); err != nil {
			return fmt.Errorf("deleting the lease: %w", err)
		}
		if err := removeSnapshot(ctx, s, snapshotter, target); err != nil {
			return fmt.Errorf("removing the snapshot: %w", err)
		}
	}
	output.Line("%s", target)
	return nil
}

// chooseSnapshotter is the flag's, or the namespace's.
func chooseSnapshotter(ctx context.Context, cmd *cli.Command, s *session) (string, error) {
	if name := cmd.String("snapshotter"); name != "" {
		return name, nil
	}
	return defaultSnapshotter(ctx, s)
}
