package diff

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/internal/archive"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociLayer           = "application/vnd.oci.image.layer.v1.tar"
	ociForeignLayer    = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// format is how the bytes of a media type become a tar archive.
type format struct {
	compression archive.Compression
	// detect says to look at the bytes: Docker's types never were strict about
	// the compression, and gzip and zstd are mixed up in the wild.
	detect bool
}

// formatOf knows the layers of OCI and Docker. errdefs.ErrNotImplemented for
// all else: that is for a stream processor.
func formatOf(mediaType string) (format, error) {
	base, suffix, _ := strings.Cut(mediaType, "+")
	docker := false
	if b, ok := strings.CutSuffix(base, ".gzip"); ok && suffix == "" {
		base, suffix = b, "gzip"
	} else if b, ok := strings.CutSuffix(base, ".zstd"); ok && suffix == "" {
		base, suffix = b, "zstd"
	}
	switch base {
	case dockerLayer, dockerForeignLayer:
		docker = true
	case ociLayer, ociForeignLayer:
	default:
		return format{}, unknownType(mediaType)
	}
	switch c := archive.Compression(suffix); c {
	case archive.Uncompressed:
		return format{c, docker}, nil
	case archive.Gzip, archive.Zstd:
		return format{c, true}, nil
	}
	return format{}, unknownType(mediaType)
}

func unknownType(mediaType string) error {
	known := []string{ispec.MediaTypeImageLayer, ispec.MediaTypeImageLayerGzip, ispec.MediaTypeImageLayerZstd, dockerLayer + ".gzip"}
	slices.Sort(known)
	return fmt.Errorf("layer media type %q: no stream processor makes a tar archive of it (built in: %s): %w",
		mediaType, strings.Join(known, ", "), errdefs.ErrNotImplemented)
}

// open returns the tar archive in r.
func (f format) open(r io.Reader) (io.ReadCloser, error) {
	if !f.detect {
		return io.NopCloser(r), nil
	}
	z, _, err := archive.Decompress(r)
	return z, err
}
