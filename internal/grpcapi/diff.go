package grpcapi

import (
	"context"
	"fmt"

	"berth/internal/diff"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/errdefs"
)

type diffs struct {
	api.UnimplementedDiffServer
	// open returns the differ that reads and writes blobs of the scope; it may
	// be a diff.Comparer as well.
	open func(Scope) diff.Applier
	// sync makes every apply durable before it returns.
	sync bool
}

func (s *diffs) Apply(ctx context.Context, req *api.ApplyRequest) (*api.ApplyResponse, error) {
	if req.Diff == nil {
		return nil, required("diff")
	}
	desc, err := s.open(ScopeOf(ctx)).Apply(ctx, wire.DescriptorFromProto(req.Diff), wire.MountsFromProto(req.Mounts), diff.ApplyOptions{
		ProcessorPayloads: records.AnysFromProto(req.Payloads),
		Sync:              req.SyncFs || s.sync,
	})
	if err != nil {
		return nil, err
	}
	return &api.ApplyResponse{Applied: wire.DescriptorToProto(desc)}, nil
}

func (s *diffs) Diff(ctx context.Context, req *api.DiffRequest) (*api.DiffResponse, error) {
	comparer, ok := s.open(ScopeOf(ctx)).(diff.Comparer)
	if !ok {
		return nil, fmt.Errorf("the differ only applies layers: %w", errdefs.ErrNotImplemented)
	}
	opts := diff.CompareOptions{MediaType: req.MediaType, Ref: req.Ref, Labels: req.Labels}
	if req.SourceDateEpoch != nil {
		seconds := req.SourceDateEpoch.GetSeconds()
		opts.SourceDateEpoch = &seconds
	}
	desc, err := comparer.Compare(ctx, wire.MountsFromProto(req.Left), wire.MountsFromProto(req.Right), opts)
	if err != nil {
		return nil, err
	}
	return &api.DiffResponse{Diff: wire.DescriptorToProto(desc)}, nil
}
