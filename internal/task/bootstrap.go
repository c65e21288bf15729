package task

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// newestVersion of the task API that the daemon speaks.
const newestVersion = 3

// maxBootstrap bounds what a shim may say when it starts.
const maxBootstrap = 1 << 20

// parseBootstrap reads where a shim listens: from what its start command
// printed, or from a bundle's bootstrap.json. There are three forms: the
// serialised BootstrapResult of shims since 2.3, JSON with the same fields since
// 2.0, and a bare address before. The first byte tells them apart: a message
// starts with a tag, which is a control character for the fields that are
// there, an object with a brace.
func parseBootstrap(out []byte) (*bootapi.BootstrapResult, error) {
	if len(out) > maxBootstrap {
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
	return result, checkBootstrap(result)
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

func checkBootstrap(r *bootapi.BootstrapResult) error {
	if r.Version < 2 || r.Version > newestVersion {
		return fmt.Errorf("the shim speaks version %d of the task API, versions 2 to %d are supported: %w", r.Version, newestVersion, errdefs.ErrNotImplemented)
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
	return parseBootstrap(data)
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
	if !info.Mode().IsRegular() || info.Size() > maxBootstrap {
		return nil, fmt.Errorf("%s is not a small regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	data := make([]byte, info.Size())
	n, err := f.Read(data)
	if err != nil && n == 0 && len(data) > 0 {
		return nil, err
	}
	return data[:n], nil
}
