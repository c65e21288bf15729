// Package erofs is the differ that writes layers as images of the filesystem
// erofs, straight into the snapshots of the erofs snapshotter: it unpacks no
// files. Mounts of other snapshotters are not for it.
package erofs

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options of New.
type Options struct {
	// MkfsOptions are added to those of mkfs.erofs.
	MkfsOptions []string
	// TarIndex keeps the tar archive as it is and makes an index of it.
	TarIndex bool
}

// Differ is a diff.Differ. It compares as the walking differ does.
type Differ struct {
	*diff.Walking
	store content.Store
	opts  Options
}

// Check reports, as errdefs.ErrNotImplemented, that this host cannot make
// images of tar archives.
func Check(ctx context.Context) error {
	help, err := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.erofs does not run: %w: %w", err, errdefs.ErrNotImplemented)
	}
	if !bytes.Contains(help, []byte("--tar=")) {
		return fmt.Errorf("mkfs.erofs has no option --tar (it needs version 1.7): %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// New makes a differ that reads blobs from store; walking opens layers, through
// stream processors perhaps.
func New(store content.Store, walking *diff.Walking, opts Options) *Differ {
	// The same images, whatever the size of a page here.
	if !slices.ContainsFunc(opts.MkfsOptions, func(o string) bool { return strings.HasPrefix(o, "-b") }) {
		opts.MkfsOptions = append([]string{"-b4096"}, opts.MkfsOptions...)
	}
	return &Differ{walking, store, opts}
}

// mediaTypePrefix is of layers that are such images already.
const mediaTypePrefix = "application/vnd.erofs.layer"

// Apply is diff.Applier. errdefs.ErrNotImplemented for mounts that are not of
// the erofs snapshotter; errdefs.ErrFailedPrecondition for what is read-only.
func (d *Differ) Apply(ctx context.Context, desc ispec.Descriptor, mounts []object.Mount, opts diff.ApplyOptions) (ispec.Descriptor, error) {
	dir, err := layerDir(mounts)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	blob, err := d.store.ReaderAt(ctx, desc)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	defer blob.Close()
	out, err := d.write(ctx, desc, io.NewSectionReader(blob, 0, blob.Size()), filepath.Join(dir, "layer.erofs"), opts)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	return out, nil
}

// write makes the image under another name until it is whole.
func (d *Differ) write(ctx context.Context, desc ispec.Descriptor, blob io.Reader, image string, opts diff.ApplyOptions) (out ispec.Descriptor, err error) {
	native := strings.HasPrefix(desc.MediaType, mediaTypePrefix)
	mediaType := desc.MediaType
	out.MediaType = ispec.MediaTypeImageLayer
	if native {
		base, suffix, _ := strings.Cut(desc.MediaType, "+")
		switch suffix {
		case "":
			mediaType = ispec.MediaTypeImageLayer
		case "zstd":
			mediaType = ispec.MediaTypeImageLayerZstd
		default:
			return out, fmt.Errorf("media type %q: only zstd compresses such layers: %w", desc.MediaType, errdefs.ErrNotImplemented)
		}
		out.MediaType = base
	}
	layer, err := d.Open(ctx, mediaType, blob, opts.ProcessorPayloads)
	if err != nil {
		return out, err
	}
	defer layer.Close()
	hash := sha256.New()
	r := &counter{r: io.TeeReader(layer, hash)}
	draft := image + ".draft"
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(draft))
		}
	}()
	if err := os.RemoveAll(draft); err != nil {
		return out, err
	}
	if native {
		err = copyTo(draft, os.O_CREATE|os.O_EXCL, r)
	} else {
		err = d.makeImage(ctx, desc.Digest, r, draft)
	}
	if err != nil {
		return out, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows the archive counts
		return out, err
	}
	if opts.Sync {
		if err := syncFile(draft); err != nil {
			return out, err
		}
	}
	out.Digest, out.Size = digest.NewDigest(digest.SHA256, hash), r.n
	return out, os.Rename(draft, image)
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func copyTo(path string, flags int, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeImage makes an image of a tar archive; the UUID depends on the blob alone.
func (d *Differ) makeImage(ctx context.Context, blob digest.Digest, r io.Reader, image string) error {
	if !d.opts.TarIndex {
		return d.mkfs(ctx, r, "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-U", uuid(blob), image)
	}
	archive, err := os.CreateTemp(filepath.Dir(image), ".tar-")
	if err != nil {
		return err
	}
	defer os.Remove(archive.Name())
	defer archive.Close()
	r = io.TeeReader(r, archive)
	if err := d.mkfs(ctx, r, "--tar=i", "--aufs", "--quiet", "-U", uuid(blob), image); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return copyTo(image, os.O_APPEND, archive)
}

func (d *Differ) mkfs(ctx context.Context, r io.Reader, args ...string) error {
	last := len(args) - 1
	cmd := exec.CommandContext(ctx, "mkfs.erofs", slices.Concat(args[:last], d.opts.MkfsOptions, args[last:])...)
	cmd.Stdin = r
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// uuid is version 5 in the namespace of URLs (RFC 9562, section 5.5).
func uuid(blob digest.Digest) string {
	space := []byte("\x6b\xa7\xb8\x11\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8")
	sum := sha1.Sum(append(space, "erofs:blobs/"+blob...))
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// layerDir is the directory of the active snapshot that mounts are of.
func layerDir(mounts []object.Mount) (string, error) {
	notOurs := fmt.Errorf("the mounts are not of the erofs snapshotter: %w", errdefs.ErrNotImplemented)
	if len(mounts) == 0 {
		return "", notOurs
	}
	last, dir := mounts[len(mounts)-1], ""
	switch base := path.Base(last.Type); {
	case strings.HasPrefix(mounts[0].Type, "mkfs/"):
		dir = filepath.Dir(mounts[0].Source)
	case base == "bind" || base == "erofs":
		dir = filepath.Dir(last.Source)
	case base == "overlay":
		for _, o := range last.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
				dir = filepath.Dir(upper)
			}
		}
	}
	if dir == "" || !filepath.IsAbs(dir) {
		return "", notOurs
	}
	if _, err := os.Lstat(filepath.Join(dir, ".erofslayer")); err != nil {
		return "", notOurs
	}
	if slices.Contains(last.Options, "ro") {
		return "", fmt.Errorf("the snapshot is read-only, its layer is there: %w", errdefs.ErrFailedPrecondition)
	}
	return dir, nil
}
