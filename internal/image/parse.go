package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what is accepted.
const (
	// MaxManifest is the largest manifest or index in bytes; the distribution
	// specification wants registries to take at least as much.
	MaxManifest = 4 << 20
	// MaxConfig is the largest image config in bytes.
	MaxConfig = 8 << 20
	// MaxReferences bounds the descriptors met in one walk of a tree, each
	// mention counted.
	MaxReferences = 10000
	// MaxDepth bounds how deep indexes may be nested.
	MaxDepth = 8
	// maxLayers bounds one manifest; overlayfs itself stops far below.
	maxLayers = 4096
)

// shape is what tells manifests and indexes apart, whatever they claim.
type shape struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

func present(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// Detect finds out what a document is. claimed is the media type that a
// descriptor or a header gave, perhaps wrong or empty; the result is the type
// to go by. errdefs.ErrInvalidArgument when the document is neither a manifest
// nor an index, when it is both, or when it contradicts its own media type or
// the claimed one.
func Detect(doc []byte, claimed string) (string, error) {
	if len(doc) > MaxManifest {
		return "", fmt.Errorf("manifest of %d bytes: at most %d are accepted: %w", len(doc), MaxManifest, errdefs.ErrInvalidArgument)
	}
	var s shape
	if err := json.Unmarshal(doc, &s); err != nil {
		return "", fmt.Errorf("manifest is not valid JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var isIndex bool
	switch m, i := present(s.Config) || present(s.Layers), present(s.Manifests); {
	case present(s.FSLayers) || s.SchemaVersion == 1:
		return "", fmt.Errorf("schema 1 manifest: the format is no longer supported, build the image again with a current tool: %w", errdefs.ErrInvalidArgument)
	case m && i:
		return "", fmt.Errorf("ambiguous manifest: it has layers or a config and also manifests: %w", errdefs.ErrInvalidArgument)
	case i:
		isIndex = true
	case m:
	default:
		// An index without manifests, or something else altogether.
		if !IsIndex(s.MediaType) && !IsIndex(claimed) {
			return "", fmt.Errorf("document is neither an image manifest nor an index: %w", errdefs.ErrInvalidArgument)
		}
		isIndex = true
	}
	for _, mt := range []string{s.MediaType, claimed} {
		if isIndex && IsManifest(mt) || !isIndex && IsIndex(mt) {
			return "", fmt.Errorf("document says it is %q, but its fields are those of %s: %w", mt, kindName(isIndex), errdefs.ErrInvalidArgument)
		}
	}
	for _, mt := range []string{s.MediaType, claimed} {
		if IsManifest(mt) || IsIndex(mt) {
			return mt, nil
		}
	}
	if isIndex {
		return ispec.MediaTypeImageIndex, nil
	}
	// Docker's configs and layers in a document without a type of its own.
	var m ispec.Manifest
	if json.Unmarshal(doc, &m) == nil && m.Config.MediaType == DockerConfig {
		return DockerManifest, nil
	}
	return ispec.MediaTypeImageManifest, nil
}

func kindName(isIndex bool) string {
	if isIndex {
		return "an index"
	}
	return "a manifest"
}

// ParseManifest reads a manifest. mediaType is that of the descriptor that led
// to it. The descriptors in it are valid. errdefs.ErrInvalidArgument otherwise.
func ParseManifest(doc []byte, mediaType string) (ispec.Manifest, error) {
	mt, err := Detect(doc, mediaType)
	if err != nil {
		return ispec.Manifest{}, err
	}
	if !IsManifest(mt) {
		return ispec.Manifest{}, fmt.Errorf("expected an image manifest, found an index (%s): %w", mt, errdefs.ErrInvalidArgument)
	}
	var m ispec.Manifest
	if err := json.Unmarshal(doc, &m); err != nil {
		return ispec.Manifest{}, fmt.Errorf("manifest is malformed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := Valid(m.Config); err != nil {
		return ispec.Manifest{}, fmt.Errorf("config of the manifest: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return ispec.Manifest{}, fmt.Errorf("manifest with %d layers: at most %d are accepted: %w", len(m.Layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	for i, l := range m.Layers {
		if err := Valid(l); err != nil {
			return ispec.Manifest{}, fmt.Errorf("layer %d of the manifest: %w", i, err)
		}
	}
	return m, nil
}

// ParseIndex reads an index; see ParseManifest.
func ParseIndex(doc []byte, mediaType string) (ispec.Index, error) {
	mt, err := Detect(doc, mediaType)
	if err != nil {
		return ispec.Index{}, err
	}
	if !IsIndex(mt) {
		return ispec.Index{}, fmt.Errorf("expected an image index, found a manifest (%s): %w", mt, errdefs.ErrInvalidArgument)
	}
	var idx ispec.Index
	if err := json.Unmarshal(doc, &idx); err != nil {
		return ispec.Index{}, fmt.Errorf("index is malformed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(idx.Manifests) > MaxReferences {
		return ispec.Index{}, fmt.Errorf("index of %d manifests: at most %d are accepted: %w", len(idx.Manifests), MaxReferences, errdefs.ErrInvalidArgument)
	}
	for i, m := range idx.Manifests {
		if err := Valid(m); err != nil {
			return ispec.Index{}, fmt.Errorf("manifest %d of the index: %w", i, err)
		}
	}
	return idx, nil
}

// Config is what is read of an image config: where it runs, what it is made of,
// and how to run it.
type Config = ispec.Image

// ParseConfig reads an image config. Its diff IDs are valid digests.
// errdefs.ErrInvalidArgument otherwise.
func ParseConfig(doc []byte) (Config, error) {
	if len(doc) > MaxConfig {
		return Config{}, fmt.Errorf("image config of %d bytes: at most %d are accepted: %w", len(doc), MaxConfig, errdefs.ErrInvalidArgument)
	}
	var c Config
	if err := json.Unmarshal(doc, &c); err != nil {
		return Config{}, fmt.Errorf("image config is malformed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return Config{}, fmt.Errorf("diff ID %d of the image config %.100q: %w: %w", i, string(d), err, errdefs.ErrInvalidArgument)
		}
	}
	return c, nil
}

// Valid checks that a descriptor can be fetched: its digest is well-formed and
// of a known algorithm, its size is not negative.
func Valid(desc ispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("descriptor with digest %.100q: %w: %w", string(desc.Digest), err, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 || desc.Size > math.MaxInt64/2 {
		return fmt.Errorf("descriptor %s with size %d: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ChainIDs turns diff IDs, lowest layer first, into the names of the snapshots
// of the layers stacked so far (image-spec, config.md, "Layer ChainID").
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	chain := make([]digest.Digest, len(diffIDs))
	for i, d := range diffIDs {
		if i == 0 {
			chain[0] = d
			continue
		}
		chain[i] = digest.FromString(chain[i-1].String() + " " + d.String())
	}
	return chain
}
