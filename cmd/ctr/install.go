package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"berth/cmd/ctr/output"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func installCommand() *cli.Command {
	return &cli.Command{
		Name: "install", Usage: "Install a new package", ArgsUsage: "<ref>",
		Description: "Copies the programs in /bin of an image, and with --libs the libraries in /lib, to the directory that the daemon has on its PATH.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "libs", Aliases: []string{"l"}, Usage: "Install libs from the image"},
			&cli.BoolFlag{Name: "replace", Aliases: []string{"r"}, Usage: "Replace any binaries or libs in the opt directory"},
			&cli.StringFlag{Name: "path", Usage: "Set an optional install path other than the managed opt directory"},
		},
		Action: withSession(installAction),
	}
}

func installAction(ctx context.Context, cmd *cli.Command, s *session) error {
	if err := needArgs(cmd, "an image"); err != nil {
		return err
	}
	img, err := resolveImage(ctx, s, cmd.Args().First(), "")
	if err != nil {
		return err
	}
	dir := cmd.String("path")
	if dir == "" {
		if dir, err = optDir(ctx, s); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("directory to install to: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("directory to install to: %w", err)
	}
	defer root.Close()
	in := &installation{root: root, replace: cmd.Bool("replace"), dirs: []string{"bin"}}
	if cmd.Bool("libs") {
		in.dirs = append(in.dirs, "lib")
	}
	status := output.NewStatus()
	defer status.Clear()
	for i, layer := range img.manifest.Layers {
		status.At("installing layer %d of %d (%s)", i+1, len(img.manifest.Layers), output.Size(layer.Size))
		if err := in.layer(ctx, s, layer); err != nil {
			return fmt.Errorf("installing %s to %s: %w", img.name, dir, errors.Join(err, in.undo()))
		}
	}
	if len(in.made) == 0 {
		return fmt.Errorf("image %s has nothing to install in /%s", img.name, strings.Join(in.dirs, " and /"))
	}
	return nil
}

// optDir is where the daemon wants packages.
func optDir(ctx context.Context, s *session) (string, error) {
	resp, err := introspectionapi.NewIntrospectionClient(s).Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"id==opt"}})
	if err != nil {
		return "", err
	}
	for _, p := range resp.Plugins {
		if dir := p.Exports["path"]; dir != "" && p.InitErr == nil {
			return dir, nil
		}
	}
	return "", errors.New("the daemon has no directory for packages (its plugin io.containerd.internal.v1.opt is off); name one with --path")
}

// installation copies files of layers beneath a root. What it made is taken back
// when it fails; what it replaced is not.
type installation struct {
	root    *os.Root
	dirs    []string
	replace bool
	made    map[string]bool // by this installation; true when it was not there before
}

func (in *installation) layer(ctx context.Context, s *session, layer ispec.Descriptor) error {
	r, err := s.openLayer(ctx, layer)
	if err != nil {
		return err
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = in.entry(h, tr)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
}

// entry installs one file, if it is directly in one of the directories.
func (in *installation) entry(h *tar.Header, r io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	dir, base := path.Split(name)
	wanted := false
	for _, d := range in.dirs {
		wanted = wanted || dir == d+"/"
	}
	if !wanted || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink && h.Typeflag != tar.TypeLink {
		return nil
	}
	if gone, ok := strings.CutPrefix(base, ".wh."); ok {
		if gone = dir + gone; in.made[gone] { // an earlier layer of this image had it
			delete(in.made, gone)
			return in.root.Remove(gone)
		}
		return nil
	}
	_, err := in.root.Lstat(name)
	_, ours := in.made[name]
	exists := err == nil
	if exists && !ours && !in.replace {
		return fmt.Errorf("%s is there already; --replace overwrites it: %w", name, errdefs.ErrAlreadyExists)
	}
	if err := in.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// A new file under a name of its own, then renamed: a program that runs is not
	// written to, and a failure leaves the old one.
	tmp := dir + ".ctr-install-" + base
	if err := in.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := in.write(tmp, h, r); err != nil {
		in.root.Remove(tmp)
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := in.root.Rename(tmp, name); err != nil {
		in.root.Remove(tmp)
		return err
	}
	if in.made == nil {
		in.made = map[string]bool{}
	}
	if !ours {
		in.made[name] = !exists
	}
	return nil
}

func (in *installation) write(name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeSymlink:
		return in.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return in.root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	}
	f, err := in.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Chown(h.Uid, h.Gid); err != nil {
		return err
	}
	if err := f.Chmod(h.FileInfo().Mode()); err != nil {
		return err
	}
	return f.Sync()
}

// undo removes what was not there before.
func (in *installation) undo() error {
	var errs []error
	for name, isNew := range in.made {
		if isNew {
			errs = append(errs, in.root.Remove(name))
		}
	}
	return errors.Join(errs...)
}
