package image

import (
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the Docker dialect (Image Manifest Version 2, Schema 2).
const (
	DockerManifest         = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex            = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig           = "application/vnd.docker.container.image.v1+json"
	DockerLayer            = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd        = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	DockerForeignLayer     = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	DockerForeignLayerGzip = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	// DockerSchema1 and DockerSchema1Unsigned are refused.
	DockerSchema1         = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	DockerSchema1Unsigned = "application/vnd.docker.distribution.manifest.v1+json"

	checkpoint       = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
	checkpointConfig = "application/vnd.containerd.container.checkpoint.config.v1+proto"
	erofsLayer       = "application/vnd.erofs.layer.v1"
	inToto           = "application/vnd.in-toto+json"
)

// Annotations that name images in the index of an archive.
const (
	// AnnotationName holds the full name of an image.
	AnnotationName = "io.containerd.image.name"
	// AnnotationSubject marks a descriptor that refers to another manifest; it
	// is not an image of its own.
	AnnotationSubject = "io.containerd.manifest.subject"
)

// IsManifest tells whether it is the media type of an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsIndex tells whether it is the media type of an image index.
func IsIndex(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageIndex || mediaType == DockerIndex
}

// IsConfig tells whether it is the media type of an image config.
func IsConfig(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageConfig || mediaType == DockerConfig
}

// IsLayer tells whether it is the media type of a layer, whatever its
// compression or encryption.
func IsLayer(mediaType string) bool {
	if strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.") {
		return true
	}
	base, _, _ := strings.Cut(mediaType, "+")
	switch base {
	case DockerLayer, DockerLayerGzip, DockerLayerZstd, DockerForeignLayer, DockerForeignLayerGzip, erofsLayer:
		return true
	}
	return false
}

// IsNonDistributable tells whether layers of that type are not to be pushed.
func IsNonDistributable(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.")
}

func isKnownConfig(mediaType string) bool {
	return IsConfig(mediaType) || mediaType == checkpoint || mediaType == checkpointConfig
}

// RefKey is the reference under which a descriptor's content is ingested, and
// its name in progress reports.
//
// Compat: clients find their downloads in the list of ingests by these names.
func RefKey(desc ispec.Descriptor) string {
	key := desc.Digest.String()
	if name := desc.Annotations[ispec.AnnotationRefName]; name != "" && len(name) < 256 {
		key = name + "@" + key
	}
	switch mt := desc.MediaType; {
	case IsManifest(mt):
		return "manifest-" + key
	case IsIndex(mt):
		return "index-" + key
	case IsLayer(mt):
		return "layer-" + key
	case isKnownConfig(mt):
		return "config-" + key
	case mt == inToto:
		return "attestation-" + key
	default:
		return "unknown-" + key
	}
}

// ociTypes are the counterparts of Docker's media types.
func ociTypes() map[string]string {
	return map[string]string{
		DockerManifest: ispec.MediaTypeImageManifest, DockerIndex: ispec.MediaTypeImageIndex, DockerConfig: ispec.MediaTypeImageConfig,
		DockerLayer: ispec.MediaTypeImageLayer, DockerLayerGzip: ispec.MediaTypeImageLayerGzip, DockerLayerZstd: ispec.MediaTypeImageLayerZstd,
		DockerForeignLayer: nonDistributable, DockerForeignLayerGzip: nonDistributable + "+gzip",
	}
}

const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// OCIMediaType is the OCI counterpart of a media type of Docker's; others are
// returned as they are.
func OCIMediaType(mediaType string) string {
	if mt, ok := ociTypes()[mediaType]; ok {
		return mt
	}
	return mediaType
}

// Recompressed is the media type of a tar layer in another compression: "",
// "gzip" or "zstd". Other media types, and tar layers that are encrypted, are
// returned as they are.
func Recompressed(mediaType, compression string) string {
	for _, family := range []struct{ plain, sep string }{
		{ispec.MediaTypeImageLayer, "+"}, {nonDistributable, "+"}, {DockerLayer, "."}, {DockerForeignLayer, "."},
	} {
		switch strings.TrimPrefix(mediaType, family.plain) {
		case "", family.sep + "gzip", family.sep + "zstd":
			if compression == "" {
				return family.plain
			}
			return family.plain + family.sep + compression
		}
	}
	return mediaType
}
