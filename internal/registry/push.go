package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Upload is something to be pushed.
type Upload struct {
	Desc ispec.Descriptor
	// Open gives the bytes, from the beginning each time. A reader that is an
	// io.Seeker is moved forward where an upload goes on in the middle. nil for a
	// blob that is not here: the registry has it, or takes it from MountFrom, or
	// Push is errdefs.ErrNotFound.
	Open func() (io.ReadCloser, error)
	// MountFrom is another repository at the same host that has the blob, or empty.
	MountFrom string
	// Tag says that a manifest is to be stored under the reference's tag, not
	// only under its digest.
	Tag bool
}

// Push sends a blob or a manifest unless the registry has it already; existed
// tells that it had, or that it took the blob from MountFrom.
func (r *Remote) Push(ctx context.Context, up Upload) (existed bool, err error) {
	if err := image.Valid(up.Desc); err != nil {
		return false, err
	}
	hosts := r.hostsWith(canPush, "")
	if len(hosts) == 0 {
		return false, fmt.Errorf("no host is configured that may be pushed to for %s: %w", r.ref.Host, errdefs.ErrFailedPrecondition)
	}
	// A push goes to one place: the first host that takes pushes.
	h := hosts[0]
	if image.IsManifest(up.Desc.MediaType) || image.IsIndex(up.Desc.MediaType) {
		return r.pushManifest(ctx, h, up)
	}
	return r.pushBlob(ctx, h, up)
}

func (r *Remote) pushScope() []string {
	return []string{"repository:" + r.ref.Repository + ":pull,push"}
}

// has asks whether the registry has an object, and under that very digest.
func (r *Remote) has(ctx context.Context, h *host, path string, desc ispec.Descriptor) (bool, error) {
	resp, err := h.do(ctx, call{
		doing: "look up " + desc.Digest.String(), method: http.MethodHead, path: path, scopes: r.pushScope(),
		header: http.Header{"Accept": {desc.MediaType, "*/*;q=0.1"}},
		accept: []int{http.StatusOK, http.StatusNotFound}, patient: true,
	})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, nil
	}
	said := resp.Header.Get("Docker-Content-Digest")
	return said == desc.Digest.String() || said == "" && strings.HasSuffix(path, desc.Digest.String()), nil
}

func (r *Remote) pushManifest(ctx context.Context, h *host, up Upload) (bool, error) {
	object := up.Desc.Digest.String()
	if up.Tag && r.ref.Tag != "" {
		object = r.ref.Tag
	}
	path := "/" + r.ref.Repository + "/manifests/" + object
	if ok, err := r.has(ctx, h, path, up.Desc); err != nil || ok {
		return ok, err
	}
	resp, err := h.do(ctx, call{
		doing: "push the manifest " + up.Desc.Digest.String() + " to " + r.ref.String(), method: http.MethodPut, path: path,
		header: http.Header{"Content-Type": {up.Desc.MediaType}}, scopes: r.pushScope(),
		body: up.Open, size: up.Desc.Size, patient: true,
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent},
	})
	if err != nil {
		return false, err
	}
	drain(resp)
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != up.Desc.Digest.String() {
		return false, fmt.Errorf("registry %s stored the manifest %s as %.100q: %w", h.name, up.Desc.Digest, said, errdefs.ErrFailedPrecondition)
	}
	if resp.Header.Get("OCI-Subject") == "" {
		return false, r.announce(ctx, h, up)
	}
	return false, nil
}

func (r *Remote) pushBlob(ctx context.Context, h *host, up Upload) (bool, error) {
	d := up.Desc.Digest.String()
	if ok, err := r.has(ctx, h, "/"+r.ref.Repository+"/blobs/"+d, up.Desc); err != nil || ok {
		return ok, err
	}
	start := call{
		doing: "begin to push " + d + " to " + r.ref.String(), method: http.MethodPost,
		path: "/" + r.ref.Repository + "/blobs/uploads/", scopes: r.pushScope(),
		accept: []int{http.StatusAccepted, http.StatusCreated}, patient: true,
	}
	if up.MountFrom != "" {
		mount := start
		mount.query = url.Values{"mount": {d}, "from": {up.MountFrom}}
		mount.scopes = append(r.pushScope(), "repository:"+up.MountFrom+":pull")
		resp, err := h.do(ctx, mount)
		switch {
		case err == nil && resp.StatusCode == http.StatusCreated:
			drain(resp)
			return true, nil
		case err == nil && up.Open == nil:
			r.abandon(ctx, h, resp)
		case err == nil:
			return false, r.upload(ctx, h, up, start, resp)
		case ctx.Err() != nil:
			return false, err
		}
		// Not allowed to mount, perhaps: then without.
	}
	if up.Open == nil {
		return false, fmt.Errorf("registry %s does not have %s, and neither is it here: %w", h.name, d, errdefs.ErrNotFound)
	}
	resp, err := h.do(ctx, start)
	if err != nil {
		return false, err
	}
	return false, r.upload(ctx, h, up, start, resp)
}
