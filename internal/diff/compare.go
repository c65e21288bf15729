package diff

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labelUncompressed on a compressed layer is its diff ID.
const labelUncompressed = "containerd.io/uncompressed"

// Compare is Comparer.Compare.
func (w *Walking) Compare(ctx context.Context, lower, upper []object.Mount, opts CompareOptions) (ispec.Descriptor, error) {
	mediaType := opts.MediaType
	if mediaType == "" {
		mediaType = ispec.MediaTypeImageLayerGzip
	}
	format, err := formatOf(mediaType)
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("compare: %w", err)
	}
	ref := opts.Ref
	if ref == "" {
		ref = "diff-" + rand.Text()
	}
	out, err := w.store.Writer(ctx, content.WriteOptions{Ref: ref})
	if err != nil {
		return ispec.Descriptor{}, fmt.Errorf("compare: %w", err)
	}
	desc, err := w.compareTo(ctx, out, lower, upper, format, opts)
	if err != nil {
		err = errors.Join(err, out.Close())
		if opts.Ref == "" { // nobody can resume it
			err = errors.Join(err, w.abort(ctx, ref))
		}
		return ispec.Descriptor{}, fmt.Errorf("compare: %w", err)
	}
	desc.MediaType = mediaType
	return desc, nil
}

func (w *Walking) abort(ctx context.Context, ref string) error {
	err := w.store.Abort(context.WithoutCancel(ctx), ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (w *Walking) compareTo(ctx context.Context, out content.Writer, lower, upper []object.Mount, f format, opts CompareOptions) (ispec.Descriptor, error) {
	if err := out.Truncate(0); err != nil { // what an earlier attempt wrote
		return ispec.Descriptor{}, err
	}
	count := &counter{w: out}
	z, err := archive.Compress(count, f.compression)
	if err != nil {
		return ispec.Descriptor{}, err
	}
	hash := sha256.New()
	if err := writeLayer(ctx, io.MultiWriter(z, hash), lower, upper, opts.SourceDateEpoch); err != nil {
		return ispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ispec.Descriptor{}, err
	}
	labels := maps.Clone(opts.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if labels[labelUncompressed] == "" {
		labels[labelUncompressed] = digest.NewDigest(digest.SHA256, hash).String()
	}
	d := out.Digest()
	err = out.Commit(ctx, count.n, d, labels)
	if errdefs.IsAlreadyExists(err) {
		err = content.AddLabels(ctx, w.store, d, labels)
	}
	return ispec.Descriptor{Digest: d, Size: count.n}, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func writeLayer(ctx context.Context, w io.Writer, lower, upper []object.Mount, epoch *int64) error {
	opts := archive.DiffOptions{SourceDateEpoch: epoch}
	if dir, whiteouts, ok := upperOver(lower, upper); ok {
		opts.Upper = whiteouts
		return archive.Diff(ctx, w, "", dir, opts)
	}
	if len(lower) == 0 {
		return withTree(ctx, upper, func(top string) error { return archive.Diff(ctx, w, "", top, opts) })
	}
	return withTree(ctx, lower, func(below string) error {
		return withTree(ctx, upper, func(top string) error { return archive.Diff(ctx, w, below, top, opts) })
	})
}

// upperOver finds the upper directory of an overlay whose lower directories are
// exactly what lower shows: then that directory is the difference, and neither
// tree need be mounted or walked.
func upperOver(lower, upper []object.Mount) (dir string, w archive.Whiteouts, ok bool) {
	if len(upper) != 1 || upper[0].Type != "overlay" || upper[0].Target != "" || len(lower) != 1 || lower[0].Target != "" {
		return "", 0, false
	}
	w = archive.Overlay
	var lowers string
	for _, o := range upper[0].Options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir":
			dir = value
		case "lowerdir":
			lowers = value
		case "userxattr":
			w = archive.OverlayUser
		case "workdir", "volatile", "fsync":
		case "index":
			if value != "off" {
				return "", 0, false
			}
		default: // ownership mappings, redirected directories, …
			return "", 0, false
		}
	}
	return dir, w, dir != "" && lowers != "" && lowers == lowersOf(lower[0]) && plainUppers()
}

// lowersOf is the lower directories of a view.
func lowersOf(m object.Mount) string {
	switch m.Type {
	case "bind", "rbind":
		if !slices.ContainsFunc(m.Options, isMapping) {
			return m.Source
		}
	case "overlay":
		lowers := ""
		for _, o := range m.Options {
			if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lowers = v
			} else if strings.HasPrefix(o, "upperdir=") || isMapping(o) {
				return ""
			}
		}
		return lowers
	}
	return ""
}

// plainUppers tells whether the kernel's defaults leave upper directories
// without redirections, whose files are elsewhere.
func plainUppers() bool {
	for _, p := range []string{"redirect_dir", "metacopy"} {
		b, err := os.ReadFile("/sys/module/overlay/parameters/" + p)
		if err == nil && strings.TrimSpace(string(b)) != "N" {
			return false
		}
	}
	return true
}
