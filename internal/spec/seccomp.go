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
func DefaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	return seccomp.GetDefaultProfile(s)
}

// ParseSeccomp reads a filter in the runtime spec's JSON form.
func ParseSeccomp(b []byte) (*specs.LinuxSeccomp, error) {
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("seccomp profile is not what the OCI runtime spec describes: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &p, nil
}
