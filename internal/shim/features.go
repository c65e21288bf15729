package shim

import (
	"encoding/json"

	"berth/internal/shim/api"

	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// builtinFeatures is what the built-in runtime can do (OCI runtime specification,
// features.md).
func builtinFeatures() (*api.Any, error) {
	yes := true
	enabled := seccomp.Enabled
	f := features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         configs.KnownHookNames(),
		MountOptions:  specconv.KnownMountOptions(),
		Linux: &features.Linux{
			Namespaces:   specconv.KnownNamespaces(),
			Capabilities: capabilities.KnownCapabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Seccomp:      &features.Seccomp{Enabled: &enabled},
			Apparmor:     &features.Apparmor{Enabled: &yes},
			Selinux:      &features.Selinux{Enabled: &yes},
			IntelRdt:     &features.IntelRdt{Enabled: &yes},
			MountExtensions: &features.MountExtensions{
				IDMap: &features.IDMap{Enabled: &yes},
			},
		},
	}
	if enabled {
		f.Linux.Seccomp.Actions = seccomp.KnownActions()
		f.Linux.Seccomp.Operators = seccomp.KnownOperators()
		f.Linux.Seccomp.Archs = seccomp.KnownArchs()
		f.Linux.Seccomp.KnownFlags = seccomp.KnownFlags()
		f.Linux.Seccomp.SupportedFlags = seccomp.SupportedFlags()
	}
	raw, err := json.Marshal(f)
	return &api.Any{TypeUrl: featuresType, Value: raw}, err
}
