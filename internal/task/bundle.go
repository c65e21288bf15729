package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/internal/failpoint"
	"berth/internal/mount"
	"berth/internal/task/shimconn"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tasksDir is containerd's name for the directory of bundles under the state
// directory, and of work directories under the root.
const tasksDir = "io.containerd.runtime.v2.task"

// sandboxesDir is the same for sandboxes that are shims.
const sandboxesDir = "io.containerd.sandbox.controller.v1.shim"

// Files of a bundle, with containerd's names. The daemon writes these; the shim
// adds more (options.json, runtime, init.pid, …).
const (
	specFile       = "config.json"
	workLink       = "work"
	rootfsName     = "rootfs"
	binaryPathFile = "shim-binary-path"
	bootstrapFile  = "bootstrap.json"
	// addressFile holds the address of shims of containerd before 2.0.
	addressFile = "address"
	sandboxFile = "sandbox"
	logFIFO     = "log"
	initPIDFile = "init.pid"
	// withdrawnFile is config.json while a Create is being undone.
	withdrawnFile = ".config.json"
)

// bundle names the directories of one task.
type bundle struct {
	path string
	work string
}

func (m *Manager) bundleOf(k key, sandbox bool) bundle {
	dir := tasksDir
	if sandbox {
		dir = sandboxesDir
	}
	return bundle{
		path: filepath.Join(m.opts.State, dir, k.namespace, k.id),
		work: filepath.Join(m.opts.Root, dir, k.namespace, k.id),
	}
}

func (b bundle) file(name string) string { return filepath.Join(b.path, name) }

// specFacts is what the daemon needs to know of an OCI spec.
type specFacts struct {
	Annotations map[string]string `json:"annotations"`
	Linux       *struct {
		GIDMappings []struct {
			ContainerID uint32 `json:"containerID"`
			HostID      uint32 `json:"hostID"`
		} `json:"gidMappings"`
	} `json:"linux"`
}

func parseSpec(spec []byte) (specFacts, error) {
	var facts specFacts
	if err := json.Unmarshal(spec, &facts); err != nil {
		return facts, fmt.Errorf("the container's OCI spec is not valid JSON (%w): %w", err, errdefs.ErrInvalidArgument)
	}
	return facts, nil
}

// rootGID is the host's GID of the container's root group, 0 without a user
// namespace.
func (f specFacts) rootGID() int {
	if f.Linux != nil {
		for _, m := range f.Linux.GIDMappings {
			if m.ContainerID == 0 {
				return int(m.HostID)
			}
		}
	}
	return 0
}

// group is the name under which shims are shared: the pod's for its containers,
// else the container's own. The annotations are those that containerd's shim
// looks at, in its order.
func (f specFacts) group(id string) string {
	for _, name := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if g := f.Annotations[name]; g != "" {
			return g
		}
	}
	return id
}

