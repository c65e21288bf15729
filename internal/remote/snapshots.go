package remote

import (
	"context"

	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Snapshotter says which snapshotter of the server is meant, and what the
// server's introspection tells of it.
type Snapshotter struct {
	Name         string
	Capabilities []string
	// Root is the directory of its files, empty when it has none on this host.
	Root string
}

// Snapshots is a snapshotter behind a connection. It is a snapshot.Backend and
// a snapshot.Cleaner; the API has no way to ask for a barrier, so it is no
// snapshot.Syncer: a layer is made durable when it is applied.
type Snapshots struct {
	client api.SnapshotsClient
	which  Snapshotter
}

// NewSnapshots makes a snapshotter of a connection; see Scope. Closing the
// connection is up to the caller.
func NewSnapshots(conn grpc.ClientConnInterface, s Snapshotter) *Snapshots {
	return &Snapshots{client: api.NewSnapshotsClient(conn), which: s}
}

func (s *Snapshots) Capabilities() []string { return s.which.Capabilities }
func (s *Snapshots) Root() string           { return s.which.Root }

// Close does nothing: there is a caller who owns the connection.
func (s *Snapshots) Close() error { return nil }

func (s *Snapshots) Stat(ctx context.Context, key string) (object.SnapshotInfo, error) {
	resp, err := s.client.Stat(ctx, &api.StatSnapshotRequest{Snapshotter: s.which.Name, Key: key})
	if err != nil {
		return object.SnapshotInfo{}, wire.FromStatus(err)
	}
	return records.SnapshotFromProto(resp.Info), nil
}

func (s *Snapshots) Update(ctx context.Context, info object.SnapshotInfo, fieldpaths ...string) (object.SnapshotInfo, error) {
	req := &api.UpdateSnapshotRequest{Snapshotter: s.which.Name, Info: records.SnapshotToProto(info)}
	if len(fieldpaths) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fieldpaths}
	}
	resp, err := s.client.Update(ctx, req)
	if err != nil {
		return object.SnapshotInfo{}, wire.FromStatus(err)
	}
	return records.SnapshotFromProto(resp.Info), nil
}

func (s *Snapshots) Usage(ctx context.Context, key string) (object.SnapshotUsage, error) {
	resp, err := s.client.Usage(ctx, &api.UsageRequest{Snapshotter: s.which.Name, Key: key})
	if err != nil {
		return object.SnapshotUsage{}, wire.FromStatus(err)
	}
	return records.SnapshotUsageFromProto(resp), nil
}

func (s *Snapshots) Mounts(ctx context.Context, key string) ([]object.Mount, error) {
	resp, err := s.client.Mounts(ctx, &api.MountsRequest{Snapshotter: s.which.Name, Key: key})
	return wire.MountsFromProto(resp.GetMounts()), wire.FromStatus(err)
}

func (s *Snapshots) Prepare(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	resp, err := s.client.Prepare(ctx, &api.PrepareSnapshotRequest{Snapshotter: s.which.Name, Key: key, Parent: parent, Labels: labels})
	return wire.MountsFromProto(resp.GetMounts()), wire.FromStatus(err)
}

func (s *Snapshots) View(ctx context.Context, key, parent string, labels map[string]string) ([]object.Mount, error) {
	resp, err := s.client.View(ctx, &api.ViewSnapshotRequest{Snapshotter: s.which.Name, Key: key, Parent: parent, Labels: labels})
	return wire.MountsFromProto(resp.GetMounts()), wire.FromStatus(err)
}

func (s *Snapshots) Commit(ctx context.Context, name, key string, opts snapshot.CommitOptions) error {
	_, err := s.client.Commit(ctx, &api.CommitSnapshotRequest{Snapshotter: s.which.Name, Name: name, Key: key, Labels: opts.Labels, Parent: opts.Parent})
	return wire.FromStatus(err)
}

func (s *Snapshots) Remove(ctx context.Context, key string) error {
	_, err := s.client.Remove(ctx, &api.RemoveSnapshotRequest{Snapshotter: s.which.Name, Key: key})
	return wire.FromStatus(err)
}

func (s *Snapshots) Walk(ctx context.Context, fn func(object.SnapshotInfo) error, filters ...string) error {
	ctx, cancel := context.WithCancel(ctx) // ends the stream when fn fails
	defer cancel()
	stream, err := s.client.List(ctx, &api.ListSnapshotsRequest{Snapshotter: s.which.Name, Filters: filters})
	if err != nil {
		return wire.FromStatus(err)
	}
	return receive(stream.Recv, func(msg *api.ListSnapshotsResponse) error {
		for _, info := range msg.Info {
			if err := fn(records.SnapshotFromProto(info)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Cleanup is errdefs.ErrNotImplemented when the snapshotter has nothing to
// clean up.
func (s *Snapshots) Cleanup(ctx context.Context) error {
	_, err := s.client.Cleanup(ctx, &api.CleanupRequest{Snapshotter: s.which.Name})
	return wire.FromStatus(err)
}
