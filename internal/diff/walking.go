package diff

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/mount"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Walking applies and compares layers file by file. It is an Applier, a
// Comparer and an Unpacker. Where mounts are nothing but a directory in the end
// (a bind, an overlay with an empty upper directory), it works on that and
// mounts nothing.
type Walking struct {
	store      content.Store
	processors []Processor
}

// NewWalking makes a differ that reads blobs from and writes them to store.
// Unpack and FixImplied need none. Of processors that accept the same media
// type the first is used.
func NewWalking(store content.Store, processors ...Processor) *Walking {
	return &Walking{store: store, processors: processors}
}

// Apply is Applier.Apply.
func (w *Walking) Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts ApplyOptions) (ispec.Descriptor, error) {
	if isReadOnly(mounts) {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: the mounts are read-only: %w", desc.Digest, errdefs.ErrFailedPrecondition)
	}
	blob, err := w.store.ReaderAt(ctx, desc)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	defer blob.Close()
	un, err := w.unpack(ctx, desc.MediaType, io.NewSectionReader(blob, 0, blob.Size()), mounts, false, opts.ProcessorPayloads)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	if opts.Sync {
		if err := syncMounts(mounts); err != nil {
			return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
		}
	}
	return ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer, Digest: un.DiffID, Size: un.Size}, nil
}

// Unpack is Unpacker.Unpack.
func (w *Walking) Unpack(ctx context.Context, mediaType string, r io.Reader, mounts []object.Mount, apart bool) (Unpacked, error) {
	return w.unpack(ctx, mediaType, r, mounts, apart, nil)
}

func (w *Walking) unpack(ctx context.Context, mediaType string, r io.Reader, mounts []object.Mount, apart bool, payloads map[string]object.Any) (Unpacked, error) {
	var un Unpacked
	if len(mounts) == 0 {
		return un, fmt.Errorf("there are no mounts to unpack into: %w", errdefs.ErrInvalidArgument)
	}
	layer, err := w.Open(ctx, mediaType, r, payloads)
	if err != nil {
		return un, err
	}
	defer layer.Close()
	if isReadOnly(mounts) { // a snapshotter that had the layer already
		return un, un.verify(layer, r)
	}
	err = withPlace(ctx, mounts, apart, func(p place) error {
		applied, err := un.read(ctx, layer, p)
		if err != nil {
			return err
		}
		// Past what the decoders wanted of it.
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		un.Implied = applied.Implied
		if apart || len(p.lowers) == 0 || len(applied.Implied) == 0 {
			return nil
		}
		return withTree(ctx, p.below(), func(parents string) error {
			return archive.Inherit(p.root, parents, applied.Implied)
		})
	})
	if p, ok := layer.(*processed); ok && err != nil {
		err = p.explain(err)
	}
	return un, err
}

// isReadOnly tells whether the mounts of an active snapshot are: then its
// layer is there.
func isReadOnly(mounts []object.Mount) bool {
	return len(mounts) > 0 && slices.Contains(mounts[len(mounts)-1].Options, "ro")
}

// verify takes layer, and what it is decoded from, to the end without writing.
func (un *Unpacked) verify(layer, r io.Reader) (err error) {
	hash := sha256.New()
	if un.Size, err = io.Copy(hash, layer); err != nil {
		return err
	}
	un.DiffID = digest.NewDigest(digest.SHA256, hash)
	_, err = io.Copy(io.Discard, r)
	return err
}

// read takes layer to its end: through the archive, and past it, for the diff
// ID covers that.
func (un *Unpacked) read(ctx context.Context, layer io.Reader, p place) (archive.Applied, error) {
	hash := sha256.New()
	ahead := archive.NewAhead(layer, func(b []byte) {
		hash.Write(b)
		un.Size += int64(len(b))
	})
	defer ahead.Close()
	applied, err := archive.Apply(ctx, p.root, ahead, archive.ApplyOptions{Whiteouts: p.whiteouts})
	if err == nil {
		err = ahead.Drain()
	}
	if err != nil {
		return archive.Applied{}, err
	}
	un.DiffID = digest.NewDigest(digest.SHA256, hash)
	return applied, nil
}

