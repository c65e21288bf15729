package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/internal/config"
	"berth/internal/fsx"

	"github.com/google/uuid"
)

// Names of containerd's directories below root and state.
const (
	contentDir       = "io.containerd.content.v1.content"
	metadataDir      = "io.containerd.metadata.v1.bolt"
	snapshotterDir   = "io.containerd.snapshotter.v1."
	introspectionDir = "io.containerd.grpc.v1.introspection"
	tempMountsDir    = "tmpmounts"
)

// makeDirs makes the top directories with containerd's modes: nobody else sees
// into root; through state go the users of containers with user namespaces.
func makeDirs(cfg *config.Config) error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{cfg.Root, 0o700},
		{cfg.State, 0o711},
		{filepath.Join(cfg.Root, contentDir), 0o700},
		{filepath.Join(cfg.Root, metadataDir), 0o700},
		{filepath.Join(cfg.Root, tempMountsDir), 0o700},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("make the daemon's directories: %w", err)
		}
	}
	// A root that was there with a wider mode is narrowed (CVE-2024-25621).
	if err := os.Chmod(cfg.Root, 0o700); err != nil {
		return fmt.Errorf("make the daemon's directories: %w", err)
	}
	return nil
}

// loadUUID returns the identity of a root, made at its first use.
func loadUUID(root string) (string, error) {
	path := filepath.Join(root, introspectionDir, "uuid")
	if data, err := os.ReadFile(path); err == nil {
		if id, err := uuid.ParseBytes(data); err == nil {
			return id.String(), nil
		}
		// Empty or torn by a crash: nobody can rely on it.
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("identity of the daemon: %w", err)
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("identity of the daemon: %w", err)
	}
	var disk *fsx.OS
	if err := disk.WriteAtomic("uuid", path, []byte(id.String()), 0o600); err != nil {
		return "", fmt.Errorf("identity of the daemon: %w", err)
	}
	return id.String(), nil
}

// addOpt puts the opt directory's programs and libraries where the daemon, its
// shims and runtimes look for them.
func addOpt(dir string) error {
	for _, v := range []struct{ name, sub string }{{"PATH", "bin"}, {"LD_LIBRARY_PATH", "lib"}} {
		path := filepath.Join(dir, v.sub)
		if err := os.MkdirAll(path, 0o711); err != nil {
			return err
		}
		if old := os.Getenv(v.name); old != "" {
			path += string(os.PathListSeparator) + old
		}
		if err := os.Setenv(v.name, path); err != nil {
			return err
		}
	}
	return nil
}
