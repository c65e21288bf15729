package task

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"berth/internal/object"
	"berth/internal/task/shimconn"
	"berth/internal/wire"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// command is a shim's command, start or delete, with the flags and environment
// that shims of every generation expect. It works in the bundle, and has a
// process group of its own so that a terminal's signals do not reach it.
func (m *Manager) command(ctx context.Context, binary string, t *task, action string) *exec.Cmd {
	args := []string{"-namespace", t.namespace, "-address", m.opts.Address, "-publish-binary", m.self, "-id", t.id}
	if action == "delete" {
		args = append(args, "-bundle", t.bundle.path)
	}
	if m.debug {
		args = append(args, "-debug")
	}
	cmd := exec.CommandContext(ctx, binary, append(args, action)...)
	cmd.Dir = t.bundle.path
	cmd.Env = m.environment(t.namespace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay
	return cmd
}

func (m *Manager) environment(namespace string) []string {
	env := append(os.Environ(),
		"GOMAXPROCS=2",
		"MAX_SHIM_VERSION=2",
		"TTRPC_ADDRESS="+m.opts.TTRPCAddress,
		"GRPC_ADDRESS="+m.opts.Address,
		"NAMESPACE="+namespace)
	return append(env, m.opts.Env...)
}

// startForeign runs a shim's start command, which leaves the shim running, and
// returns where that listens.
func (m *Manager) startForeign(ctx context.Context, binary string, t *task, options *object.Any) (*bootapi.BootstrapResult, error) {
	params := &bootapi.BootstrapParams{
		InstanceID:             t.id,
		Namespace:              t.namespace,
		ContainerdVersion:      m.opts.Version,
		ContainerdGrpcAddress:  m.opts.Address,
		ContainerdTtrpcAddress: m.opts.TTRPCAddress,
		ContainerdBinary:       m.self,
		SocketDir:              &m.opts.SocketDir,
	}
	if m.debug {
		params.LogLevel = bootapi.LogLevel_LOG_LEVEL_DEBUG
	}
	if options != nil {
		params.Extensions = []*bootapi.Extension{{Value: wire.AnyToProto(options)}}
	}
	in, err := proto.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encode start parameters: %w", err)
	}
	if strings.Contains(binary, "shim-runc-v1") || strings.Contains(binary, "shim-runhcs-v1") {
		// Compat: these shims of containerd 1.x refuse anything but options.
		if in, err = proto.Marshal(wire.AnyToProto(options)); err != nil {
			return nil, fmt.Errorf("encode runtime options: %w", err)
		}
	}
	cmd := m.command(ctx, binary, t, "start")
	cmd.Stdin = bytes.NewReader(in)
	out, err := output(cmd)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("start shim %s: %w", binary, err)
	}
	result, err := shimconn.ParseBootstrap(out)
	if err != nil {
		return nil, fmt.Errorf("start shim %s: %w", binary, err)
	}
	return result, nil
}

// runDelete has the shim's delete command clear away what a dead shim left: the
// OCI container with its processes, and the mounts. It tells how the init
// process ended, as far as the shim recorded that.
func (m *Manager) runDelete(ctx context.Context, binary string, t *task) (object.Exit, error) {
	if executable(binary) != nil {
		// It was moved or removed since the shim was started: take what has its
		// name now, or else the default runtime's, whose bundles are the same.
		name := "io.containerd.runc.v2"
		if kind, ok := strings.CutPrefix(filepath.Base(binary), "containerd-shim-"); ok {
			name = "io.containerd." + strings.ReplaceAll(kind, "-", ".")
		}
		var err error
		if binary, err = m.binaryOf(name); err != nil {
			return object.Exit{}, err
		}
	}
	out, err := output(m.command(ctx, binary, t, "delete"))
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return object.Exit{}, fmt.Errorf("clean up with %s delete: %w", binary, err)
	}
	var resp taskapi.DeleteResponse
	if err := proto.Unmarshal(out, &resp); err != nil {
		return object.Exit{}, fmt.Errorf("clean up with %s delete: the answer is no DeleteResponse (%w): %w", binary, err, errdefs.ErrUnknown)
	}
	return object.Exit{PID: resp.GetPid(), Status: resp.GetExitStatus(), At: wire.TimeFromProto(resp.GetExitedAt())}, nil
}