// create makes the directories and config.json. What a crash leaves of it has
// no bootstrap.json, which tells Recover to remove it. An error leaves nothing.
func (b bundle) create(spec []byte, rootGID int) (err error) {
	if err := mkdirBelow(b.path, 0o700); errors.Is(err, fs.ErrExist) {
		// Nobody else has this ID now: the caller reserved it. So this is
		// what a removal could not take away.
		if err := b.remove(nil); err != nil {
			return fmt.Errorf("clear away an old bundle: %w", err)
		}
		if err := os.Mkdir(b.path, 0o700); err != nil {
			return fmt.Errorf("make bundle: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(b.path)
			os.RemoveAll(b.work)
		}
	}()
	if rootGID != 0 {
		if err := os.Chown(b.path, -1, rootGID); err != nil {
			return fmt.Errorf("open bundle to the container's root group %d: %w", rootGID, err)
		}
		if err := os.Chmod(b.path, 0o710); err != nil {
			return fmt.Errorf("open bundle to the container's root group %d: %w", rootGID, err)
		}
	}
	if err := os.Mkdir(b.file(rootfsName), 0o711); err != nil {
		return fmt.Errorf("make rootfs directory: %w", err)
	}
	failpoint.Hit("task.create.rootfs-made")
	if err := b.createWork(); err != nil {
		return err
	}
	if spec == nil {
		return nil
	}
	if err := os.WriteFile(b.file(specFile), spec, 0o666); err != nil {
		return fmt.Errorf("write OCI spec: %w", err)
	}
	return nil
}

func (b bundle) createWork() error {
	if err := mkdirBelow(b.work, 0o711); errors.Is(err, fs.ErrExist) {
		// Left by a task of an earlier boot: the state directory went, the root stayed.
		if err := os.RemoveAll(b.work); err != nil {
			return fmt.Errorf("clear away an old work directory: %w", err)
		}
		if err := os.Mkdir(b.work, 0o711); err != nil {
			return fmt.Errorf("make work directory: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	if err := os.Symlink(b.work, b.file(workLink)); err != nil {
		return fmt.Errorf("link work directory: %w", err)
	}
	return nil
}

// mkdirBelow makes a directory and, when it is missing, its parent.
func mkdirBelow(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	return os.Mkdir(path, mode)
}

// withdraw takes the OCI spec out of the shim's reach, without which no shim makes
// a container: a Create that it has not begun by now, as one that still lies in a
// socket of a daemon that died, comes to nothing.
func (b bundle) withdraw() error {
	err := os.Rename(b.file(specFile), b.file(withdrawnFile))
	if isGone(err) {
		return nil
	}
	return err
}

// restore undoes withdraw, for the delete commands of shims that read the spec.
func (b bundle) restore() {
	if err := os.Rename(b.file(withdrawnFile), b.file(specFile)); err != nil && !isGone(err) {
		os.Remove(b.file(withdrawnFile))
	}
}

// remove takes the bundle and its work directory away: at once by renaming them
// to hidden names, which no start takes for bundles, then for good, by way of
// later when that is not nil. It is content when there is nothing.
//
// The rootfs goes first and never recursively: while something is mounted or
// stored there, its contents are not ours to delete.
func (b bundle) remove(later func(func())) error {
	rootfs := b.file(rootfsName)
	err := os.Remove(rootfs)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
		if uerr := mount.UnmountRecursive(rootfs, 0); uerr != nil {
			uerr = mount.UnmountRecursive(rootfs, unix.MNT_DETACH)
			if uerr != nil {
				return fmt.Errorf("unmount rootfs: %w", uerr)
			}
		}
		err = os.Remove(rootfs)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove rootfs directory: %w", err)
	}
	failpoint.Hit("task.remove.rootfs-removed")
	var doomed []string
	for _, dir := range []string{b.path, b.work} {
		hidden, err := hide(dir)
		if isGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		failpoint.Hit("task.remove.hidden")
		doomed = append(doomed, hidden)
	}
	if later == nil {
		return removeAll(doomed)
	}
	if len(doomed) > 0 {
		// What a crash leaves here has a hidden name; the next start removes it.
		later(func() { removeAll(doomed) })
	}
	return nil
}

func removeAll(paths []string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, os.RemoveAll(p))
		failpoint.Hit("task.remove.removed")
	}
	return errors.Join(errs...)
}

// hide renames a directory to a free hidden name beside it.
func hide(path string) (string, error) {
	dir, base := filepath.Split(path)
	for n := 0; ; n++ {
		hidden := filepath.Join(dir, fmt.Sprintf(".%s.%d", base, n))
		err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, hidden, unix.RENAME_NOREPLACE)
		if err == unix.EEXIST {
			continue
		}
		if err != nil {
			return "", &os.LinkError{Op: "rename", Old: path, New: hidden, Err: err}
		}
		return hidden, nil
	}
}

// writeBootstrap saves how to reach the shim, in containerd's form: the next
// daemon, whichever of the two, adopts it from there. A crash in the middle
// leaves a file that does not parse: a half-made bundle.
func (b bundle) writeBootstrap(r *bootapi.BootstrapResult) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", bootstrapFile, err)
	}
	if err := os.WriteFile(b.file(bootstrapFile), data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", bootstrapFile, err)
	}
	return nil
}

// readBootstrap is the counterpart; os.ErrNotExist when the bundle names no shim.
func (b bundle) readBootstrap() (*bootapi.BootstrapResult, error) {
	data, err := readSmall(b.file(bootstrapFile))
	if isGone(err) {
		data, err = readSmall(b.file(addressFile))
	}
	if err != nil {
		return nil, err
	}
	return shimconn.ParseBootstrap(data)
}

// readSmall reads a file that a bundle may hold, up to a bound.
func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // never waits, even for a FIFO
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > shimconn.MaxBootstrap {
		return nil, fmt.Errorf("%s is not a small regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	data := make([]byte, info.Size())
	n, err := f.Read(data)
	if err != nil && n == 0 && len(data) > 0 {
		return nil, err
	}
	return data[:n], nil
}
