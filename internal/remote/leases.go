package remote

import (
	"context"

	"berth/internal/object"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/grpc"
)

// Leases are the leases behind a connection; a transfer.Leases.
type Leases struct{ client api.LeasesClient }

// NewLeases makes leases of a connection; see Scope.
func NewLeases(conn grpc.ClientConnInterface) *Leases {
	return &Leases{api.NewLeasesClient(conn)}
}

func (l *Leases) Create(ctx context.Context, lease object.Lease) (object.Lease, error) {
	resp, err := l.client.Create(ctx, &api.CreateRequest{ID: lease.ID, Labels: lease.Labels})
	if err != nil {
		return object.Lease{}, wire.FromStatus(err)
	}
	return records.LeaseFromProto(resp.Lease), nil
}

// Delete ends a lease; with sync it returns when the collector has run.
func (l *Leases) Delete(ctx context.Context, id string, sync bool) error {
	_, err := l.client.Delete(ctx, &api.DeleteRequest{ID: id, Sync: sync})
	return wire.FromStatus(err)
}
