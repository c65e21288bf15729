package task

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// maxSocketDir leaves room for a slash and the 64 digits of a SHA-256 in the 107
// bytes of a Unix socket's path.
const maxSocketDir = 107 - 1 - 64

func (o *Options) setSocketDir() error {
	if o.SocketDir == "" {
		// Differs from containerd: /run/containerd/s there whatever the state
		// directory is. With the default state directory that is the same.
		o.SocketDir = filepath.Join(o.State, "s")
		if len(o.SocketDir) > maxSocketDir {
			o.SocketDir = "/run/containerd/s"
		}
	}
	o.SocketDir = filepath.Clean(o.SocketDir)
	if !filepath.IsAbs(o.SocketDir) || len(o.SocketDir) > maxSocketDir {
		return fmt.Errorf("directory of shim sockets %q must be absolute and have at most %d bytes: %w", o.SocketDir, maxSocketDir, errdefs.ErrInvalidArgument)
	}
	return nil
}

// socketPath is where the shim of a group listens, as containerd's shim computes
// it: the hash of the daemon's address, the namespace and the group.
func (m *Manager) socketPath(namespace, group string) string {
	sum := sha256.Sum256([]byte(filepath.Join(m.opts.Address, namespace, group)))
	return fmt.Sprintf("%s/%x", m.opts.SocketDir, sum)
}
