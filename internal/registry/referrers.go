package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers lists the manifests that name d as their subject, those of an
// artifact type alone unless it is empty (distribution-spec, "Listing
// Referrers"). Registries without the API are asked for the tag that takes its
// place. None is no error.
func (r *Remote) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ispec.Descriptor, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("referrers of %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	var out []ispec.Descriptor
	err := r.eachHost(ctx, canReferrers, "", func(h *host) error {
		var err error
		out, err = r.referrers(ctx, h, d, artifactType)
		return err
	})
	if err != nil {
		return nil, err
	}
	if artifactType != "" {
		out = slices.DeleteFunc(out, func(m ispec.Descriptor) bool { return m.ArtifactType != artifactType })
	}
	return out, nil
}

func (r *Remote) referrers(ctx context.Context, h *host, d digest.Digest, artifactType string) ([]ispec.Descriptor, error) {
	c := call{
		doing: "list the referrers of " + d.String(), method: http.MethodGet, path: "/" + r.ref.Repository + "/referrers/" + d.String(),
		header: http.Header{"Accept": {ispec.MediaTypeImageIndex}}, scopes: r.pullScope(), accept: []int{http.StatusOK},
	}
	if artifactType != "" {
		c.query = url.Values{"artifactType": {artifactType}}
	}
	resp, err := h.do(ctx, c)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return r.tagged(ctx, h, d)
	}
	if err != nil {
		return nil, err
	}
	return readReferrers(resp, h)
}

// referrersTag is where the referrers are listed at registries without the API.
func referrersTag(d digest.Digest) string {
	alg, hex := d.Algorithm().String(), d.Encoded()
	return alg[:min(len(alg), 32)] + "-" + hex[:min(len(hex), 64)]
}

// tagged reads the referrers' tag; none when it is not there.
func (r *Remote) tagged(ctx context.Context, h *host, d digest.Digest) ([]ispec.Descriptor, error) {
	resp, err := h.do(ctx, call{
		doing: "list the referrers of " + d.String(), method: http.MethodGet, path: "/" + r.ref.Repository + "/manifests/" + referrersTag(d),
		header: http.Header{"Accept": {ispec.MediaTypeImageIndex}}, scopes: r.pullScope(), accept: []int{http.StatusOK},
	})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return readReferrers(resp, h)
}

func readReferrers(resp *http.Response, h *host) ([]ispec.Descriptor, error) {
	defer resp.Body.Close()
	doc, err := readAll(resp.Body, image.MaxManifest)
	if err == nil {
		var idx ispec.Index
		if idx, err = image.ParseIndex(doc, ispec.MediaTypeImageIndex); err == nil {
			return idx.Manifests, nil
		}
	}
	return nil, fmt.Errorf("registry %s: list of referrers: %w", h.name, err)
}

// announce writes a manifest that has a subject into the referrers' tag: what a
// client owes a registry that did not say that it keeps the list itself.
func (r *Remote) announce(ctx context.Context, h *host, up Upload) error {
	body, err := up.Open()
	if err != nil {
		return err
	}
	doc, err := readAll(body, image.MaxManifest)
	body.Close()
	if err != nil {
		return err
	}
	var m struct {
		ArtifactType string            `json:"artifactType"`
		Config       ispec.Descriptor  `json:"config"`
		Subject      *ispec.Descriptor `json:"subject"`
		Annotations  map[string]string `json:"annotations"`
	}
	if json.Unmarshal(doc, &m) != nil || m.Subject == nil || m.Subject.Digest.Validate() != nil {
		return nil
	}
	known, err := r.tagged(ctx, h, m.Subject.Digest)
	if err != nil {
		return err
	}
	entry := ispec.Descriptor{MediaType: up.Desc.MediaType, Digest: up.Desc.Digest, Size: up.Desc.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if entry.ArtifactType == "" {
		entry.ArtifactType = m.Config.MediaType
	}
	if slices.ContainsFunc(known, func(k ispec.Descriptor) bool { return k.Digest == entry.Digest }) {
		return nil
	}
	list, err := json.Marshal(ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: append(known, entry)})
	if err != nil {
		return err
	}
	resp, err := h.do(ctx, call{
		doing: "list " + up.Desc.Digest.String() + " as a referrer", method: http.MethodPut, path: "/" + r.ref.Repository + "/manifests/" + referrersTag(m.Subject.Digest),
		header: http.Header{"Content-Type": {ispec.MediaTypeImageIndex}}, scopes: r.pushScope(), patient: true,
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(list)), nil }, size: int64(len(list)),
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent},
	})
	if err != nil {
		return err
	}
	drain(resp)
	return nil
}
