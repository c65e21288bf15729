package shimconn

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// NewestVersion of the task API that the daemon speaks.
const NewestVersion = 3

// MaxBootstrap bounds what a shim may say when it starts.
const MaxBootstrap = 1 << 20

// ParseBootstrap reads where a shim listens: from what its start command
// printed, or from a bundle's bootstrap.json. There are three forms: the
// serialised BootstrapResult of shims since 2.3, JSON with the same fields since
// 2.0, and a bare address before. The first byte tells them apart: a message
// starts with a tag, which is a control character for the fields that are
// there, an object with a brace.
func ParseBootstrap(out []byte) (*bootapi.BootstrapResult, error) {
	if len(out) > MaxBootstrap {
		return nil, fmt.Errorf("the shim's start result has %d bytes: %w", len(out), errdefs.ErrInvalidArgument)
	}
	result := &bootapi.BootstrapResult{}
	trimmed := bytes.TrimSpace(out)
	switch {
	case len(trimmed) == 0:
		return nil, fmt.Errorf("the shim told no address when it started: %w", errdefs.ErrInvalidArgument)
	case isMessage(out):
		if err := proto.Unmarshal(out, result); err != nil {
			return nil, fmt.Errorf("the shim's start result is no BootstrapResult (%w): %w", err, errdefs.ErrInvalidArgument)
		}
	case trimmed[0] == '{':
		if err := json.Unmarshal(trimmed, result); err != nil {
			return nil, fmt.Errorf("the shim's start result is not valid JSON (%w): %w", err, errdefs.ErrInvalidArgument)
		}
	default:
		result.Address, result.Protocol, result.Version = string(trimmed), "ttrpc", 2
	}
	return result, CheckBootstrap(result)
}

// isMessage recognises a BootstrapResult by the tag of its first field: 1
// (varint), 2, 3, 5 or 6 (length-delimited).
func isMessage(b []byte) bool {
	switch b[0] {
	case 1<<3 | 0, 2<<3 | 2, 3<<3 | 2, 5<<3 | 2, 6<<3 | 2:
		return true
	}
	return false
}

// CheckBootstrap refuses what this daemon cannot speak: errdefs.ErrNotImplemented,
// or errdefs.ErrInvalidArgument for what is no address. It fills in the protocol.
func CheckBootstrap(r *bootapi.BootstrapResult) error {
	if r.Version < 2 || r.Version > NewestVersion {
		return fmt.Errorf("the shim speaks version %d of the task API, versions 2 to %d are supported: %w", r.Version, NewestVersion, errdefs.ErrNotImplemented)
	}
	r.Protocol = strings.ToLower(r.Protocol)
	if r.Protocol == "" {
		r.Protocol = "ttrpc"
	}
	if r.Protocol != "ttrpc" && r.Protocol != "grpc" {
		return fmt.Errorf("the shim speaks the protocol %q, ttrpc and grpc are supported: %w", r.Protocol, errdefs.ErrNotImplemented)
	}
	if r.Protocol == "grpc" && r.Version < 3 {
		return fmt.Errorf("the shim speaks version %d of the task API over gRPC, which has it since 3: %w", r.Version, errdefs.ErrNotImplemented)
	}
	if r.Address == "" || strings.ContainsAny(r.Address, "\n\x00") {
		return fmt.Errorf("the shim's address %q is no address: %w", r.Address, errdefs.ErrInvalidArgument)
	}
	return nil
}
