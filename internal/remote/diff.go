package remote

import (
	"context"

	"berth/internal/diff"
	"berth/internal/object"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/diff/v1"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Diff applies and compares behind a connection, with the server's content
// store and mounts; a diff.Applier and diff.Comparer.
type Diff struct{ client api.DiffClient }

// NewDiff makes a differ of a connection; see Scope.
func NewDiff(conn grpc.ClientConnInterface) *Diff {
	return &Diff{api.NewDiffClient(conn)}
}

func (d *Diff) Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts diff.ApplyOptions) (ispec.Descriptor, error) {
	resp, err := d.client.Apply(ctx, &api.ApplyRequest{
		Diff: wire.DescriptorToProto(desc), Mounts: wire.MountsToProto(mounts),
		Payloads: records.AnysToProto(opts.ProcessorPayloads), SyncFs: opts.Sync,
	})
	if err != nil {
		return ispec.Descriptor{}, wire.FromStatus(err)
	}
	return wire.DescriptorFromProto(resp.Applied), nil
}

func (d *Diff) Compare(ctx context.Context, lower, upper []object.Mount, opts diff.CompareOptions) (ispec.Descriptor, error) {
	req := &api.DiffRequest{
		Left: wire.MountsToProto(lower), Right: wire.MountsToProto(upper),
		MediaType: opts.MediaType, Ref: opts.Ref, Labels: opts.Labels,
	}
	if opts.SourceDateEpoch != nil {
		req.SourceDateEpoch = &timestamppb.Timestamp{Seconds: *opts.SourceDateEpoch}
	}
	resp, err := d.client.Diff(ctx, req)
	if err != nil {
		return ispec.Descriptor{}, wire.FromStatus(err)
	}
	return wire.DescriptorFromProto(resp.Diff), nil
}
