package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/apparmor"
)

// LoadApparmor loads the default profile for containers into the kernel under
// name, unless a profile of that name is there. It runs apparmor_parser.
// errdefs.ErrNotImplemented when this kernel has no AppArmor.
func LoadApparmor(name string) error {
	if name == "" || strings.ContainsAny(name, " \t\n/\"{}") {
		return fmt.Errorf("%q is no name for an AppArmor profile: %w", name, errdefs.ErrInvalidArgument)
	}
	loaded, err := apparmor.IsLoaded(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("this kernel runs without AppArmor (/sys/kernel/security/apparmor is missing): %w", errdefs.ErrNotImplemented)
	case err != nil:
		return fmt.Errorf("asking the kernel for AppArmor profile %q: %w", name, err)
	case loaded:
		return nil
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		return fmt.Errorf("loading AppArmor profile %q needs apparmor_parser (package apparmor), which is not on the PATH: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err := apparmor.InstallDefault(name); err != nil {
		return fmt.Errorf("loading AppArmor profile %q: %w", name, err)
	}
	return nil
}
