package shim

import (
	"fmt"
	"io"
	"os/exec"

	"berth/internal/shim/api"

	"github.com/containerd/errdefs"
)

// serveAnnotation tells Berth's daemon that the program knows the action "serve".
const serveAnnotation = "berth.shim.serve"

// Info writes a RuntimeInfo message about this shim to out. On in stand the options
// of the runtime as an Any message, or nothing.
func Info(name, version, revision string, in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxStdin))
	if err != nil {
		return fmt.Errorf("read the options: %w", err)
	}
	info := &api.RuntimeInfo{
		Name:        name,
		Version:     &api.RuntimeVersion{Version: version, Revision: revision},
		Annotations: map[string]string{serveAnnotation: "1"},
	}
	if len(raw) > 0 {
		a := new(api.Any)
		if err := api.Unmarshal(raw, a); err != nil {
			return fmt.Errorf("the options are not an Any message: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		opts, err := runcOptions(a)
		if err != nil {
			return err
		}
		if a.TypeUrl != "" {
			info.Options = a
		}
		if binary := opts.BinaryName; binary != "" {
			if info.Features, err = binaryFeatures(binary); err != nil {
				return err
			}
		}
	}
	if info.Features == nil {
		if info.Features, err = builtinFeatures(); err != nil {
			return err
		}
	}
	_, err = out.Write(api.Marshal(info))
	return err
}

// featuresType names the features of an OCI runtime in JSON, as typeurl does.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// binaryFeatures asks an external runtime. One that does not know the command has
// no features to tell of.
func binaryFeatures(binary string) (*api.Any, error) {
	path, err := exec.LookPath(binary)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %s: %w: %w", binary, err, errdefs.ErrNotFound)
	}
	out, err := exec.Command(path, "features").Output()
	if err != nil {
		return nil, nil
	}
	return &api.Any{TypeUrl: featuresType, Value: out}, nil
}
