package task

import (
	"context"
	"slices"
	"strings"

	"berth/internal/mount"
	"berth/internal/mount/activation"
	"berth/internal/object"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

// containerReference keeps the mounts of a task's root filesystem as long as the
// container has a record.
const containerReference = "containerd.io/gc.bref.container"

// allowedMounts is the annotation by which shims told, before they did when they
// start, which mounts they can do themselves: types, and transformations as "format/*".
const allowedMounts = "containerd.io/runtime-allow-mounts"

// prepareRootfs performs those of a root filesystem's mounts that need preparation
// and that the shim does not do itself, and returns what is left for the shim.
// They are undone with the task's bundle.
func (m *Manager) prepareRootfs(ctx context.Context, t *task, s *shim, p plan) ([]object.Mount, error) {
	table := m.opts.Mounts
	if table == nil || !table.Needed(p.Rootfs, mount.ActivateOptions{}) {
		return p.Rootfs, nil
	}
	claims := s.mounts
	if claims == nil && !s.own {
		claims = m.declaredMounts(ctx, s.binary)
	}
	opts := mount.ActivateOptions{Types: claims.GetTypes(), Transforms: claims.GetTransforms()}
	info, err := table.Activate(ctx, t.namespace, t.id, p.Rootfs, activation.Options{
		ActivateOptions: opts,
		Labels:          map[string]string{containerReference: t.id},
	})
	switch {
	case errdefs.IsAlreadyExists(err): // by an earlier task of the container
		info, err = table.Info(ctx, t.namespace, t.id)
	case errdefs.IsNotImplemented(err): // the shim does it all
		return p.Rootfs, nil
	}
	return info.System, err
}

// releaseRootfs undoes prepareRootfs.
func (m *Manager) releaseRootfs(t *task) {
	if m.opts.Mounts == nil || t.sandbox {
		return
	}
	if err := m.opts.Mounts.Deactivate(context.WithoutCancel(m.life), t.namespace, t.id); err != nil && !errdefs.IsNotFound(err) {
		m.log.Warn("mounts of a root filesystem stay until garbage is collected", "namespace", t.namespace, "id", t.id, "error", err)
	}
}

// mountsOf is what a shim said on its start that it can mount, nil for nothing.
func mountsOf(boot *bootapi.BootstrapResult) *types.MountCapabilities {
	claims := &types.MountCapabilities{}
	if ok, err := boot.FindExtension(claims); err != nil || !ok {
		return nil // the daemon does the work then
	}
	return claims
}

// declaredMounts asks a shim's executable for the annotation.
func (m *Manager) declaredMounts(ctx context.Context, binary string) *types.MountCapabilities {
	info, err := m.info(ctx, binary, nil)
	if err != nil {
		return nil
	}
	claims := &types.MountCapabilities{}
	for entry := range strings.SplitSeq(info.GetAnnotations()[allowedMounts], ",") {
		if name, ok := strings.CutSuffix(entry, "/*"); ok {
			claims.Transforms = append(claims.Transforms, name)
		} else if entry != "" && !slices.Contains(claims.Types, entry) {
			claims.Types = append(claims.Types, entry)
		}
	}
	return claims
}
