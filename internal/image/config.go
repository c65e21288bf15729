package image

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RewriteConfig changes a config and keeps the fields that nobody here knows: the
// features of its platform unless they are nil and, where its layers have moved
// to other diff IDs, its rootfs. errdefs.ErrInvalidArgument when it is no object.
func RewriteConfig(doc []byte, rootFS ispec.RootFS, features []string, moved bool) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	err := json.Unmarshal(doc, &fields)
	set := func(in map[string]json.RawMessage, key string, v any) {
		b, e := json.Marshal(v)
		in[key], err = b, errors.Join(err, e)
	}
	if err == nil && fields == nil {
		err = errors.New("image config is null")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if features != nil {
		set(fields, "os.features", features)
	}
	if !moved {
		return fields, err
	}
	set(fields, "rootfs", rootFS)
	// Of old versions of Docker: the ID of an image that this is no longer.
	for _, key := range []string{"config", "container_config"} {
		var inner map[string]json.RawMessage
		if json.Unmarshal(fields[key], &inner) == nil && inner["Image"] != nil {
			delete(inner, "Image")
			set(fields, key, inner)
		}
	}
	return fields, err
}
