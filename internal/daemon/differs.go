package daemon

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/diff/erofs"
	"berth/internal/grpcapi"
	"berth/internal/object"
	"berth/internal/remote"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const differPlugin = "io.containerd.differ.v1"

// openDiffer makes a differ for the blobs of a scope.
type openDiffer func(s grpcapi.Scope) diff.Differ

// openDiffers finds out which differs there are.
func (d *Daemon) openDiffers(ctx context.Context) error {
	d.differs = map[string]openDiffer{}
	c := d.cfg.Plugins.ErofsDiffer
	plugin := grpcapi.Plugin{Type: differPlugin, ID: "erofs", Platforms: append(hostPlatform(), erofsPlatform()), Requires: []string{"io.containerd.metadata.v1"}}
	d.available(plugin, func() error {
		if c.EnableDmverity {
			return fmt.Errorf("enable_dmverity: layers with dm-verity are not made: %w", errdefs.ErrNotImplemented)
		}
		if err := erofs.Check(ctx); err != nil {
			return err
		}
		d.differs["erofs"] = func(s grpcapi.Scope) diff.Differ {
			store := d.db.Scope(s.Namespace, s.Lease).Content()
			return erofs.New(store, d.walking(store), erofs.Options{MkfsOptions: c.MkfsOptions, TarIndex: c.EnableTarIndex})
		}
		return nil
	})
	d.available(grpcapi.Plugin{Type: differPlugin, ID: "walking", Platforms: hostPlatform(), Requires: []string{"io.containerd.metadata.v1"}}, func() error {
		d.differs["walking"] = func(s grpcapi.Scope) diff.Differ {
			return d.walking(d.db.Scope(s.Namespace, s.Lease).Content())
		}
		return nil
	})
	for name := range d.proxiesOf("diff", differPlugin) {
		d.proxyPlugin(name, differPlugin, func(conn *remote.Proxy) error {
			if _, ok := d.differs[name]; ok {
				return fmt.Errorf("a differ of that name is built in: %w", errdefs.ErrAlreadyExists)
			}
			d.differs[name] = func(s grpcapi.Scope) diff.Differ {
				return remote.NewDiff(remote.Scope(conn, s.Namespace, s.Lease))
			}
			return nil
		})
	}
	for _, name := range d.cfg.Plugins.Diff.Order {
		if err := d.hasDiffer(name); err != nil {
			d.log.Warn("the diff service cannot work", "error", err)
		}
	}
	return nil
}

// walking is the differ that works file by file, with the stream processors of
// the newest configuration.
func (d *Daemon) walking(store content.Store) *diff.Walking {
	configured := d.live.Load().StreamProcessors
	processors := make([]diff.Processor, 0, len(configured))
	for _, id := range slices.Sorted(maps.Keys(configured)) {
		p := configured[id]
		processors = append(processors, diff.Processor{ID: id, Accepts: p.Accepts, Returns: p.Returns, Path: p.Path, Args: p.Args, Env: p.Env})
	}
	return diff.NewWalking(store, processors...)
}

// unpacker unpacks for transfers, each layer with the stream processors that
// are configured then.
type unpacker struct {
	*diff.Walking
	d *Daemon
}

func (u unpacker) Unpack(ctx context.Context, mediaType string, r io.Reader, mounts []object.Mount, apart bool) (diff.Unpacked, error) {
	return u.d.walking(u.d.content).Unpack(ctx, mediaType, r, mounts, apart)
}

// hasDiffer checks a name of the configuration; the empty one is the walking
// differ's.
func (d *Daemon) hasDiffer(name string) error {
	if _, ok := d.differs[name]; !ok && name != "" {
		return fmt.Errorf("differ %q is not there; there are %v: %w", name, slices.Sorted(maps.Keys(d.differs)), errdefs.ErrNotFound)
	}
	return nil
}

// differ is what the diff service works with, by the order of the configuration.
func (d *Daemon) differ(s grpcapi.Scope) diff.Applier {
	var chain diff.Chain
	for _, name := range d.cfg.Plugins.Diff.Order {
		if err := d.hasDiffer(name); err != nil {
			return noDiffer{err}
		}
		chain = append(chain, d.differs[name](s))
	}
	if len(chain) == 1 {
		return chain[0]
	}
	return chain
}

// unpackApplier is what transfers unpack with instead of unpacking while they
// download: nil when no other differ is configured.
func (d *Daemon) unpackApplier(namespace, lease string) diff.Applier {
	if d.unpackDiffer == "" || d.unpackDiffer == "walking" {
		return nil
	}
	return d.differs[d.unpackDiffer](grpcapi.Scope{Namespace: namespace, Lease: lease})
}

// noDiffer says what is missing.
//
// Differs from containerd: there the whole service is. It is the differ of a configuration that names one that is not there.
type noDiffer struct{ err error }

func (n noDiffer) Apply(context.Context, ispec.Descriptor, []object.Mount, diff.ApplyOptions) (ispec.Descriptor, error) {
	return ispec.Descriptor{}, n.fail()
}

func (n noDiffer) Compare(context.Context, []object.Mount, []object.Mount, diff.CompareOptions) (ispec.Descriptor, error) {
	return ispec.Descriptor{}, n.fail()
}

func (n noDiffer) fail() error {
	return fmt.Errorf("the diff service's configuration: %v: %w", n.err, errdefs.ErrUnavailable)
}
