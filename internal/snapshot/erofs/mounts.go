package erofs

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"berth/internal/object"
	"berth/internal/snapshot"
	"berth/internal/snapshot/overlay"
	"berth/internal/snapshot/store"
)

const (
	writableImage = "rwlayer.img"
	// labelMaxSize, in bytes, replaces DefaultSize.
	labelMaxSize = "containerd.io/snapshot/max-size"
)

// mounts need preparation where there is more than one layer: see mount.Activator.
func (e *Snapshotter) mounts(snap store.Snapshot) ([]object.Mount, error) {
	active := snap.Info.Kind == object.SnapshotActive
	if !hasParents(snap) {
		return e.single(snap, active)
	}
	labels, err := e.ancestors(snap)
	if err != nil {
		return nil, err
	}
	if !active && len(snap.ParentIDs) == 1 {
		m, err := e.layerMount(snap.ParentIDs[0], labels[0])
		return []object.Mount{m}, err
	}
	lowers, err := e.lowers(snap.ParentIDs, labels)
	if err != nil {
		return nil, err
	}
	if active && snap.Info.Labels[labelSource] != "" { // the layer is there: nothing is to be written
		own, err := e.layerMount(snap.ID, snap.Info.Labels)
		if err != nil {
			return nil, err
		}
		return e.stack(snap, append([]object.Mount{own}, lowers...), false, "ro"), nil
	}
	return e.stack(snap, lowers, active), nil
}

// single is a snapshot without parents.
func (e *Snapshotter) single(snap store.Snapshot, active bool) ([]object.Mount, error) {
	layer, err := e.layer(snap.ID, snap.Info.Labels)
	switch {
	case err == nil: // a differ has written it
		if e.opts.Verity {
			if err := requireVerity(layer); err != nil {
				return nil, err
			}
		}
		m, err := e.layerMount(snap.ID, snap.Info.Labels)
		return []object.Mount{m}, err
	case !errors.Is(err, os.ErrNotExist) || snap.Info.Labels[labelSource] != "":
		return nil, err
	}
	mode := "ro"
	if active {
		mode = "rw"
	}
	if e.opts.DefaultSize == 0 {
		return []object.Mount{{Type: "bind", Source: e.path(snap.ID, "fs"), Options: []string{mode, "rbind"}}}, nil
	}
	// Differs from containerd: there the image of a view is mounted read-only,
	// and the directory in it cannot be made.
	return []object.Mount{
		e.imageMount(snap),
		{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{
			upperOption(snap.Info.Labels), mode, "rbind",
		}},
	}, nil
}

// upperOption makes the upper directory in the writable image.
//
// Differs from containerd: there it belongs to root even in a container whose
// root is another user.
func upperOption(labels map[string]string) string {
	option := "X-containerd.mkdir.path={{ mount 0 }}/upper:0755"
	if uid, gid, mapped, err := overlay.MappedRoot(labels); mapped && err == nil {
		option += fmt.Sprintf(":%d:%d", uid, gid)
	}
	return option
}

// imageMount is the writable image, made when it is mounted first.
func (e *Snapshotter) imageMount(snap store.Snapshot) object.Mount {
	size := e.opts.DefaultSize
	if n, err := strconv.ParseInt(snap.Info.Labels[labelMaxSize], 10, 64); err == nil && n > 0 {
		size = n
	}
	return object.Mount{Type: "mkfs/ext4", Source: e.path(snap.ID, writableImage), Options: []string{
		"X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=" + strconv.FormatInt(size, 10), "rw", "loop",
	}}
}

func (e *Snapshotter) layerMount(id string, labels map[string]string) (object.Mount, error) {
	layer, err := e.layer(id, labels)
	if err != nil {
		return object.Mount{}, err
	}
	m := object.Mount{Type: "erofs", Source: layer, Options: []string{"ro", "loop"}}
	if e.opts.DMVerity == "off" {
		return m, nil
	}
	// The layer's own data must not be passed over silently.
	_, err = os.Stat(layer + ".dmverity")
	if err == nil {
		m.Options = append(m.Options, "X-containerd.dmverity="+layer+".dmverity")
	} else if !errors.Is(err, os.ErrNotExist) {
		return object.Mount{}, err
	}
	return m, nil
}

// lowers mounts the ancestors, the nearest first. Merged metadata stand for
// their layer and all below it.
func (e *Snapshotter) lowers(ids []string, labels []map[string]string) ([]object.Mount, error) {
	var out []object.Mount
	for i, id := range ids {
		merged := e.path(id, "fsmeta.erofs")
		if st, err := os.Stat(merged); err == nil && st.Size() > 0 {
			m := object.Mount{Type: "erofs", Source: merged, Options: []string{"ro", "loop"}}
			for j := len(ids) - 1; j >= i; j-- {
				layer, err := e.layer(ids[j], labels[j])
				if err != nil {
					return nil, err
				}
				m.Options = append(m.Options, "device="+layer)
			}
			return append(out, m), nil
		}
		m, err := e.layerMount(id, labels[i])
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// stack puts overlayfs over the lower mounts, or shows the only one.
func (e *Snapshotter) stack(snap store.Snapshot, lowers []object.Mount, writable bool, options ...string) []object.Mount {
	var mounts []object.Mount
	switch {
	case writable && e.opts.DefaultSize > 0:
		mounts = append(mounts, e.imageMount(snap))
		options = append(options,
			upperOption(snap.Info.Labels), "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
			"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper")
	case writable:
		options = append(options, "workdir="+e.path(snap.ID, "work"), "upperdir="+e.path(snap.ID, "fs"))
	}
	first := len(mounts)
	mounts = append(mounts, lowers...)
	if labels := snap.Info.Labels; (labels[snapshot.LabelUIDMapping] != "" || labels[snapshot.LabelGIDMapping] != "") && e.remapIDs() {
		for _, m := range []struct{ option, label string }{{"uidmap=", snapshot.LabelUIDMapping}, {"gidmap=", snapshot.LabelGIDMapping}} {
			if v := labels[m.label]; v != "" {
				options = append(options, m.option+v)
			}
		}
	}
	if len(lowers) == 1 && !writable { // overlayfs wants two
		return append(mounts, object.Mount{Type: "format/bind", Source: fmt.Sprintf("{{ mount %d }}", first), Options: append(options, "ro", "rbind")})
	}
	lower := fmt.Sprintf("lowerdir={{ overlay %d %d }}", first, len(mounts)-1)
	if len(lowers) == 1 {
		lower = fmt.Sprintf("lowerdir={{ mount %d }}", first)
	}
	options = append(append(options, lower), e.opts.OverlayOptions...)
	return append(mounts, object.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options})
}
