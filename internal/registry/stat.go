package registry

import (
	"context"
	"fmt"
	"net/http"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Stat finds the size of a blob of which only the digest is known. The registry
// is believed as far as that: Fetch still checks the bytes.
// errdefs.ErrNotFound when no host has it.
func (r *Remote) Stat(ctx context.Context, d digest.Digest) (ispec.Descriptor, error) {
	desc := ispec.Descriptor{Digest: d}
	err := r.eachHost(ctx, canPull, d, func(h *host) error {
		resp, err := h.do(ctx, call{
			doing: "look up " + d.String(), method: http.MethodHead,
			path: "/" + r.ref.Repository + "/blobs/" + d.String(), scopes: r.pullScope(),
			accept: []int{http.StatusOK},
		})
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.ContentLength < 0 {
			return fmt.Errorf("registry %s does not tell the size of %s: %w", h.name, d, errdefs.ErrUnavailable)
		}
		desc.Size = resp.ContentLength
		return image.Valid(desc)
	})
	return desc, err
}
