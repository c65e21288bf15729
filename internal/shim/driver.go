package shim

import (
	"path/filepath"

	"berth/internal/ociruntime"

	"github.com/containerd/containerd/api/types/runc/options"
)

// stateRoot is where runtimes keep the state of containers, when the options name
// no other place. Compat: containerd's shim for runc.
const stateRoot = "/run/containerd/runc"

// driverFor is the runtime that the options of a container ask for.
func driverFor(o *options.Options, namespace, bundle string) ociruntime.Driver {
	root := o.GetRoot()
	if root == "" {
		root = stateRoot
	}
	root = filepath.Join(root, namespace)
	if o.GetBinaryName() != "" {
		return &ociruntime.External{Binary: o.GetBinaryName(), Root: root, SystemdCgroup: o.GetSystemdCgroup(), Log: filepath.Join(bundle, "log.json")}
	}
	return &ociruntime.Builtin{Root: root, SystemdCgroup: o.GetSystemdCgroup()}
}
