package transfer

import (
	"context"
	"fmt"

	"berth/internal/object"
	"berth/internal/transfer/report"

	"github.com/containerd/errdefs"
)

// Tag records the target of an image under another name, and replaces what had
// that name.
func (s *Service) Tag(ctx context.Context, namespace, from, to string, progress ProgressFunc) (object.Image, error) {
	if to == "" {
		return object.Image{}, fmt.Errorf("tag %q: the new name is empty: %w", from, errdefs.ErrInvalidArgument)
	}
	rep := report.New(progress, to, "")
	defer rep.Close()
	x, end, err := s.begin(ctx, namespace, "", rep)
	if err != nil {
		return object.Image{}, err
	}
	defer end()
	img, err := x.stores.Images.Get(ctx, from)
	if err != nil {
		return object.Image{}, err
	}
	out, err := x.record(ctx, object.Image{Name: to, Labels: img.Labels, Target: img.Target})
	if err == nil {
		rep.Image("saved", out.Name, &out.Target)
	}
	return out, err
}
