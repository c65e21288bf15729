package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/object/live"

	"github.com/containerd/errdefs"
)

// Handler performs the mounts of a type that mount(2) does not know, or does
// not do well.
type Handler interface {
	// Mount performs m at a path that does not exist yet and that the handler
	// makes: a directory, or a link to a device. active are the mounts before
	// it. After an error nothing is mounted.
	Mount(ctx context.Context, m live.Mount, at string, active []live.ActiveMount) (live.ActiveMount, error)
	// Unmount undoes Mount, and is content when there is nothing.
	Unmount(ctx context.Context, at string) error
}

// ActivateOptions says what the caller of Activate does itself.
type ActivateOptions struct {
	// Temporary performs every mount; what remains is a bind of the last.
	Temporary bool
	// Types are the types that the caller mounts, without transformations.
	Types []string
	// Transforms are the transformations that the caller carries out.
	Transforms []string
}

// Activator performs mounts that need preparation. The type of such a mount
// has the transformations in front, "format/mkdir/overlay", of which the
// leftmost is done first:
//
//	format  replaces {{ mount N }}, {{ source N }}, {{ target N }} and
//	        {{ overlay N M }} in source, target and options by what the mounts
//	        before have become
//	mkdir   makes the directories of the options X-containerd.mkdir.path=
//	mkfs    makes the filesystem image of the source, see X-containerd.mkfs.*
//
// In the directory of an activation the mount that is undone first is "1", and
// "1-type" holds its type; so a crash leaves all that Deactivate needs. The
// layout is containerd's.
type Activator struct {
	handlers map[string]Handler
	roots    []string
}

// NewActivator makes one whose transformations write below roots only, and
// below the directory of the activation. Symbolic links do not lead out.
func NewActivator(handlers map[string]Handler, roots ...string) *Activator {
	return &Activator{handlers: handlers, roots: roots}
}

// plan is which mounts are performed by the activation.
type plan struct {
	// performed counts the mounts from the first one that the activation
	// performs; -1 when it has nothing to do at all.
	performed int
	// chains are the transformations of each mount, in order.
	chains [][]string
	// own counts those from the first one that the caller does not do.
	own []int
}

func (a *Activator) plan(mounts []live.Mount, opts ActivateOptions) plan {
	p := plan{performed: -1, chains: make([][]string, len(mounts)), own: make([]int, len(mounts))}
	for i, m := range mounts {
		chain, base := splitType(m.Type)
		p.chains[i] = chain
		for j, name := range chain {
			// One that is claimed is done all the same if one that is not
			// comes after it.
			if !slices.Contains(opts.Transforms, name) && !slices.Contains(opts.Types, m.Type) {
				p.own[i] = j + 1
				p.performed = i
			}
		}
		_, handled := a.handlers[base]
		if opts.Temporary || handled && !slices.Contains(opts.Types, base) {
			p.performed = i + 1
		}
	}
	return p
}

// splitType takes the known transformations off a type.
func splitType(fstype string) (chain []string, base string) {
	base = fstype
	for {
		name, rest, ok := strings.Cut(base, "/")
		if !ok || name != "format" && name != "mkdir" && name != "mkfs" {
			return chain, base
		}
		chain, base = append(chain, name), rest
	}
}

// Needed reports whether there is anything to do for Activate. If not, the
// caller mounts what it has.
func (a *Activator) Needed(mounts []live.Mount, opts ActivateOptions) bool {
	return a.plan(mounts, opts).performed >= 0
}

