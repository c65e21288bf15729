package task

import (
	"context"
	"os"
	"testing"
	"time"

	"berth/internal/mount"
	"berth/internal/mount/activation"
	"berth/internal/object"

	"github.com/containerd/errdefs"
)

// links is a mount handler whose mounts are symbolic links.
type links struct{}

func (links) Mount(_ context.Context, m object.Mount, at string, _ []object.ActiveMount) (object.ActiveMount, error) {
	return object.ActiveMount{Mount: m, MountPoint: at}, os.Symlink(m.Source, at)
}

func (links) Unmount(_ context.Context, at string) error {
	if err := os.Remove(at); err != nil && !isGone(err) {
		return err
	}
	return nil
}

// Mounts that need preparation are there while the task is, and gone with it or
// with its failure.
func TestPreparedRootfs(t *testing.T) {
	m, _ := newManager(t)
	table := activation.New(m.dir()+"/mm", mount.NewActivator(map[string]mount.Handler{"link": links{}}))
	t.Cleanup(func() { table.Close() })
	m.opts.Mounts = table
	ctx := within(t, 10*time.Second)
	rootfs := []object.Mount{{Type: "link", Source: "/"}, {Type: "format/bind", Source: "{{ mount 0 }}"}}

	c := fake("ok", fakeBinary(t, foreignShim))
	if _, err := m.Create(ctx, "ns", c, CreateOptions{Rootfs: rootfs}); err != nil {
		t.Fatal(err)
	}
	if info, err := table.Info(ctx, "ns", "ok"); err != nil || info.Labels[containerReference] != "ok" || len(info.System) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := m.Delete(ctx, "ns", "ok", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Info(ctx, "ns", "ok"); !errdefs.IsNotFound(err) {
		t.Errorf("after the task: %v", err)
	}

	c = fake("bad", c.Runtime.Name, "create", "fail")
	if _, err := m.Create(ctx, "ns", c, CreateOptions{Rootfs: rootfs}); err == nil {
		t.Fatal("no failure")
	}
	rootfs[1].Source = "{{ mount 7 }}"
	if _, err := m.Create(ctx, "ns", fake("ugly", c.Runtime.Name), CreateOptions{Rootfs: rootfs}); err == nil {
		t.Fatal("no failure of what refers to nothing")
	}
	if all, err := table.List(ctx, "ns"); err != nil || len(all) > 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
	m.quiet(t)
	m.wantNoShims(t)
}
