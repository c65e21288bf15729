package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"berth/internal/mount"
	"berth/internal/wire"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// idMaps lead from a container's user and group IDs to the host's.
type idMaps struct {
	UIDs []specs.LinuxIDMapping `json:"UidMap"`
	GIDs []specs.LinuxIDMapping `json:"GidMap"`
}

// name of the snapshot that holds parent with its owners shifted.
// Compat: containerd's client finds the same one, and ours its.
func (m idMaps) name(parent string) (string, error) {
	order := func(a, b specs.LinuxIDMapping) int { return int(int64(a.ContainerID) - int64(b.ContainerID)) }
	m.UIDs, m.GIDs = slices.SortedStableFunc(slices.Values(m.UIDs), order), slices.SortedStableFunc(slices.Values(m.GIDs), order)
	b, err := json.Marshal(struct {
		Parent string
		IDMap  idMaps
	}{parent, m})
	return digest.FromBytes(b).String(), err
}

func toHost(id uint32, maps []specs.LinuxIDMapping) (uint32, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size) {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// remapped is the snapshot of an image's files with the owners that a container
// in a user namespace sees as its own. It is made when it is not there, by
// changing the owner of every file: --remap-labels spares that where the
// snapshotter can.
func (m idMaps) remapped(ctx context.Context, s *session, snapshotter, parent string) (string, error) {
	name, err := m.name(parent)
	if err != nil {
		return "", err
	}
	snapshots := snapshotsapi.NewSnapshotsClient(s)
	if _, err := snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: name}); !errdefs.IsNotFound(err) {
		return name, err
	}
	key := name + "-remap-" + uuid.NewString()
	resp, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent})
	if err != nil {
		return "", err
	}
	err = mount.WithTemp(ctx, wire.MountsFromProto(resp.Mounts), func(root string) error { return m.shift(ctx, root) })
	if err == nil {
		_, err = snapshots.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: snapshotter, Name: name, Key: key})
	}
	if err != nil {
		removeSnapshot(ctx, s, snapshotter, key)
	}
	return name, ignoreExists(err)
}

// shift changes the owner of everything below root.
func (m idMaps) shift(ctx context.Context, root string) error {
	type inode struct{ dev, ino uint64 }
	type first struct {
		path     string
		uid, gid uint32
	}
	seen := map[inode]first{} // files with several names, by what they were
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		if d.IsDir() || st.Nlink < 2 {
			return m.shiftOne(path, path[len(root):], fi, st)
		}
		key := inode{st.Dev, st.Ino}
		if f, ok := seen[key]; ok {
			if st.Uid == f.uid && st.Gid == f.gid {
				return nil // another name of the file that was shifted
			}
			// Overlay copied the file under its first name only, and left the others
			// as they were.
			return relink(f.path, path)
		}
		if err := m.shiftOne(path, path[len(root):], fi, st); err != nil {
			return err
		}
		if fi, err = os.Lstat(path); err != nil {
			return err
		}
		st = fi.Sys().(*syscall.Stat_t)
		seen[key] = first{path, st.Uid, st.Gid}
		return nil
	})
}

// relink makes path a name of the file at first. The directory's times stay.
func relink(first, path string) error {
	dir := filepath.Dir(path)
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.Link(first, path); err != nil {
		return err
	}
	return os.Chtimes(dir, time.Time{}, fi.ModTime())
}

func (m idMaps) shiftOne(path, shown string, fi fs.FileInfo, st *syscall.Stat_t) error {
	uid, ok := toHost(st.Uid, m.UIDs)
	if !ok {
		return invalid("--uidmap does not map user %d, who owns %s in the image", st.Uid, shown)
	}
	gid, ok := toHost(st.Gid, m.GIDs)
	if !ok {
		return invalid("--gidmap does not map group %d, which owns %s in the image", st.Gid, shown)
	}
	capability := make([]byte, 64)
	n, err := unix.Lgetxattr(path, "security.capability", capability)
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("capabilities of %s: %w", shown, err)
	}
	if err := os.Lchown(path, int(uid), int(gid)); err != nil {
		return err
	}
	// Changing the owner takes setuid, setgid and capabilities away.
	if mode := fi.Mode(); mode&fs.ModeSymlink == 0 && mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	if n > 0 {
		rootUID, _ := toHost(0, m.UIDs)
		if err := unix.Lsetxattr(path, "security.capability", ownedCapability(capability[:n], rootUID), 0); err != nil {
			return fmt.Errorf("capabilities of %s: %w", shown, err)
		}
	}
	return nil
}

// ownedCapability is a file's capabilities as they count in the user namespace
// whose root is rootUID (struct vfs_ns_cap_data, linux/capability.h): revision 2
// counts for the host's root alone.
func ownedCapability(data []byte, rootUID uint32) []byte {
	if len(data) != 20 || data[3] != 2 || rootUID == 0 {
		return data
	}
	out := append(slices.Clone(data), byte(rootUID), byte(rootUID>>8), byte(rootUID>>16), byte(rootUID>>24))
	out[3] = 3
	return out
}
