package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// exitPatience is how long the processes of a Create that was cut short may take to
// see that nobody is at the other end of their pipe.
const exitPatience = 2 * time.Second

// destroyHalfMade removes what a Create leaves that was killed before libcontainer
// saved the state: the container's directory and, made after it, its cgroups, which
// only the specification tells then.
//
// Another container may have been given the same cgroups since: they go when they
// are empty, and nobody in them is killed. Nobody has to be: an init that has no
// state yet ends with its creator.
func (d *Builtin) destroyHalfMade(ctx context.Context, id string, spec *specs.Spec) error {
	dir := filepath.Join(d.Root, filepath.Base(id))
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var err error
	if spec != nil && spec.Linux != nil {
		err = d.removeCgroups(ctx, id, spec.Linux.CgroupsPath)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

func (d *Builtin) removeCgroups(ctx context.Context, id, path string) error {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: d.SystemdCgroup,
		Spec:             &specs.Spec{Linux: &specs.Linux{CgroupsPath: path}},
	}, nil)
	if err != nil {
		return fmt.Errorf("find the cgroups of container %s: %w", id, err)
	}
	m, err := manager.New(config)
	if err != nil {
		return fmt.Errorf("find the cgroups of container %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, exitPatience)
	defer cancel()
	for _, dir := range m.GetPaths() {
		err = errors.Join(err, removeEmptyCgroup(ctx, dir))
	}
	return err
}

// removeEmptyCgroup waits until nobody is in the cgroup. It does not remove those
// below it, which a container that was never started has not made.
func removeEmptyCgroup(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait *= 2 { // version 1 has nothing that tells
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		select {
		case <-ctx.Done():
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		case <-time.After(wait):
		}
	}
}
