package meta

import (
	"context"
	"fmt"

	"berth/internal/events"
	"berth/internal/filter"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Images keeps image records.
type Images struct{ scope Scope }

func imageKind() *kind[object.Image] {
	return &kind[object.Image]{name: "image", path: []string{keyImages}, read: readImage, fields: imageFields}
}

// Get returns an image; errdefs.ErrNotFound.
func (i Images) Get(ctx context.Context, name string) (object.Image, error) {
	return imageKind().get(ctx, i.scope, name)
}

// List returns the images that match any of the filters; fields: name,
// target.digest, target.mediatype, labels.<key>, annotations.<key>.
func (i Images) List(ctx context.Context, filters ...string) ([]object.Image, error) {
	return imageKind().list(ctx, i.scope, filters)
}

// Create records an image. The times of img are not used.
// errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument.
func (i Images) Create(ctx context.Context, img object.Image) (object.Image, error) {
	if err := i.check(&img); err != nil {
		return object.Image{}, err
	}
	img.Labels = withoutEmpty(img.Labels)
	img.Target.Annotations = withoutEmpty(img.Target.Annotations)
	if err := i.scope.db.update(ctx, func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, i.scope.namespace, keyImages)
		if err != nil {
			return err
		}
		b, err := create(all, "image", img.Name)
		if err != nil {
			return err
		}
		img.CreatedAt = i.scope.db.now()
		img.UpdatedAt = img.CreatedAt
		return i.put(tx, b, img)
	}); err != nil {
		return object.Image{}, err
	}
	i.scope.publish(ctx, events.ImageCreate(img))
	return img, nil
}

// Update changes the field paths ("labels", "labels.<key>", "target",
// "annotations", "annotations.<key>"); none means everything that may change.
func (i Images) Update(ctx context.Context, img object.Image, fieldpaths ...string) (updated object.Image, err error) {
	if err := checkName("image name", img.Name); err != nil {
		return updated, err
	}
	if len(fieldpaths) == 0 {
		fieldpaths = []string{keyLabels, keyTarget}
	}
	moved := false // away from what only it may have kept
	if err := i.scope.db.update(ctx, func(tx *bolt.Tx) error {
		if updated, err = imageKind().in(tx, i.scope, img.Name); err != nil {
			return err
		}
		before := updated.Target.Digest
		if err := (fieldMask{"image " + img.Name, fieldpaths}).apply(func(field string, e entry) bool {
			switch {
			case field == keyLabels:
				updated.Labels = mergeLabels(updated.Labels, img.Labels, e)
			case field == keyTarget && !e.one:
				updated.Target = img.Target
				updated.Target.Annotations = withoutEmpty(img.Target.Annotations)
			case field == keyAnnotations:
				updated.Target.Annotations = mergeLabels(updated.Target.Annotations, img.Target.Annotations, e)
			default:
				return false
			}
			return true
		}); err != nil {
			return err
		}
		if err := i.check(&updated); err != nil {
			return err
		}
		moved = updated.Target.Digest != before
		updated.UpdatedAt = i.scope.db.now()
		return i.put(tx, inNamespace(tx, i.scope.namespace, keyImages, img.Name), updated)
	}); err != nil {
		return object.Image{}, err
	}
	if moved {
		i.scope.db.sched.mutated(true)
	}
	i.scope.publish(ctx, events.ImageUpdate(updated))
	return updated, nil
}

// ImageDelete refines Images.Delete.
type ImageDelete struct {
	// Sync runs a collection before it returns.
	Sync bool
	// Target, when set, must be the digest of the image's target;
	// errdefs.ErrNotFound otherwise.
	Target string
}

// Delete removes an image record; what only it referred to is collected later.
// errdefs.ErrNotFound.
func (i Images) Delete(ctx context.Context, name string, opts ImageDelete) error {
	if err := i.scope.db.updateAndCollect(ctx, opts.Sync, func(tx *bolt.Tx) error {
		all := inNamespace(tx, i.scope.namespace, keyImages)
		if opts.Target != "" {
			img, err := imageKind().in(tx, i.scope, name)
			if err != nil {
				return err
			}
			if img.Target.Digest.String() != opts.Target {
				return fmt.Errorf("image %q has the target %s, not %s: %w", name, img.Target.Digest, opts.Target, errdefs.ErrNotFound)
			}
		}
		if err := remove(all, "image", name); err != nil {
			return err
		}
		return i.scope.release(tx, keyImages, name)
	}); err != nil {
		return err
	}
	i.scope.publish(ctx, events.ImageDelete(name))
	if opts.Sync {
		return i.scope.db.collectNow(ctx)
	}
	return nil
}

func (i Images) check(img *object.Image) error {
	if err := i.scope.check(); err != nil {
		return err
	}
	if err := checkName("image name", img.Name); err != nil {
		return err
	}
	what := "image " + img.Name
	if err := checkLabels(img.Labels); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := img.Target.Digest.Validate(); err != nil {
		return invalid("%s: target digest %q: %v", what, img.Target.Digest, err)
	}
	if img.Target.Size <= 0 {
		return invalid("%s: target size is %d, it must be greater than zero", what, img.Target.Size)
	}
	if img.Target.MediaType == "" {
		return invalid("%s: target has no media type", what)
	}
	return nil
}

// put writes the record. An image that expires is held by the lease of the
// scope, one that does not needs none: it is a root.
func (i Images) put(tx *bolt.Tx, b *bolt.Bucket, img object.Image) error {
	i.scope.db.touch(node{kindImage, i.scope.namespace, img.Name})
	if expiry, ok := img.Labels[labelExpire]; ok {
		i.scope.db.expires(expiry)
		if err := i.scope.hold(tx, keyImages, img.Name); err != nil {
			return err
		}
	}
	if err := putTimes(b, img.CreatedAt, img.UpdatedAt); err != nil {
		return err
	}
	if err := putMap(b, keyLabels, img.Labels); err != nil {
		return err
	}
	if err := putMap(b, keyAnnotations, img.Target.Annotations); err != nil {
		return err
	}
	target, err := ensure(b, keyTarget)
	if err != nil {
		return err
	}
	if err := putString(target, keyDigest, img.Target.Digest.String()); err != nil {
		return err
	}
	if err := putString(target, keyMediaType, img.Target.MediaType); err != nil {
		return err
	}
	return putInt(target, keySize, img.Target.Size)
}

func readImage(name string, b *bolt.Bucket) (object.Image, error) {
	img := object.Image{Name: name, Labels: getMap(b, keyLabels)}
	target := sub(b, keyTarget)
	if target == nil {
		return img, fmt.Errorf("record has no target: %w", errdefs.ErrDataLoss)
	}
	img.Target.Digest = digest.Digest(getString(target, keyDigest))
	img.Target.MediaType = getString(target, keyMediaType)
	img.Target.Size = getInt(target, keySize)
	img.Target.Annotations = getMap(b, keyAnnotations)
	return img, getTimes(b, &img.CreatedAt, &img.UpdatedAt)
}

func imageFields(img *object.Image) filter.AdaptorFunc {
	return func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "name":
			return present(img.Name)
		case "target":
			if len(path) == 2 && path[1] == "digest" {
				return present(img.Target.Digest.String())
			}
			if len(path) == 2 && path[1] == "mediatype" {
				return present(img.Target.MediaType)
			}
		case "labels":
			return filter.Label(img.Labels, path[1:])
		case "annotations":
			return filter.Label(img.Target.Annotations, path[1:])
		}
		return "", false
	}
}
