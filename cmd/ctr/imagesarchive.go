package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"berth/internal/wire"

	"github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/platforms"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func importFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "base-name", Usage: "Base image name for added images, when provided only images with this name prefix are imported"},
		&cli.BoolFlag{Name: "digests", Usage: "Whether to create digest images (default: false)"},
		&cli.BoolFlag{Name: "skip-digest-for-named", Usage: "Skip applying --digests option to images named in the importing tar (use it in conjunction with --digests)"},
		&cli.StringFlag{Name: "index-name", Usage: "Image name to keep index as, by default index is discarded"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Imports content for all platforms, false by default"},
		&cli.StringFlag{Name: "platform", Usage: "Imports content for specific platform"},
		&cli.BoolFlag{Name: "no-unpack", Usage: "Skip unpacking the images, cannot be used with --discard-unpacked-layers, false by default"},
		&cli.BoolFlag{Name: "local", Usage: "Run import locally rather than through transfer API"},
		&cli.BoolFlag{Name: "compress-blobs", Usage: "Compress uncompressed blobs when creating manifest (Docker format only)"},
		&cli.BoolFlag{Name: "discard-unpacked-layers", Usage: "Allow the garbage collector to clean layers up from the content store after unpacking, cannot be used with --no-unpack, false by default"},
		&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
		snapshotterFlag(), labelFlag(),
	}
}

func importAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needsLocal(cmd, "discard-unpacked-layers"); err != nil {
		return err
	}
	if err := needArgs(cmd, "the archive (a file, or - for stdin)"); err != nil {
		return err
	}
	unpackFor := platforms.DefaultSpec()
	if p := cmd.String("platform"); p != "" {
		ps, err := platformArgs([]string{p})
		if err != nil {
			return err
		}
		unpackFor = ps[0]
	}
	in := os.Stdin
	if path := cmd.Args().First(); path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if cmd.Bool("local") {
		return s.importLocally(ctx, cmd, in, unpackFor)
	}
	prefix := &transfer.ImageReference{Name: cmd.String("base-name"), IsPrefix: true}
	if prefix.Name == "" {
		prefix.Name, prefix.AllowOverwrite = "import-"+time.Now().Format("2006-01-02"), true
	}
	if cmd.Bool("digests") {
		prefix.AddDigest, prefix.SkipNamedDigest = true, !cmd.Bool("skip-digest-for-named")
	}
	store := &transfer.ImageStore{
		Name: cmd.String("index-name"), Labels: labelArgs(cmd.StringSlice("label")),
		ExtraReferences: []*transfer.ImageReference{prefix},
	}
	if !cmd.Bool("all-platforms") {
		store.Platforms = platformsToProto([]ispec.Platform{unpackFor})
	}
	if !cmd.Bool("no-unpack") {
		store.Unpacks = []*transfer.UnpackConfiguration{{Platform: wire.PlatformToProto(unpackFor), Snapshotter: cmd.String("snapshotter")}}
	}
	st, err := s.openStream(ctx, "import")
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- st.sendBytes(in) }()
	if err := s.transfer(ctx, &transfer.ImageImportStream{Stream: st.id, ForceCompress: cmd.Bool("compress-blobs")}, store, os.Stdout); err != nil {
		select {
		case failed := <-sent:
			if failed != nil {
				return fmt.Errorf("%w (reading the archive: %w)", err, failed)
			}
		default:
		}
		return err
	}
	return nil
}

func exportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "skip-manifest-json", Usage: "Do not add Docker compatible manifest.json to archive"},
		&cli.BoolFlag{Name: "skip-non-distributable", Usage: "Do not add non-distributable blobs such as Windows layers to archive"},
		&cli.StringSliceFlag{Name: "platform", Usage: "Pull content from a specific platform"},
		&cli.BoolFlag{Name: "all-platforms", Usage: "Exports content from all platforms"},
		&cli.BoolFlag{Name: "local", Usage: "Run export locally rather than through transfer API"},
	}
}

func exportAction(ctx context.Context, cmd *cli.Command, s *session) (err error) {
	if err := needsLocal(cmd); err != nil {
		return err
	}
	if err := needArgs(cmd, "the archive (a file, or - for stdout)", "an image"); err != nil {
		return err
	}
	ps, err := platformArgs(cmd.StringSlice("platform"))
	if err != nil {
		return err
	}
	path, shown := cmd.Args().First(), os.Stdout
	out := os.Stdout
	if path == "-" {
		shown = os.Stderr // stdout carries the archive
	} else {
		var end func(whole bool) error
		if out, end, err = createArchive(path); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end(err == nil)) }()
	}
	if cmd.Bool("local") {
		return s.exportLocally(ctx, cmd, out, shown, ps)
	}
	st, err := s.openStream(ctx, "export")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	whole, watched, watch := archiveEnd()
	written := make(chan error, 1)
	go func() {
		err := st.receiveBytes(io.MultiWriter(out, watch))
		watch.Close()
		if err != nil { // the daemon would wait for us for ever
			cancel(fmt.Errorf("writing the archive: %w", err))
		}
		written <- err
	}()
	store := &transfer.ImageStore{}
	for _, ref := range cmd.Args().Tail() {
		store.ExtraReferences = append(store.ExtraReferences, &transfer.ImageReference{Name: ref})
	}
	if err := s.transfer(ctx, store, &transfer.ImageExportStream{
		Stream: st.id, Platforms: platformsToProto(ps), AllPlatforms: cmd.Bool("all-platforms"),
		SkipCompatibilityManifest: cmd.Bool("skip-manifest-json"), SkipNonDistributable: cmd.Bool("skip-non-distributable"),
	}, shown); err != nil {
		return interrupted(ctx, err)
	}
	select {
	case err = <-written:
	case <-whole:
		return nil
	case <-time.After(cleanupTime):
		return fmt.Errorf("the daemon has finished the export, but the end of the archive did not come within %s", cleanupTime)
	}
	if err == nil {
		<-watched // the last bytes are written before they are looked at
		select {
		case <-whole:
		default:
			return fmt.Errorf("the archive ends in the middle")
		}
	}
	return err
}

// createArchive opens a file to write to; end closes it. A regular file, new or
// old, has another name until it is whole, and is left as it was otherwise.
// Devices, pipes and what a symbolic link leads to are written to in place.
func createArchive(path string) (f *os.File, end func(whole bool) error, err error) {
	old, err := os.Lstat(path)
	if err == nil && !old.Mode().IsRegular() {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		return f, func(bool) error { return f.Close() }, err
	}
	partial := path + ".partial"
	if f, err = os.Create(partial); err != nil {
		return nil, nil, err
	}
	if old != nil {
		f.Chmod(old.Mode().Perm())
	}
	return f, func(whole bool) error {
		err := f.Close()
		if whole && err == nil {
			err = os.Rename(partial, path)
		}
		if !whole || err != nil {
			os.Remove(partial)
		}
		return err
	}, nil
}

// archiveEnd watches a tar archive that is written to w: whole is closed when its
// end mark has passed, watched when w is closed and all of it has been looked at.
//
// Compat: containerd's daemon does not end the stream of an export; the end of
// the archive is the only sign that all of it is here.
func archiveEnd() (whole, watched <-chan struct{}, w io.WriteCloser) {
	r, pipe := io.Pipe()
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		archive := tar.NewReader(r)
		for {
			_, err := archive.Next()
			if err == io.EOF {
				close(end)
			}
			if err != nil {
				break
			}
		}
		io.Copy(io.Discard, r)
	}()
	return end, done, pipe
}