// Activate performs the mounts that others need, in dir, which exists and
// belongs to this activation alone. system are those that the caller mounts.
// After an error nothing is mounted and dir is empty. Errors to branch on:
// errdefs.ErrNotImplemented (Needed says no), errdefs.ErrInvalidArgument.
func (a *Activator) Activate(ctx context.Context, dir string, mounts []live.Mount, opts ActivateOptions) (active []live.ActiveMount, system []live.Mount, err error) {
	p := a.plan(mounts, opts)
	if p.performed < 0 {
		return nil, nil, fmt.Errorf("activate mounts: none of %d needs it: %w", len(mounts), errdefs.ErrNotImplemented)
	}
	defer func() {
		if err != nil {
			active, system = nil, nil
			err = fmt.Errorf("activate mounts: %w", errors.Join(err, a.clear(context.WithoutCancel(ctx), dir)))
		}
	}()
	t := transformer{roots: append([]string{dir}, a.roots...)}
	for i, m := range mounts[:p.performed] {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if m, err = t.apply(ctx, m, p.chains[i], active); err != nil {
			return nil, nil, fmt.Errorf("mount %d: %w", i, err)
		}
		at := filepath.Join(dir, position(p.performed-i, p.performed))
		one, err := a.perform(ctx, m, at, active)
		if err != nil {
			return nil, nil, fmt.Errorf("mount %d: %w", i, err)
		}
		active = append(active, one)
	}
	system = slices.Clone(mounts[p.performed:])
	if len(system) > 0 {
		own := p.chains[p.performed][:p.own[p.performed]]
		if system[0], err = t.apply(ctx, system[0], own, active); err != nil {
			return nil, nil, fmt.Errorf("mount %d: %w", p.performed, err)
		}
	}
	if opts.Temporary && len(active) > 0 {
		system = append(system, live.Mount{Type: "bind", Source: active[len(active)-1].MountPoint, Options: []string{"rbind"}})
	}
	return active, system, nil
}

// position is the name of a mount in the directory, so that names sort in the
// order in which the mounts are undone.
func position(n, of int) string {
	switch {
	case of > 100:
		return fmt.Sprintf("%03d", n)
	case of > 10:
		return fmt.Sprintf("%02d", n)
	}
	return strconv.Itoa(n)
}

// perform mounts one. Its type is on record before: what a crash leaves can be
// undone.
func (a *Activator) perform(ctx context.Context, m live.Mount, at string, active []live.ActiveMount) (live.ActiveMount, error) {
	if err := os.WriteFile(at+"-type", []byte(m.Type), 0o600); err != nil {
		return live.ActiveMount{}, err
	}
	if h := a.handlers[m.Type]; h != nil {
		one, err := h.Mount(ctx, m, at, active)
		one.MountedAt = time.Now().UTC()
		return one, err
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		return live.ActiveMount{}, err
	}
	if err := All([]live.Mount{m}, at); err != nil {
		return live.ActiveMount{}, err
	}
	return live.ActiveMount{Mount: m, MountPoint: at, MountedAt: time.Now().UTC()}, nil
}

// Deactivate undoes what was activated in dir, the last mount first, and
// removes dir. It goes by what dir holds, so it finishes what a crash has
// left, and is content with what is gone already. It goes on after a failure
// and returns what failed.
func (a *Activator) Deactivate(ctx context.Context, dir string) error {
	if err := a.clear(ctx, dir); err != nil {
		return fmt.Errorf("deactivate mounts: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("deactivate mounts: %w", err)
	}
	return nil
}

func (a *Activator) clear(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	places := map[string]struct{}{}
	for _, e := range entries {
		places[strings.TrimSuffix(e.Name(), "-type")] = struct{}{}
	}
	order := make([]string, 0, len(places))
	for name := range places {
		order = append(order, name)
	}
	slices.SortFunc(order, func(x, y string) int { return placeNumber(x) - placeNumber(y) })
	var errs []error
	for _, name := range order {
		errs = append(errs, a.undoPlace(ctx, filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// placeNumber puts what has no number last.
func placeNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	return int(^uint(0) >> 1)
}

// undoPlace undoes one mount and removes its names. It is never recursive: if
// a mount stays, what it shows is not ours to delete.
func (a *Activator) undoPlace(ctx context.Context, at string) error {
	fstype, err := os.ReadFile(at + "-type")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if h := a.handlers[string(fstype)]; h != nil {
		err = h.Unmount(ctx, at)
	} else {
		err = Unmount(at, 0)
	}
	if err != nil {
		return err
	}
	for _, path := range []string{at, at + "-type"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
