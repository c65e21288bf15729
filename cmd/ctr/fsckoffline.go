package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth/cmd/ctr/output"
	"berth/internal/image"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// offline checks the files below a daemon's root directory, of whose formats
// docs/formats.md tells. It opens no database, which a daemon may have locked, and
// changes nothing.
func (c *checker) offline(ctx context.Context, root string) error {
	if _, err := os.ReadDir(root); err != nil {
		return fmt.Errorf("checking without a daemon: %w", err)
	}
	content := filepath.Join(root, "io.containerd.content.v1.content")
	documents, err := c.offlineBlobs(ctx, filepath.Join(content, "blobs"))
	if err != nil {
		return err
	}
	c.offlineDocuments(filepath.Join(content, "blobs"), documents)
	c.offlineDownloads(filepath.Join(content, "ingest"))
	databases, _ := filepath.Glob(filepath.Join(root, "io.containerd.*", "*.db")) // of a constant pattern
	for _, path := range databases {
		if problem := checkDatabase(path); problem != "" {
			c.add(finding{Severity: damaged, Kind: "database", Name: path, Problem: problem, Repair: "start Berth's daemon: it restores its last backup, or builds it anew"})
		}
	}
	snapshots, _ := filepath.Glob(filepath.Join(root, "io.containerd.snapshotter.v1.*", "snapshots"))
	for _, dir := range snapshots {
		c.offlineSnapshots(dir)
	}
	return nil
}

// offlineBlobs hashes every blob and returns those that look like documents.
func (c *checker) offlineBlobs(ctx context.Context, dir string) (documents []digest.Digest, err error) {
	seen, total := 0, int64(0)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if d.IsDir() {
			return nil
		}
		rel, _ := filepath.Rel(dir, path)
		want := digest.Digest(strings.Replace(rel, "/", ":", 1))
		if want.Validate() != nil {
			c.add(finding{Severity: noted, Kind: "blob", Name: path, Problem: "its name is no digest"})
			return nil
		}
		seen++
		c.status.At("blob %d, %s", seen, output.Size(total))
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		digester := want.Algorithm().Digester()
		n, err := io.Copy(digester.Hash(), f)
		total += n
		switch {
		case err != nil:
			c.add(finding{Severity: damaged, Kind: "blob", Name: want.String(), Problem: err.Error()})
		case digester.Digest() != want:
			c.add(finding{Severity: damaged, Kind: "blob", Name: want.String(), Problem: fmt.Sprintf("its content (%d bytes) has the digest %s", n, digester.Digest()), Repair: "start the daemon, then ctr fsck --repair"})
		case n <= image.MaxManifest:
			documents = append(documents, want)
		}
		return nil
	})
	return documents, err
}

// offlineDocuments looks for what manifests refer to. Manifests of an index may be
// missing, and so may the layers of an unpacked image: they are noted.
func (c *checker) offlineDocuments(dir string, documents []digest.Digest) {
	there := func(d digest.Digest) bool {
		_, err := os.Stat(filepath.Join(dir, d.Algorithm().String(), d.Encoded()))
		return err == nil
	}
	for _, d := range documents {
		b, err := os.ReadFile(filepath.Join(dir, d.Algorithm().String(), d.Encoded()))
		if err != nil || len(b) == 0 || b[0] != '{' {
			continue
		}
		mediaType, err := image.Detect(b, "")
		if err != nil || !image.IsManifest(mediaType) {
			continue
		}
		children, err := image.ChildrenOf(b, mediaType)
		if err != nil {
			continue
		}
		for _, child := range children {
			if child.Digest.Validate() == nil && !there(child.Digest) && !image.IsNonDistributable(child.MediaType) {
				c.add(finding{Severity: noted, Kind: "image", Name: d.String(), Problem: fmt.Sprintf("its %s %s is missing", what(child), child.Digest)})
			}
		}
	}
}

func what(d ispec.Descriptor) string {
	if image.IsLayer(d.MediaType) {
		return "layer"
	}
	return "config"
}

// offlineDownloads looks whether each has the files that make it one.
func (c *checker) offlineDownloads(dir string) {
	entries, _ := os.ReadDir(dir) // there may be none
	for _, e := range entries {
		for _, name := range []string{"ref", "data"} {
			if _, err := os.Stat(filepath.Join(dir, e.Name(), name)); err != nil && isThere(filepath.Join(dir, e.Name())) {
				c.add(finding{Severity: noted, Kind: "download", Name: filepath.Join(dir, e.Name()), Problem: "its file " + name + " is missing", Repair: "the daemon removes it when it collects"})
				break
			}
		}
	}
}

// offlineSnapshots looks for directories that are half made or half removed. What
// belongs to which snapshot only the database knows.
func (c *checker) offlineSnapshots(dir string) {
	entries, _ := os.ReadDir(dir)
	overlay := strings.Contains(dir, "overlayfs")
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), "rm-") || strings.HasPrefix(e.Name(), "new-") {
			c.add(finding{Severity: noted, Kind: "directory", Name: path, Problem: "it was being made or removed when the daemon ended", Repair: "the daemon removes it when it collects"})
			continue
		}
		if _, err := os.Stat(filepath.Join(path, "fs")); overlay && err != nil && isThere(path) {
			c.add(finding{Severity: damaged, Kind: "directory", Name: path, Problem: "its directory fs is missing"})
		}
	}
}

// isThere tells whether a file is still there: a daemon that runs nevertheless may
// have removed it since it was listed.
func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// checkDatabase looks at the two meta pages of a bolt database, one of which must
// be whole (go.etcd.io/bbolt, meta.go: magic, version, page size, flags, root,
// freelist, high water mark, transaction, FNV-1a of all that).
func checkDatabase(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	if st.Size() == 0 {
		return "it is empty"
	}
	const header, length, magic = 16, 64, 0xED0CDAED
	for _, pageSize := range []int64{4096, 8192, 16384, 65536} {
		for _, page := range []int64{0, 1} {
			meta := make([]byte, length)
			if _, err := f.ReadAt(meta, page*pageSize+header); err != nil {
				continue
			}
			sum := fnv.New64a()
			sum.Write(meta[:length-8])
			if binary.NativeEndian.Uint32(meta) != magic || binary.NativeEndian.Uint64(meta[length-8:]) != sum.Sum64() {
				continue
			}
			size, pages := int64(binary.NativeEndian.Uint32(meta[8:])), binary.NativeEndian.Uint64(meta[40:])
			if size > 0 && pages > uint64(st.Size()/size) {
				return fmt.Sprintf("it has %d bytes and needs %d pages of %d: its end is missing", st.Size(), pages, size)
			}
			return ""
		}
	}
	return "neither of its meta pages is whole"
}
