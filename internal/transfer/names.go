package transfer

import (
	"maps"
	"strings"
	"time"

	"berth/internal/image"
	"berth/internal/object"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// records are the image records of the whole that was transferred: under the
// target's own name, and under those extra references that need no annotation.
func (t *ImageTarget) records(target ispec.Descriptor) []object.Image {
	var out []object.Image
	if t.Name != "" {
		out = append(out, object.Image{Name: t.Name, Target: target, Labels: t.Labels})
	}
	for _, ref := range t.ExtraReferences {
		name := ref.Name
		if ref.AddDigest {
			name += "@" + target.Digest.String()
		} else if ref.IsPrefix {
			continue
		}
		out = append(out, object.Image{Name: name, Target: target, Labels: t.extraLabels()})
	}
	return out
}

// extraLabels are the labels of names beside the main one: they go when it goes.
func (t *ImageTarget) extraLabels() map[string]string {
	if t.Name == "" {
		return t.Labels
	}
	labels := maps.Clone(t.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels["containerd.io/gc.bref.image"] = t.Name
	labels["containerd.io/gc.expire"] = time.Now().Format(time.RFC3339)
	return labels
}

// apply makes a name of the annotations of a descriptor; empty when there is
// none, or one that the prefix does not allow. A full name is taken only as it
// is; a tag alone is put behind the prefix.
func (r Reference) apply(annotations map[string]string) string {
	if name := annotations[image.AnnotationName]; name != "" {
		if r.expand(name) == name {
			return name
		}
		return ""
	}
	if name := annotations[ispec.AnnotationRefName]; name != "" {
		return r.expand(name)
	}
	return ""
}

func (r Reference) expand(name string) string {
	if r.Name == "" {
		return ""
	}
	if !strings.ContainsAny(name, "/:@") {
		return r.Name + ":" + name
	}
	if r.AllowOverwrite {
		return name
	}
	rest, ok := strings.CutPrefix(name, r.Name)
	if !ok || rest != "" && !strings.ContainsAny(rest[:1], "/:@") {
		return ""
	}
	return name
}
