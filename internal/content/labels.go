package content

import (
	"context"
	"maps"
	"slices"

	"berth/internal/object"

	"github.com/opencontainers/go-digest"
)

// AddLabels sets labels of a blob, and writes nothing when it has them all; its
// others stay. errdefs.ErrNotFound without the blob.
func AddLabels(ctx context.Context, store Store, d digest.Digest, labels map[string]string) error {
	info, err := store.Info(ctx, d)
	if err != nil {
		return err
	}
	var paths []string
	for k, v := range labels {
		if info.Labels[k] != v {
			paths = append(paths, "labels."+k)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	slices.Sort(paths)
	_, err = store.Update(ctx, object.BlobInfo{Digest: d, Labels: maps.Clone(labels)}, paths...)
	return err
}
