// Package testimage builds small images for tests and the demo, from files
// that are given, as OCI layouts or docker-save archives.
package testimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // the digest package asks for it by name
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Epoch is the time of every file and image that is built here.
var Epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// Entry is one entry of a layer; Body is the content of a regular file.
type Entry struct {
	tar.Header
	Body []byte
}

// File is a regular file owned by root.
func File(name string, mode int64, body []byte) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body)), ModTime: Epoch}, Body: body}
}

// Dir is a directory owned by root.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: Epoch}}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: Epoch}}
}

// Layer is an uncompressed tar of entries.
func Layer(entries ...Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("entry %s: %w", e.Name, err)
		}
		if _, err := w.Write(e.Body); err != nil {
			return nil, fmt.Errorf("entry %s: %w", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Compression of layers.
type Compression int

const (
	Gzip Compression = iota
	Zstd
	None
)

// Image is what is built.
type Image struct {
	// Names are recorded in the index as io.containerd.image.name.
	Names       []string
	Layers      [][]byte // uncompressed tars
	Compression Compression
	Config      ispec.ImageConfig
	// Platform is the host's when empty.
	Platform ispec.Platform
}

// Blob is a descriptor with its bytes.
type Blob struct {
	ispec.Descriptor
	Data []byte
}

func blob(mediaType string, data []byte) Blob {
	return Blob{ispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data}
}

func compress(layer []byte, c Compression) (Blob, error) {
	var b bytes.Buffer
	switch c {
	case Gzip:
		w := gzip.NewWriter(&b)
		if _, err := w.Write(layer); err != nil {
			return Blob{}, err
		}
		if err := w.Close(); err != nil {
			return Blob{}, err
		}
		return blob(ispec.MediaTypeImageLayerGzip, b.Bytes()), nil
	case Zstd:
		w, err := zstd.NewWriter(&b)
		if err != nil {
			return Blob{}, err
		}
		if _, err := w.Write(layer); err != nil {
			return Blob{}, err
		}
		if err := w.Close(); err != nil {
			return Blob{}, err
		}
		return blob(ispec.MediaTypeImageLayerZstd, b.Bytes()), nil
	default:
		return blob(ispec.MediaTypeImageLayer, layer), nil
	}
}

// Blobs builds the image: its layers, config and, last, manifest.
func (img Image) Blobs() ([]Blob, error) {
	platform := img.Platform
	if platform.OS == "" {
		platform = ispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	var out []Blob
	cfg := ispec.Image{Created: &Epoch, Platform: platform, Config: img.Config}
	cfg.RootFS.Type = "layers"
	m := ispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageManifest}
	for _, l := range img.Layers {
		b, err := compress(l, img.Compression)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
		m.Layers = append(m.Layers, b.Descriptor)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		cfg.History = append(cfg.History, ispec.History{Created: &Epoch, CreatedBy: "testimage"})
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	c := blob(ispec.MediaTypeImageConfig, data)
	m.Config = c.Descriptor
	if data, err = json.Marshal(m); err != nil {
		return nil, err
	}
	mb := blob(ispec.MediaTypeImageManifest, data)
	mb.Platform = &platform
	return append(out, c, mb), nil
}

// WriteOCI writes images as one OCI layout archive.
func WriteOCI(w io.Writer, images ...Image) error {
	tw := tar.NewWriter(w)
	put := func(name string, data []byte) error {
		e := File(name, 0o644, data)
		if err := tw.WriteHeader(&e.Header); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	index := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex}
	written := map[digest.Digest]bool{}
	for _, img := range images {
		blobs, err := img.Blobs()
		if err != nil {
			return err
		}
		for _, b := range blobs {
			if written[b.Digest] {
				continue
			}
			written[b.Digest] = true
			if err := put("blobs/sha256/"+b.Digest.Encoded(), b.Data); err != nil {
				return err
			}
		}
		for _, name := range img.Names {
			d := blobs[len(blobs)-1].Descriptor
			d.Annotations = map[string]string{"io.containerd.image.name": name}
			index.Manifests = append(index.Manifests, d)
		}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := put("index.json", data); err != nil {
		return err
	}
	if err := put(ispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return tw.Close()
}

// WriteDocker writes an image as docker save does.
func (img Image) WriteDocker(w io.Writer) error {
	img.Compression = None
	blobs, err := img.Blobs()
	if err != nil {
		return err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	n := len(blobs)
	cfg := blobs[n-2]
	m := entry{Config: cfg.Digest.Encoded() + ".json", RepoTags: img.Names}
	tw := tar.NewWriter(w)
	files := []Entry{File(m.Config, 0o644, cfg.Data)}
	for _, l := range blobs[:n-2] {
		name := l.Digest.Encoded() + "/layer.tar"
		files = append(files, Dir(l.Digest.Encoded(), 0o755), File(name, 0o644, l.Data))
		m.Layers = append(m.Layers, name)
	}
	data, err := json.Marshal([]entry{m})
	if err != nil {
		return err
	}
	for _, e := range append(files, File("manifest.json", 0o644, data)) {
		if err := tw.WriteHeader(&e.Header); err != nil {
			return err
		}
		if _, err := tw.Write(e.Body); err != nil {
			return err
		}
	}
	return tw.Close()
}

// Busybox is an image of a static busybox, its path given, with a shell, the
// common commands, a few users and a home.
func Busybox(name string, program []byte) (Image, error) {
	entries := []Entry{Dir("bin", 0o755), File("bin/busybox", 0o755, program)}
	for _, a := range []string{
		"sh", "true", "false", "sleep", "echo", "cat", "ls", "env", "id", "pwd", "hostname", "touch", "rm", "mkdir", "ln", "ps", "kill", "mount",
		"stat", "dd", "head", "wc", "yes", "grep", "sed", "awk", "stty", "tty", "test", "seq", "printf", "date", "ip", "nc", "wget", "readlink", "mknod", "chmod", "chown", "find", "md5sum", "sha256sum", "trap", "df", "free", "nproc", "sync", "tar",
	} {
		entries = append(entries, Symlink("bin/"+a, "busybox"))
	}
	top, err := Layer(append(entries, Dir("tmp", 0o1777), Dir("root", 0o700), Dir("proc", 0o555), Dir("dev", 0o755), Dir("sys", 0o555))...)
	if err != nil {
		return Image{}, err
	}
	etc, err := Layer(Dir("etc", 0o755),
		File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n")),
		File("etc/group", 0o644, []byte("root:x:0:\ndaemon:x:1:user\nuser:x:1000:\nextra:x:2000:user\n")),
		Dir("home", 0o755),
		Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "home/user/", Mode: 0o750, Uid: 1000, Gid: 1000, ModTime: Epoch}})
	if err != nil {
		return Image{}, err
	}
	return Image{
		Names:  []string{name},
		Layers: [][]byte{top, etc},
		Config: ispec.ImageConfig{Env: []string{"PATH=/bin", "IMAGE=busybox"}, Cmd: []string{"sh"}, WorkingDir: "/"},
	}, nil
}
