package image

import (
	"slices"
	"strconv"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Labels on content.
const (
	// LabelUncompressed on a compressed layer is the digest of its tar.
	LabelUncompressed = "containerd.io/uncompressed"
	// labelSource, with "." and a host appended, lists the repositories there
	// that hold a blob, separated by commas and sorted.
	labelSource = "containerd.io/distribution.source"
	// labelSnapshot, with a snapshotter's name appended, on a config is the
	// chain ID of its layers.
	labelSnapshot = "containerd.io/gc.ref.snapshot."

	// maxLabel is how long a label's key and value may be together.
	maxLabel = 4096
)

// ChildLabels are the labels that make the collector keep the children of a
// document as long as the document itself. The key tells what a child is:
// config, m.0, m.1 … for manifests, l.0, l.1 … for layers, 0, 1 … for the rest.
func ChildLabels(children []ispec.Descriptor) map[string]string {
	labels := make(map[string]string, len(children))
	counts := map[string]int{}
	for _, c := range children {
		key, numbered := childKey(c)
		if n := counts[key]; numbered || n > 0 {
			labels[key+strconv.Itoa(n)] = c.Digest.String()
		} else {
			labels[key] = c.Digest.String()
		}
		counts[key]++
	}
	return labels
}

func childKey(c ispec.Descriptor) (key string, numbered bool) {
	const ref = "containerd.io/gc.ref.content."
	if _, ok := c.Annotations[AnnotationSubject]; ok && len(c.Digest.Encoded()) >= 12 {
		return ref + "referrer.sha256." + c.Digest.Encoded()[:12], false
	}
	switch {
	case isKnownConfig(c.MediaType):
		return ref + "config", false
	case IsManifest(c.MediaType):
		return ref + "m.", true
	case IsLayer(c.MediaType):
		return ref + "l.", true
	}
	return ref, true
}

// SnapshotLabel is the key of the label that ties a chain of snapshots to the
// config that it was unpacked for.
func SnapshotLabel(snapshotter string) string { return labelSnapshot + snapshotter }

// SourceLabel is the label that says that the repository at host (without its
// port) holds a blob; existing is the value that the blob has already. ok is
// false when nothing needs to be written: the repository is listed, or the
// label would become too long.
func SourceLabel(host, repository, existing string) (key, value string, ok bool) {
	key = labelSource + "." + host
	var repos []string
	if existing != "" {
		repos = strings.Split(existing, ",")
	}
	at, found := slices.BinarySearch(repos, repository)
	if found {
		return key, existing, false
	}
	value = strings.Join(slices.Insert(repos, at, repository), ",")
	return key, value, len(key)+len(value) <= maxLabel
}

// SourceLabels returns those of the labels that say where a blob came from.
func SourceLabels(labels map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if strings.HasPrefix(k, labelSource+".") {
			out[k] = v
		}
	}
	return out
}

// MountCandidate chooses, among the repositories at host that the labels name,
// the one from which a registry most likely lets a blob be mounted into
// repository: the one that shares the longest path. Empty when there is none.
func MountCandidate(host, repository string, labels map[string]string) string {
	best, most := "", -1
	want := strings.Split(repository, "/")
	for repo := range strings.SplitSeq(labels[labelSource+"."+host], ",") {
		if repo == "" || repo == repository {
			continue
		}
		n := 0
		for i, c := range strings.Split(repo, "/") {
			if i >= len(want) || want[i] != c {
				break
			}
			n++
		}
		if n >= most {
			best, most = repo, n
		}
	}
	return best
}
