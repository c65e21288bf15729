// Package image understands the documents that make up an image: manifests and
// indexes, in the OCI and the Docker schema 2 dialect, and image configs.
//
// An image is a tree of descriptors: an index names manifests (or further
// indexes), a manifest names one config and its layers. The package walks such
// trees, chooses platforms, and derives what the stores need to know: garbage
// collection labels, diff IDs and chain IDs. It holds no state and does no
// input or output of its own: whoever calls hands in a ReadFunc.
//
// Everything is hostile until checked. Documents are bounded in size
// (MaxManifest, MaxConfig), trees in depth and in the number of references
// (MaxDepth, MaxReferences), digests and sizes of descriptors are validated when
// a document is parsed, and a document that can be read both as a manifest and
// as an index is refused (CVE-2021-41190).
package image
