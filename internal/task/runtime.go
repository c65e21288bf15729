package task

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/object"
	"berth/internal/task/shimproc"
	"berth/internal/wire"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// binaryOf finds the executable of a runtime: an absolute path as it is, or the
// name <prefix>.<name>.<version>, which stands for containerd-shim-<name>-<version>.
// errdefs.ErrNotFound when there is none.
//
// Differs from containerd: the directory of the daemon comes before the PATH,
// and the working directory not at all. Daemon and shim are built together,
// while the PATH of a host that has, or had, containerd holds a shim of the same
// name that is slower and of another version.
func (m *Manager) binaryOf(runtime string) (string, error) {
	if filepath.IsAbs(runtime) {
		if err := executable(runtime); err != nil {
			return "", fmt.Errorf("runtime %q: %w", runtime, err)
		}
		return runtime, nil
	}
	parts := strings.Split(runtime, ".")
	if len(parts) < 2 || parts[0] == "" || strings.Contains(runtime, "/") {
		return "", fmt.Errorf("runtime %q is neither an absolute path nor a name such as io.containerd.runc.v2: %w", runtime, errdefs.ErrInvalidArgument)
	}
	name := "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
	if path := filepath.Join(filepath.Dir(m.self), name); executable(path) == nil {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("runtime %q is not installed: there is no executable %s in %s or on the PATH: %w", runtime, name, filepath.Dir(m.self), errdefs.ErrNotFound)
	}
	return filepath.Abs(path)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case isGone(err):
		return fmt.Errorf("there is no such file: %w", errdefs.ErrNotFound)
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("it is not an executable file: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// servesAnnotation is that by which a shim tells that it has the serve command.
const servesAnnotation = "berth.shim.serve"

// infoCache remembers which editions have the serve command.
type infoCache struct {
	mu     sync.Mutex
	serves map[shimproc.Edition]func() bool
}

// servesItself tells whether a shim has the serve command. It is asked once for
// each edition; a shim that cannot answer, as containerd's without runc on the
// PATH, has not.
func (m *Manager) servesItself(e shimproc.Edition) bool {
	m.infos.mu.Lock()
	ask := m.infos.serves[e]
	if ask == nil {
		ask = sync.OnceValue(func() bool {
			ctx, cancel := context.WithTimeout(m.life, m.timeouts().Load)
			defer cancel()
			info, err := m.info(ctx, e.Path, nil)
			return err == nil && info.GetAnnotations()[servesAnnotation] == "1"
		})
		if m.infos.serves == nil {
			m.infos.serves = make(map[shimproc.Edition]func() bool)
		}
		m.infos.serves[e] = ask
	}
	m.infos.mu.Unlock()
	return ask()
}

// info runs the shim with -info.
func (m *Manager) info(ctx context.Context, path string, options *object.Any) (*types.RuntimeInfo, error) {
	cmd := exec.CommandContext(ctx, path, "-info")
	cmd.Env = append(os.Environ(), m.opts.Env...)
	cmd.WaitDelay = pipeDelay
	if options != nil {
		in, err := proto.Marshal(wire.AnyToProto(options))
		if err != nil {
			return nil, fmt.Errorf("encode runtime options: %w", err)
		}
		cmd.Stdin = bytes.NewReader(in)
	}
	out, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("ask runtime %s about itself: %w", path, err)
	}
	info := &types.RuntimeInfo{}
	if err := proto.Unmarshal(out, info); err != nil {
		return nil, fmt.Errorf("ask runtime %s about itself: the answer is no RuntimeInfo (%w): %w", path, err, errdefs.ErrUnknown)
	}
	return info, nil
}

// RuntimeInfo asks a runtime's shim (its -info) about itself, with options that
// may be nil. The result is a serialised containerd.types.RuntimeInfo. path, if
// not empty, is used in place of the runtime's own shim.
func (m *Manager) RuntimeInfo(ctx context.Context, runtime, path string, options *object.Any) (object.Any, error) {
	binary, err := m.binaryOf(cmp.Or(path, runtime))
	if err != nil {
		return object.Any{}, err
	}
	info, err := m.info(ctx, binary, options)
	if err != nil {
		return object.Any{}, err
	}
	value, err := proto.Marshal(info)
	if err != nil {
		return object.Any{}, fmt.Errorf("encode runtime info: %w", err)
	}
	return object.Any{TypeURL: string(info.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}

// pipeDelay is how long a command's pipes may stay open after its end: its
// descendants may have inherited them.
const pipeDelay = 2 * time.Second

// maxOutput bounds what is kept of a command's output.
const maxOutput = 1 << 20

// output runs cmd and returns what it printed; an error has what it complained.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well, only its pipes did not
	}
	if err != nil {
		if said := bytes.TrimSpace(stderr.Bytes()); len(said) > 0 {
			return nil, fmt.Errorf("%w: %s", err, said)
		}
		return nil, err
	}
	return stdout.Bytes(), nil
}

// limited keeps the first maxOutput bytes that are written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), maxOutput-l.Len())])
	return len(p), nil
}
