package main

import (
	"context"
	"fmt"

	"berth/cmd/ctr/output"
	"berth/internal/image"
	"berth/internal/wire"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// unpackImage makes the chain of committed snapshots of an image's layers, those
// that exist excepted, and ties them to the image's config so that the collector
// keeps them. The caller holds a lease. Unpacking the same image twice at a time
// is harmless: the first commit of a layer wins.
func unpackImage(ctx context.Context, s *session, snapshotter string, img resolved, sync bool) error {
	chain := image.ChainIDs(img.config.RootFS.DiffIDs)
	parent := ""
	status := output.NewStatus()
	defer status.Clear()
	for i, layer := range img.manifest.Layers {
		name := chain[i].String()
		status.At("unpacking %s, layer %d of %d (%s)", img.name, i+1, len(chain), output.Size(layer.Size))
		if err := unpackLayer(ctx, s, snapshotter, name, parent, &diffapi.ApplyRequest{Diff: wire.DescriptorToProto(layer), SyncFs: sync}, img.config.RootFS.DiffIDs[i].String()); err != nil {
			return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(chain), layer.Digest, err)
		}
		parent = name
	}
	if parent == "" {
		return nil
	}
	key := image.SnapshotLabel(snapshotter)
	_, err := contentapi.NewContentClient(s).Update(ctx, &contentapi.UpdateRequest{
		Info:       &contentapi.Info{Digest: img.manifest.Config.Digest.String(), Labels: map[string]string{key: parent}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + key}},
	})
	return err
}

func unpackLayer(ctx context.Context, s *session, snapshotter, name, parent string, apply *diffapi.ApplyRequest, diffID string) (err error) {
	snapshots := snapshotsapi.NewSnapshotsClient(s)
	if _, err := snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: name}); !errdefs.IsNotFound(err) {
		return err
	}
	key := fmt.Sprintf("extract-%s %s", uuid.NewString(), name)
	labels := map[string]string{"containerd.io/snapshot.ref": name}
	prepared, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent, Labels: labels})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			removeSnapshot(ctx, s, snapshotter, key)
		}
	}()
	apply.Mounts = prepared.Mounts
	applied, err := diffapi.NewDiffClient(s).Apply(ctx, apply)
	if err != nil {
		return err
	}
	if got := applied.Applied.GetDigest(); got != diffID {
		return fmt.Errorf("its content has the digest %s, the image's config promises %s: %w", got, diffID, errdefs.ErrFailedPrecondition)
	}
	_, err = snapshots.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: snapshotter, Name: name, Key: key, Labels: labels})
	if errdefs.IsAlreadyExists(err) {
		removeSnapshot(ctx, s, snapshotter, key)
		return nil
	}
	return err
}
