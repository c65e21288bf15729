package diff

import (
	"context"
	"fmt"

	"berth/internal/object"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Differ applies and compares.
type Differ interface {
	Applier
	Comparer
}

// Chain asks differs in order until one does not answer
// errdefs.ErrNotImplemented, which the last may.
type Chain []Differ

// Apply is Applier.Apply.
func (c Chain) Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts ApplyOptions) (ispec.Descriptor, error) {
	err := fmt.Errorf("there is no differ: %w", errdefs.ErrNotImplemented)
	for _, d := range c {
		var out ispec.Descriptor
		if out, err = d.Apply(ctx, desc, mounts, opts); !errdefs.IsNotImplemented(err) {
			return out, err
		}
	}
	return ispec.Descriptor{}, err
}

// Compare is Comparer.Compare.
func (c Chain) Compare(ctx context.Context, lower, upper []object.Mount, opts CompareOptions) (ispec.Descriptor, error) {
	err := fmt.Errorf("there is no differ: %w", errdefs.ErrNotImplemented)
	for _, d := range c {
		var out ispec.Descriptor
		if out, err = d.Compare(ctx, lower, upper, opts); !errdefs.IsNotImplemented(err) {
			return out, err
		}
	}
	return ispec.Descriptor{}, err
}
