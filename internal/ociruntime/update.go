package ociruntime

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func (c *builtin) Update(ctx context.Context, resources *specs.LinuxResources) error {
	return fmt.Errorf("%w: update", errdefs.ErrNotImplemented)
}

func (c *builtin) Checkpoint(ctx context.Context, opts CheckpointOptions) error {
	return c.with(func(lc *libcontainer.Container) error {
		return lc.Checkpoint(&libcontainer.CriuOpts{ImagesDirectory: opts.ImagePath, WorkDirectory: opts.WorkPath})
	})
}
