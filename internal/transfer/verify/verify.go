// Package verify asks the image verifiers of a directory whether an image may be
// pulled.
//
// Protocol (containerd's docs/image-verification.md): each program in the
// directory, in the order of the names, is run with -name NAME -digest DIGEST
// -stdin-media-type application/vnd.oci.descriptor.v1+json and gets the
// descriptor as JSON on standard input. Exit status 0 allows the image, any
// other refuses it; standard output gives the reason. All must allow it. A
// program that cannot be run, or does not end in time, refuses, too.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxOutput bounds what is kept of what a verifier prints.
const maxOutput = 32 << 10

// Directory is a directory of verifiers.
type Directory struct {
	// Path of it; one that does not exist allows everything.
	Path string
	// Max is how many verifiers are run at most; negative is all.
	Max int
	// Timeout of each; 0 is none.
	Timeout time.Duration
	Log     *slog.Logger
}

// Verify returns nil when the image may be pulled. errdefs.ErrPermissionDenied,
// with the verifier and its reason, when it may not.
func (d *Directory) Verify(ctx context.Context, name string, desc ispec.Descriptor) error {
	entries, err := os.ReadDir(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image verifiers: %w: %w", err, errdefs.ErrPermissionDenied)
	}
	for i, e := range entries {
		if d.Max >= 0 && i >= d.Max {
			// Compat: those beyond the limit are not asked.
			d.Log.Warn("image verifiers are left out: there are more than max_verifiers", "directory", d.Path, "verifiers", len(entries), "max_verifiers", d.Max)
			break
		}
		if err := d.ask(ctx, e.Name(), name, desc); err != nil {
			return err
		}
	}
	return nil
}

func (d *Directory) ask(ctx context.Context, verifier, name string, desc ispec.Descriptor) error {
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d.Timeout, fmt.Errorf("it did not decide within %s", d.Timeout))
		defer cancel()
	}
	in, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(d.Path, verifier), "-name", name, "-digest", desc.Digest.String(), "-stdin-media-type", ispec.MediaTypeDescriptor)
	// In a group of its own: what it started goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, log := &bounded{}, &bounded{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(in)), out, log
	err = cmd.Run()
	d.Log.Debug("image verifier", "verifier", verifier, "image", name, "digest", desc.Digest, "result", err, "stdout", out.String(), "stderr", log.String())
	refuse := func(why string) error {
		return fmt.Errorf("image verifier %s blocked the pull of %s (%s): %s: %w", verifier, name, desc.Digest, why, errdefs.ErrPermissionDenied)
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return refuse(context.Cause(ctx).Error())
	case errors.As(err, &exit) && exit.Exited():
		return refuse(fmt.Sprintf("exit status %d: %s", exit.ExitCode(), out))
	case err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, exec.ErrWaitDelay):
		return refuse(err.Error())
	}
	return nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(maxOutput-len(b.kept), len(p))]...)
	return len(p), nil
}

// String is one line of it, fit for an error.
func (b *bounded) String() string {
	s := strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(string(b.kept), " ")))
	if len(b.kept) == maxOutput {
		s += " (cut)"
	}
	return s
}
