package shim

import (
	"path/filepath"

	"berth/internal/ociruntime"
	"berth/internal/shim/api"
)

// stateRoot is where runtimes keep the state of containers, when the options name
// no other place. Compat: containerd's shim for runc.
const stateRoot = "/run/containerd/runc"

// driverFor is the runtime that the options of a container ask for.
func driverFor(o *api.Options, namespace, bundle string) ociruntime.Driver {
	root := o.Root
	if root == "" {
		root = stateRoot
	}
	root = filepath.Join(root, namespace)
	if o.BinaryName != "" {
		return &ociruntime.External{Binary: o.BinaryName, Root: root, SystemdCgroup: o.SystemdCgroup, Log: filepath.Join(bundle, "log.json")}
	}
	return &ociruntime.Builtin{Root: root, SystemdCgroup: o.SystemdCgroup}
}
