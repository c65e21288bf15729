package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth/cmd/ctr/output"
	"berth/internal/archive"
	"berth/internal/image"
	"berth/internal/remote"
	"berth/internal/transfer"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

// erofsMediaType is that of a layer which is an EROFS image.
const erofsMediaType = "application/vnd.erofs.layer.v1"

// erofsImages makes EROFS images of layers with mkfs.erofs (erofs-utils).
type erofsImages struct {
	compressors string
	options     []string
}

// make writes the image of a tar to a file. It depends on the tar alone: its
// UUID comes of the diff ID.
//
// Compat: arguments and UUID are containerd's, whose snapshotter finds images in
// a cache by them.
func (e erofsImages) make(ctx context.Context, tar io.Reader, diffID digest.Digest, file string) error {
	args := []string{"--tar=f", "--aufs", "--quiet", "-Enoinline_data"}
	extra := e.options
	if e.compressors != "" {
		extra = append([]string{"-z" + e.compressors, "-C", "65536"}, extra...)
	}
	blockSize := false
	for _, o := range extra {
		blockSize = blockSize || strings.HasPrefix(o, "-b")
	}
	if !blockSize {
		args = append(args, "-b4096") // mounts on any page size
	}
	args = append(args, extra...)
	id := uuid.NewHash(sha1.New(), uuid.NameSpaceURL, []byte("erofs:blobs/"+diffID.String()), 5)
	args = append(args, "-U", id.String(), file)
	if reads, err := mkfsReadsTar(ctx); err != nil {
		return err
	} else if !reads {
		return e.makeOfTree(ctx, tar, id.String(), file)
	}
	return mkfsErofs(ctx, tar, filepath.Dir(file), args...)
}

// makeOfTree is make for the mkfs.erofs before 1.6, which reads no tar: it is
// given the files. Whiteouts become overlay's, as --aufs makes them.
func (e erofsImages) makeOfTree(ctx context.Context, tar io.Reader, id, file string) error {
	root := filepath.Join(filepath.Dir(file), "tree")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if _, err := archive.Apply(ctx, root, tar, archive.ApplyOptions{Whiteouts: archive.Overlay}); err != nil {
		return err
	}
	args := []string{"--quiet", "-Enoinline_data"}
	if e.compressors != "" {
		args = append(args, "-z"+e.compressors, "-C", "65536")
	}
	return mkfsErofs(ctx, nil, filepath.Dir(file), append(append(args, e.options...), "-U", id, file, root)...)
}

func mkfsReadsTar(ctx context.Context) (bool, error) {
	help, err := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return false, fmt.Errorf("mkfs.erofs is not installed (package erofs-utils): %w", errdefs.ErrFailedPrecondition)
	}
	return bytes.Contains(help, []byte("--tar")), nil
}

