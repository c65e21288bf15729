package spec

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultSeccomp is the default filter for s. What it allows depends on the
// capabilities in s: call it after they are settled.
//
// Compat: containerd's own list lets a process ask about its security modules,
// which the list that we take leaves to CAP_SYS_ADMIN.
func DefaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, err
	}
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
		Names:  []string{"lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr"},
		Action: specs.ActAllow,
	})
	return p, nil
}

// ParseSeccomp reads a filter in the runtime spec's JSON form.
func ParseSeccomp(b []byte) (*specs.LinuxSeccomp, error) {
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("seccomp profile is not what the OCI runtime spec describes: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &p, nil
}
