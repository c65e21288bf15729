package grpcapi

import (
	"context"
	"fmt"

	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

type snapshots struct {
	api.UnimplementedSnapshotsServer
	db *meta.DB
}

// snapshotter opens a snapshotter by name.
//
// Compat: here a name that is not known is an invalid argument, not a thing
// that was not found.
func (s *snapshots) snapshotter(ctx context.Context, name string) (snapshot.Backend, error) {
	if name == "" {
		return nil, fmt.Errorf("snapshotter argument missing: %w", errdefs.ErrInvalidArgument)
	}
	scope := ScopeOf(ctx)
	sn, err := s.db.Scope(scope.Namespace, scope.Lease).Snapshotter(name)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("snapshotter not loaded: %s (%v): %w", name, err, errdefs.ErrInvalidArgument)
	}
	return sn, err
}

func (s *snapshots) Prepare(ctx context.Context, req *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Prepare(ctx, req.Key, req.Parent, req.Labels)
	if err != nil {
		return nil, err
	}
	return &api.PrepareSnapshotResponse{Mounts: wire.MountsToProto(mounts)}, nil
}

func (s *snapshots) View(ctx context.Context, req *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.View(ctx, req.Key, req.Parent, req.Labels)
	if err != nil {
		return nil, err
	}
	return &api.ViewSnapshotResponse{Mounts: wire.MountsToProto(mounts)}, nil
}

func (s *snapshots) Mounts(ctx context.Context, req *api.MountsRequest) (*api.MountsResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Mounts(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &api.MountsResponse{Mounts: wire.MountsToProto(mounts)}, nil
}

func (s *snapshots) Commit(ctx context.Context, req *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	return empty(sn.Commit(ctx, req.Name, req.Key, snapshot.CommitOptions{Labels: req.Labels, Parent: req.Parent}))
}

func (s *snapshots) Remove(ctx context.Context, req *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	return empty(sn.Remove(ctx, req.Key))
}

func (s *snapshots) Stat(ctx context.Context, req *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	info, err := sn.Stat(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return &api.StatSnapshotResponse{Info: records.SnapshotToProto(info)}, nil
}

func (s *snapshots) Update(ctx context.Context, req *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	if req.Info.GetName() == "" {
		return nil, required("name of the snapshot")
	}
	info, err := sn.Update(ctx, records.SnapshotFromProto(req.Info), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateSnapshotResponse{Info: records.SnapshotToProto(info)}, nil
}

// snapshotBatch is how many snapshots go into one message of a list.
const snapshotBatch = 100

func (s *snapshots) List(req *api.ListSnapshotsRequest, stream api.Snapshots_ListServer) error {
	ctx := stream.Context()
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return err
	}
	batch := make([]*api.Info, 0, snapshotBatch)
	send := func() error {
		err := stream.Send(&api.ListSnapshotsResponse{Info: batch})
		batch = batch[:0]
		return err
	}
	err = sn.Walk(ctx, func(info object.SnapshotInfo) error {
		batch = append(batch, records.SnapshotToProto(info))
		if len(batch) < snapshotBatch {
			return nil
		}
		return send()
	}, req.Filters...)
	if err != nil || len(batch) == 0 {
		return err
	}
	return send()
}

func (s *snapshots) Usage(ctx context.Context, req *api.UsageRequest) (*api.UsageResponse, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	usage, err := sn.Usage(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	return records.SnapshotUsageToProto(usage), nil
}

func (s *snapshots) Cleanup(ctx context.Context, req *api.CleanupRequest) (*emptypb.Empty, error) {
	sn, err := s.snapshotter(ctx, req.Snapshotter)
	if err != nil {
		return nil, err
	}
	cleaner, ok := sn.(snapshot.Cleaner)
	if !ok {
		return nil, fmt.Errorf("snapshotter %s has nothing to clean up: %w", req.Snapshotter, errdefs.ErrNotImplemented)
	}
	return empty(cleaner.Cleanup(ctx))
}
