package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"berth/internal/image"
	"berth/internal/mount"
	"berth/internal/wire"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDifferences are told of one image.
const maxDifferences = 3

// compareFiles reads the layers of an unpacked image, the uppermost first, and
// compares each file that shows through with what was unpacked.
func (st *store) compareFiles(ctx context.Context, n *storedNamespace, img storedImage, desc ispec.Descriptor) error {
	children, err := image.Children(ctx, n.s.readBlob, desc)
	if err != nil {
		return err
	}
	for _, child := range children {
		if b := st.blobs[child.Digest.String()]; !b.in(n.name) || b.bad != nil {
			return nil // nothing to compare with
		}
	}
	r, err := n.manifestOf(ctx, img, desc)
	if err != nil {
		st.add(finding{Severity: damaged, Kind: "image", Namespace: n.name, Name: img.name, Problem: err.Error(), Repair: "it came so; remove the image"})
		return nil
	}
	chain := image.ChainIDs(r.config.RootFS.DiffIDs)
	if len(chain) == 0 {
		return nil
	}
	top := chain[len(chain)-1].String()
	for _, name := range slices.Sorted(maps.Keys(n.snapshots)) {
		if _, ok := n.snapshots[name][top]; !ok {
			continue
		}
		c := &comparison{layers: len(chain), covered: map[string]bool{}, different: map[string]string{}}
		err := c.run(ctx, st, n, name, top, r.manifest.Layers)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			st.add(finding{Severity: damaged, Kind: "snapshot", Namespace: n.name, Name: name + "/" + top, Problem: fmt.Sprintf("it cannot be compared with the layers of %s: %v", img.name, err)})
			continue
		}
		if len(c.different) > 0 {
			first := chain[c.lowest].String()
			f := st.add(finding{Severity: damaged, Kind: "snapshot", Namespace: n.name, Name: name + "/" + first, Problem: fmt.Sprintf("image %s: %s", img.name, c)})
			f.mend = func(ctx context.Context) (string, error) { return st.unpackAgain(n.in(ctx), n, name, first) }
		}
	}
	return nil
}

// comparison is of one image with one mounted snapshot.
type comparison struct {
	layers    int
	root      *os.Root
	covered   map[string]bool // paths that an upper layer has decided about
	hidden    []string        // directories whose lower content does not show
	different map[string]string
	lowest    int // layer with a difference
}

func (c *comparison) String() string {
	names := slices.Sorted(maps.Keys(c.different))
	var parts []string
	for _, name := range names[:min(len(names), maxDifferences)] {
		parts = append(parts, "/"+name+" "+c.different[name])
	}
	if more := len(names) - len(parts); more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, ", ")
}

func (c *comparison) run(ctx context.Context, st *store, n *storedNamespace, snapshotterName, key string, layers []ispec.Descriptor) error {
	sn := newSnapshotter(n.s, snapshotterName)
	view, err := sn.readable(ctx, key)
	if err != nil {
		return err
	}
	defer view.remove()
	return mount.WithTemp(ctx, readOnly(wire.MountsFromProto(view.mounts)), func(dir string) error {
		var err error
		if c.root, err = os.OpenRoot(dir); err != nil {
			return err
		}
		defer c.root.Close()
		c.lowest = len(layers)
		for i, layer := range slices.Backward(layers) {
			st.status.At("files of layer %s", layer.Digest)
			if err := c.layer(ctx, n.s, layer, i); err != nil {
				return err
			}
		}
		return nil
	})
}

// layer compares one layer's entries. An entry may come twice: the last counts.
func (c *comparison) layer(ctx context.Context, s *session, desc ispec.Descriptor, index int) error {
	r, err := s.openLayer(ctx, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	here, hiddenHere, problems := map[string]bool{}, []string{}, map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		switch gone, whiteout := strings.CutPrefix(base, ".wh."); {
		case name == "" || c.hides(name):
		case base == ".wh..wh..opq":
			hiddenHere = append(hiddenHere, dir)
		case whiteout && strings.HasPrefix(gone, ".wh."): // aufs's own files
		case whiteout:
			gone = path.Join(dir, gone)
			here[gone] = true
			hiddenHere = append(hiddenHere, gone)
		default:
			here[name] = true
			if h.Typeflag != tar.TypeDir {
				hiddenHere = append(hiddenHere, name)
			}
			delete(problems, name)
			if problem := c.entry(name, h, tr); problem != "" {
				problems[name] = problem
			}
		}
	}
	maps.Copy(c.covered, here)
	c.hidden = append(c.hidden, hiddenHere...)
	if len(problems) > 0 {
		maps.Copy(c.different, problems)
		c.lowest = index
	}
	return nil
}

// hides tells whether an upper layer has decided about name or a directory that
// it is in.
func (c *comparison) hides(name string) bool {
	if c.covered[name] {
		return true
	}
	return slices.ContainsFunc(c.hidden, func(dir string) bool { return dir == "" || strings.HasPrefix(name, dir+"/") })
}

// entry compares one file; "" when it is as it should be.
func (c *comparison) entry(name string, h *tar.Header, r io.Reader) string {
	fi, err := c.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "is missing"
	}
	if err != nil {
		return "cannot be read: " + err.Error()
	}
	mode, want := fi.Mode(), h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeLink:
		return "" // what it is a name of is compared under its first one
	case tar.TypeReg:
		if !mode.IsRegular() {
			return "is not a file"
		}
		if fi.Size() != h.Size {
			return fmt.Sprintf("has %d bytes, not %d", fi.Size(), h.Size)
		}
		if problem := c.content(name, r); problem != "" {
			return problem
		}
	case tar.TypeSymlink:
		if target, err := c.root.Readlink(name); err != nil || target != h.Linkname {
			return fmt.Sprintf("leads to %q, not %q", target, h.Linkname)
		}
		return ""
	case tar.TypeDir:
		if !mode.IsDir() {
			return "is not a directory"
		}
	}
	if mode.Type() == want.Type() && mode.Perm() != want.Perm() {
		return fmt.Sprintf("has the mode %o, not %o", mode.Perm(), want.Perm())
	}
	return ""
}

func (c *comparison) content(name string, want io.Reader) string {
	f, err := c.root.Open(name)
	if err != nil {
		return "cannot be opened: " + err.Error()
	}
	defer f.Close()
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(want, a)
		if n > 0 {
			if _, e := io.ReadFull(f, b[:n]); e != nil {
				return "cannot be read: " + e.Error()
			}
			if !bytes.Equal(a[:n], b[:n]) {
				return fmt.Sprintf("differs after byte %d", at)
			}
		}
		at += int64(n)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return ""
		case err != nil:
			return "cannot be compared: " + err.Error()
		}
	}
}
