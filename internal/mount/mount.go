// Package mount performs and undoes mounts.
package mount

import (
	"context"

	"berth/internal/object"
)

// All mounts in order below (or at) target; each mount's own Target is relative
// to it. A failure undoes what was mounted.
func All(mounts []object.Mount, target string) error { return nil }

// Unmount undoes every mount that is stacked on target with umount2 flags, and
// is content when there is none.
func Unmount(target string, flags int) error { return nil }

// UnmountRecursive undoes every mount at and below target, deepest first.
func UnmountRecursive(target string, flags int) error { return nil }

// WithTemp mounts at a fresh directory, calls fn with it, and undoes that.
func WithTemp(ctx context.Context, mounts []object.Mount, fn func(root string) error) error {
	return nil
}
