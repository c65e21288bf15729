// Package archive turns layers into files and files into layers: tar archives
// in the OCI layer format (image-spec, layer.md), compressed or not.
//
// It owns the reading of hostile archives. Invariants: nothing outside the root
// is touched, whatever the archive or the tree holds; memory is bounded by the
// limits in header.go, not by what an archive claims; every error says which
// entry it was.
//
// Unpacking is a hot path. Its cost is the kernel's: about five system calls
// per file, none that walks a path of more than one component, data written
// straight from the buffer it was decompressed into.
package archive
