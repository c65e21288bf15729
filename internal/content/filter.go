package content

import (
	"berth/internal/filter"
	"berth/internal/object"
)

// AdaptInfo gives filters the fields of a blob: digest, labels.<key>.
func AdaptInfo(info object.BlobInfo) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		switch path[0] {
		case "digest":
			return info.Digest.String(), true
		case "labels":
			return filter.Label(info.Labels, path[1:])
		}
		return "", false
	})
}

// AdaptStatus gives filters the fields of an ingest: ref.
func AdaptStatus(status object.IngestStatus) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		if path[0] == "ref" {
			return status.Ref, true
		}
		return "", false
	})
}