// FixImplied is Unpacker.FixImplied.
func (w *Walking) FixImplied(ctx context.Context, mounts, parents []object.Mount, implied []string) error {
	if len(implied) == 0 || len(parents) == 0 {
		return nil
	}
	return withPlace(ctx, mounts, true, func(p place) error {
		return withTree(ctx, parents, func(below string) error {
			return archive.Inherit(p.root, below, implied)
		})
	})
}

// place is a directory to unpack into.
type place struct {
	root      string
	whiteouts archive.Whiteouts
	lowers    []string // of an overlay whose upper directory root is
}

// withPlace calls fn with the directory that mounts come down to, or with one
// where they are mounted.
func withPlace(ctx context.Context, mounts []object.Mount, apart bool, fn func(place) error) error {
	if p, ok := placeOf(mounts, apart); ok {
		return fn(p)
	}
	return mount.WithTemp(ctx, mounts, func(root string) error { return fn(place{root: root}) })
}

func placeOf(mounts []object.Mount, apart bool) (place, bool) {
	if len(mounts) != 1 || mounts[0].Target != "" {
		return place{}, false
	}
	switch m := mounts[0]; m.Type {
	case "bind", "rbind":
		if slices.ContainsFunc(m.Options, func(o string) bool { return o == "ro" || isMapping(o) }) {
			return place{}, false
		}
		p := place{root: m.Source}
		if apart { // only overlays are put onto parents later
			p.whiteouts = archive.Overlay
		}
		return p, true
	case "overlay":
		return overlayPlace(m.Options)
	}
	return place{}, false
}

// overlayPlace is the upper directory, if writing there is the same as writing
// through the mount: nothing was written before that a whiteout would have to
// tell from what is below, and no option asks for records that only the kernel
// can keep.
func overlayPlace(options []string) (place, bool) {
	p := place{whiteouts: archive.Overlay}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir":
			p.root = value
		case "lowerdir":
			p.lowers = strings.Split(value, ":")
		case "userxattr":
			p.whiteouts = archive.OverlayUser
		case "index", "metacopy", "redirect_dir", "nfs_export", "xino", "verity":
			if value != "off" && value != "nofollow" && key != "xino" {
				return place{}, false
			}
		case "workdir", "volatile", "fsync":
		default:
			return place{}, false
		}
		if strings.Contains(value, `\`) {
			return place{}, false
		}
	}
	return p, p.root != "" && isEmpty(p.root)
}

func isMapping(o string) bool {
	return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=")
}

func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return err == io.EOF
}

// below is what the lower directories show.
func (p place) below() []object.Mount {
	if len(p.lowers) == 1 {
		return []object.Mount{{Type: "bind", Source: p.lowers[0], Options: []string{"rbind", "ro"}}}
	}
	options := []string{"lowerdir=" + strings.Join(p.lowers, ":")}
	if p.whiteouts == archive.OverlayUser {
		options = append(options, "userxattr")
	}
	return []object.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

// withTree calls fn with a directory that shows mounts, to be read only.
func withTree(ctx context.Context, mounts []object.Mount, fn func(root string) error) error {
	if len(mounts) == 1 && mounts[0].Target == "" && (mounts[0].Type == "bind" || mounts[0].Type == "rbind") &&
		!slices.ContainsFunc(mounts[0].Options, isMapping) {
		return fn(mounts[0].Source)
	}
	return mount.WithTemp(ctx, mount.ReadOnly(mounts), fn)
}

// syncMounts returns when what was written through mounts is on disk.
func syncMounts(mounts []object.Mount) error {
	for _, m := range mounts {
		dir := m.Source
		for _, o := range m.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				dir = upper
			}
		}
		f, err := os.Open(dir)
		if err != nil {
			continue // a device or a word such as tmpfs: no directory of ours
		}
		err = unix.Syncfs(int(f.Fd()))
		f.Close()
		if err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}
