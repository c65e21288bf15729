package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"berth/test/testimage"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The images of the workload. One comes from an archive, the other, with a layer
// in common, from a registry.
const imported = "example.com/crash/imported:1"

var (
	archive string // file with the first
	pulled  string // reference of the second
	// registry serves the second.
	registry *httptest.Server
	// expected is what the files of each image are, by name of the image.
	expected map[string]map[string]string
)

func makeImages(dir string, busybox []byte) error {
	base, err := testimage.Busybox(imported, busybox)
	if err != nil {
		return err
	}
	// Large enough for an ingest with a name, and not to be compressed away.
	noise := make([]byte, 6<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	layer, err := testimage.Layer(testimage.Dir("data", 0o755), testimage.File("data/noise", 0o644, noise), testimage.File("etc/extra", 0o644, []byte("extra\n")))
	if err != nil {
		return err
	}
	large := base
	large.Layers = append(append([][]byte(nil), base.Layers...), layer)

	archive = filepath.Join(dir, "imported.tar")
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	if err := errors.Join(testimage.WriteOCI(f, base), f.Close()); err != nil {
		return err
	}
	blobs, err := large.Blobs()
	if err != nil {
		return err
	}
	registry = httptest.NewServer(serveBlobs(blobs))
	pulled = strings.TrimPrefix(registry.URL, "http://") + "/crash/pulled:1"

	hash := func(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
	expected = map[string]map[string]string{
		imported: {"bin/busybox": hash(busybox), "bin/sh": "-> busybox"},
		pulled:   {"bin/busybox": hash(busybox), "bin/sh": "-> busybox", "data/noise": hash(noise), "etc/extra": hash([]byte("extra\n"))},
	}
	return nil
}

// serveBlobs is the part of the distribution protocol by which an image is pulled.
func serveBlobs(blobs []testimage.Blob) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		dir, name := filepath.Split(r.URL.Path)
		for _, b := range blobs {
			manifest := b.MediaType == ispec.MediaTypeImageManifest
			if manifest != strings.HasSuffix(dir, "/manifests/") || b.Digest.String() != name && !(manifest && name == "1") {
				continue
			}
			w.Header().Set("Content-Type", b.MediaType)
			w.Header().Set("Docker-Content-Digest", b.Digest.String())
			http.ServeContent(w, r, "", testimage.Epoch, strings.NewReader(string(b.Data)))
			return
		}
		http.NotFound(w, r)
	})
}

// walk reads every file below dir and compares with what an image holds.
func walk(dir string, want map[string]string) error {
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			got[name] = "-> " + target
			return err
		case d.Type().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			_, err = io.Copy(h, f)
			got[name] = fmt.Sprintf("%x", h.Sum(nil))
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, w := range want {
		if got[name] != w {
			return fmt.Errorf("%s is %q, not %q", name, got[name], w)
		}
	}
	if len(got) < 40 {
		return fmt.Errorf("there are only %d files", len(got))
	}
	return nil
}