func mkfsErofs(ctx context.Context, in io.Reader, tmp string, args ...string) error {
	cmd := exec.CommandContext(ctx, "mkfs.erofs", args...)
	cmd.Stdin, cmd.Env = in, append(os.Environ(), "TMPDIR="+tmp)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %.500s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// format is that of images whose layers are EROFS images, compressed or not.
func (e erofsImages) format(compress bool) *transfer.LayerFormat {
	name, mt, compression := "erofs", erofsMediaType, archive.Uncompressed
	if compress {
		name, mt, compression = "erofs-zstd", mt+"+zstd", archive.Zstd
	}
	return &transfer.LayerFormat{
		Name: name, OSFeature: "erofs",
		MediaType: func(from string) string {
			if strings.HasPrefix(from, erofsMediaType) || image.IsNonDistributable(from) {
				return from
			}
			return mt
		},
		Write: func(ctx context.Context, tar io.Reader, diffID digest.Digest, w io.Writer) (_ digest.Digest, err error) {
			dir, err := os.MkdirTemp("", "erofs-")
			if err != nil {
				return "", err
			}
			defer os.RemoveAll(dir)
			file := filepath.Join(dir, "layer.erofs")
			if err := e.make(ctx, tar, diffID, file); err != nil {
				return "", err
			}
			f, err := os.Open(file)
			if err != nil {
				return "", err
			}
			defer f.Close()
			z, err := archive.Compress(w, compression)
			if err != nil {
				return "", err
			}
			seen := digest.Canonical.Digester()
			_, err = io.Copy(io.MultiWriter(z, seen.Hash()), f)
			return seen.Digest(), errors.Join(err, z.Close())
		},
	}
}

func buildErofsCacheCommand() *cli.Command {
	return &cli.Command{
		Name: "build-erofs-cache", Usage: "Build an erofs layer content cache from an image's layers", ArgsUsage: "[flags] <image_ref> <cache_dir>",
		Description: "Makes an EROFS image of each layer of an image in the store, for the erofs snapshotter's\n" +
			"layer_content_caches: <cache_dir>/<algorithm>/<xx>/<hex of the diff ID>.erofs. Needs mkfs.erofs.\n\n" +
			"Example:\n  ctr images build-erofs-cache example.com/web:1 /srv/erofs",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "compressors", Usage: "EROFS per-block compression algorithm(s), e.g. 'lz4', 'deflate', 'zstd'; empty means uncompressed"},
			&cli.StringFlag{Name: "mkfs-options", Usage: "Extra mkfs.erofs options (e.g. '-Efragments,dedupe')"},
			&cli.StringFlag{Name: "platform", Usage: "Cache layers for a specific platform (default: host platform)"},
			&cli.BoolFlag{Name: "dmverity", Usage: "Generate a dm-verity hash tree and .dmverity sidecar for each blob (Linux only)"},
		},
		Action: withSession(buildErofsCacheAction),
	}
}

func buildErofsCacheAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image reference", "the directory of the cache"); err != nil {
		return err
	}
	ref, dir := cmd.Args().Get(0), cmd.Args().Get(1)
	img, err := resolveImage(ctx, s, ref, cmd.String("platform"))
	if err != nil {
		return err
	}
	e := erofsImages{compressors: cmd.String("compressors"), options: strings.Fields(cmd.String("mkfs-options"))}
	for i, l := range img.manifest.Layers {
		if !image.IsLayer(l.MediaType) || strings.HasPrefix(l.MediaType, erofsMediaType) || image.IsNonDistributable(l.MediaType) {
			continue
		}
		err := s.cacheLayer(ctx, e, l, img.config.RootFS.DiffIDs[i], dir, cmd.Bool("dmverity"))
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("%w; fetch the image first: ctr content fetch %s", err, ref)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	output.Line("%s", dir)
	return nil
}

// cacheLayer puts the image of a layer into the cache. It is built under a name
// of its own and on disk before it gets its own: a crash leaves the former, which
// nobody reads.
func (s *session) cacheLayer(ctx context.Context, e erofsImages, l ispec.Descriptor, diffID digest.Digest, dir string, verity bool) (err error) {
	hex := diffID.Encoded()
	target := filepath.Join(dir, diffID.Algorithm().String(), hex[:2], hex+".erofs")
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	ra, err := remote.NewContent(remote.Scope(s, s.namespace, "")).ReaderAt(ctx, l)
	if err != nil {
		return err
	}
	defer ra.Close()
	tar, _, err := archive.Decompress(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		return err
	}
	defer tar.Close()
	seen := diffID.Algorithm().Digester()
	read, file := io.TeeReader(tar, seen.Hash()), filepath.Join(work, "layer.erofs")
	if err := e.make(ctx, read, diffID, file); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, read); err != nil {
		return err
	}
	if got := seen.Digest(); got != diffID {
		return fmt.Errorf("its tar has the digest %s, but the image config says %s: %w", got, diffID, errdefs.ErrFailedPrecondition)
	}
	names := []string{""}
	if verity {
		// The hash tree's description comes first: who finds the image relies on it.
		if err := addVerity(file); err != nil {
			return err
		}
		names = []string{veritySuffix, ""}
	}
	for _, suffix := range names {
		if err := publish(file+suffix, target+suffix); err != nil {
			return err
		}
	}
	return nil
}

// publish gives a file its name, readable by all, once it is on disk.
func publish(file, name string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(file, name)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
