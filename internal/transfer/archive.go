package transfer

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"berth/internal/archive"
	"berth/internal/content"
	"berth/internal/image"
	"berth/internal/transfer/report"
	"berth/internal/transfer/ring"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Bounds of archives.
const (
	maxArchiveEntries = 100_000
	maxLinkHops       = 16
	maxArchiveName    = 4096 // bytes: the names of all entries are remembered
)

// archiveImage is an element of the manifest.json of docker save.
type archiveImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// archiveContents is what was found in an archive. Its files are blobs now.
type archiveContents struct {
	layout ispec.ImageLayout
	index  []byte // index.json
	docker []archiveImage
	files  map[string]ispec.Descriptor
	links  map[string]string
}

// file finds a file by the name that manifest.json gives it, through links.
func (a *archiveContents) file(name string) (ispec.Descriptor, bool) {
	name = path.Clean(name)
	for range maxLinkHops {
		if d, ok := a.files[name]; ok {
			return d, true
		}
		next, ok := a.links[name]
		if !ok {
			break
		}
		name = next
	}
	return ispec.Descriptor{}, false
}

// readArchive reads an archive to its end, once, and stores every file in it
// as a blob; nothing is ever written under the names that the archive gives.
func (x *session) readArchive(ctx context.Context, r io.Reader) (*archiveContents, error) {
	job := x.rep.Stream(report.Archive, 0)
	plain, _, err := archive.Decompress(job.Reader(ctx, r))
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	defer plain.Close()
	a := &archiveContents{files: map[string]ispec.Descriptor{}, links: map[string]string{}}
	// Commits wait for the disk: the next file is read meanwhile.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	err = x.readEntries(gctx, tar.NewReader(plain), a, g)
	if err := first(g.Wait(), err); err != nil {
		return nil, err
	}
	job.Done("complete")
	return a, nil
}

func (x *session) readEntries(ctx context.Context, tr *tar.Reader, a *archiveContents, g *errgroup.Group) error {
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err == io.EOF {
			return fmt.Errorf("archive is empty: %w", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("archive is not a sound tar archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("archive has more than %d entries: %w", maxArchiveEntries, errdefs.ErrInvalidArgument)
		}
		if len(h.Name) > maxArchiveName || len(h.Linkname) > maxArchiveName {
			return fmt.Errorf("archive entry %.64q… has a name of more than %d bytes: %w", h.Name, maxArchiveName, errdefs.ErrInvalidArgument)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(strings.TrimLeft(h.Linkname, "/"))
		case tar.TypeReg:
			if err := x.readFile(ctx, name, h.Size, tr, a, g); err != nil {
				return fmt.Errorf("archive entry %.512q: %w", h.Name, err)
			}
		}
	}
}

func (x *session) readFile(ctx context.Context, name string, size int64, r io.Reader, a *archiveContents, g *errgroup.Group) error {
	switch name {
	case ispec.ImageLayoutFile:
		return readJSON(r, size, &a.layout)
	case "manifest.json":
		return readJSON(r, size, &a.docker)
	case "repositories", "version", "VERSION":
		return nil // of older versions of docker save; manifest.json says the same
	case ispec.ImageIndexFile:
		if size > image.MaxManifest {
			return fmt.Errorf("it is %d bytes: at most %d are accepted: %w", size, image.MaxManifest, errdefs.ErrInvalidArgument)
		}
		b, err := io.ReadAll(r)
		a.index = b
		return err
	}
	desc := ispec.Descriptor{Size: size}
	if alg, enc, ok := blobOf(name); ok {
		desc.Digest = digest.NewDigestFromEncoded(alg, enc)
		if err := desc.Digest.Validate(); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return x.ingestFile(ctx, name, desc, r, a, g)
}

// blobOf takes the digest out of "blobs/<algorithm>/<hex>".
func blobOf(name string) (digest.Algorithm, string, bool) {
	rest, ok := strings.CutPrefix(name, ispec.ImageBlobsDir+"/")
	alg, enc, ok2 := strings.Cut(rest, "/")
	return digest.Algorithm(alg), enc, ok && ok2 && !strings.Contains(enc, "/")
}

// ingestFile stores a file of the archive. One that is named by its digest must
// have it; for others it is computed.
func (x *session) ingestFile(ctx context.Context, name string, desc ispec.Descriptor, r io.Reader, a *archiveContents, g *errgroup.Group) error {
	ref := "import-" + rand.Text()
	w, err := x.stores.Content.Writer(ctx, content.WriteOptions{Ref: ref, Size: desc.Size, Expected: desc.Digest})
	if errdefs.IsAlreadyExists(err) {
		a.files[name] = desc
		_, err := io.Copy(io.Discard, r)
		return err
	}
	if err != nil {
		return err
	}
	discard := func() {
		w.Close()
		// Nobody would resume it: its name is random.
		_ = undo(ctx, func(ctx context.Context) error { return x.stores.Content.Abort(ctx, ref) })
	}
	there, err := complete(w, desc)
	if err != nil {
		discard()
		return err
	}
	to := io.Writer(w)
	if there {
		to = io.Discard
	}
	if n, err := copyTo(to, r); err != nil || n != desc.Size {
		discard()
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the archive ends after %d of %d bytes: %w", n, desc.Size, errdefs.ErrInvalidArgument)
		}
		return err
	}
	if got := w.Digest(); desc.Digest == "" {
		desc.Digest = got
	} else if got != desc.Digest {
		discard()
		return fmt.Errorf("its bytes have the digest %s: %w", got, errdefs.ErrInvalidArgument)
	}
	a.files[name] = desc
	g.Go(func() error {
		err := w.Commit(ctx, desc.Size, desc.Digest, nil)
		if err != nil && !errdefs.IsAlreadyExists(err) {
			discard()
			return fmt.Errorf("archive entry %.512q: %w", name, err)
		}
		return nil
	})
	return nil
}

func copyTo(w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, ring.Size)
	return io.CopyBuffer(struct{ io.Writer }{w}, r, buf)
}

func readJSON(r io.Reader, size int64, v any) error {
	if size > image.MaxManifest {
		return fmt.Errorf("it is %d bytes: at most %d are accepted: %w", size, image.MaxManifest, errdefs.ErrInvalidArgument)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("not what it should be: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
