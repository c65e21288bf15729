package wire

import (
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DescriptorToProto keeps the fields that the message has: media type, digest,
// size and annotations.
func DescriptorToProto(d ispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{
		MediaType:   d.MediaType,
		Digest:      d.Digest.String(),
		Size:        d.Size,
		Annotations: d.Annotations,
	}
}

// DescriptorFromProto of nil is the zero descriptor. The digest is not checked.
func DescriptorFromProto(d *types.Descriptor) ispec.Descriptor {
	return ispec.Descriptor{
		MediaType:   d.GetMediaType(),
		Digest:      digest.Digest(d.GetDigest()),
		Size:        d.GetSize(),
		Annotations: d.GetAnnotations(),
	}
}

func PlatformToProto(p ispec.Platform) *types.Platform {
	return &types.Platform{
		OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
		Architecture: p.Architecture, Variant: p.Variant,
	}
}

func PlatformFromProto(p *types.Platform) ispec.Platform {
	return ispec.Platform{
		OS: p.GetOS(), OSVersion: p.GetOsVersion(), OSFeatures: p.GetOsFeatures(),
		Architecture: p.GetArchitecture(), Variant: p.GetVariant(),
	}
}

func PlatformsFromProto(ps []*types.Platform) []ispec.Platform {
	if len(ps) == 0 {
		return nil
	}
	out := make([]ispec.Platform, len(ps))
	for i, p := range ps {
		out[i] = PlatformFromProto(p)
	}
	return out
}
