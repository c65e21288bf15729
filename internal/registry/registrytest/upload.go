package registrytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// session is an upload under way.
type session struct{ data []byte }

// LimitBody refuses larger requests with 413.
func (r *Registry) LimitBody(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.maxBody = n
}

// KeepReferrers makes the registry serve the referrers API.
func (r *Registry) KeepReferrers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.referrers = true
}

func (r *Registry) keepsReferrers() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.referrers
}

func (r *Registry) upload(w http.ResponseWriter, q *http.Request, repo, id string) {
	r.mu.Lock()
	s, tooLarge := r.uploads[id], r.maxBody > 0 && q.ContentLength > r.maxBody
	r.mu.Unlock()
	if tooLarge {
		Error(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the request is too large")
		return
	}
	if q.Method == http.MethodPost {
		r.begin(w, q, repo)
		return
	}
	if s == nil || q.URL.Query().Get("state") != "secret" {
		Error(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
		return
	}
	if q.Method == http.MethodPatch || q.Method == http.MethodPut {
		first, _, ranged := strings.Cut(q.Header.Get("Content-Range"), "-")
		if ranged && first != strconv.Itoa(len(s.data)) || q.Method == http.MethodPut && q.ContentLength > 0 && len(s.data) > 0 {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		// What arrived is kept, also when the rest does not come.
		buf := make([]byte, 32<<10)
		for {
			n, err := q.Body.Read(buf)
			r.mu.Lock()
			s.data = append(s.data, buf[:n]...)
			r.mu.Unlock()
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
		}
	}
	switch q.Method {
	case http.MethodPut:
		d := digest.Digest(q.URL.Query().Get("digest"))
		if digest.FromBytes(s.data) != d {
			Error(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		r.AddBlob("", s.data)
		r.mu.Lock()
		delete(r.uploads, id)
		r.mu.Unlock()
		w.Header().Set("Docker-Content-Digest", d.String())
		w.WriteHeader(http.StatusCreated)
	case http.MethodPatch, http.MethodGet:
		w.Header().Set("Location", q.URL.Path+"?state=secret")
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(s.data)-1)))
		if q.Method == http.MethodGet {
			w.WriteHeader(http.StatusNoContent)
		} else {
			w.WriteHeader(http.StatusAccepted)
		}
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// begin starts a session, or mounts.
func (r *Registry) begin(w http.ResponseWriter, q *http.Request, repo string) {
	if d := digest.Digest(q.URL.Query().Get("mount")); d != "" {
		if _, ok := r.Blob(d); ok {
			w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
			w.WriteHeader(http.StatusCreated)
			return
		}
	}
	r.mu.Lock()
	id := strconv.Itoa(len(r.requests))
	r.uploads[id] = &session{}
	r.mu.Unlock()
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=secret")
	w.WriteHeader(http.StatusAccepted)
}

func subjectOf(doc []byte) digest.Digest {
	var m struct {
		Subject *ispec.Descriptor `json:"subject"`
	}
	if json.Unmarshal(doc, &m) != nil || m.Subject == nil {
		return ""
	}
	return m.Subject.Digest
}

func (r *Registry) serveReferrers(w http.ResponseWriter, q *http.Request, repo string, d digest.Digest) {
	if !r.keepsReferrers() {
		Error(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
		return
	}
	idx := ispec.Index{MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{}}
	idx.SchemaVersion = 2
	r.mu.Lock()
	for name, m := range r.manifests {
		var doc ispec.Manifest
		own := repo + "/" + digest.FromBytes(m.doc).String()
		if name == own && subjectOf(m.doc) == d && json.Unmarshal(m.doc, &doc) == nil {
			idx.Manifests = append(idx.Manifests, ispec.Descriptor{MediaType: m.mediaType, Digest: digest.FromBytes(m.doc), Size: int64(len(m.doc)), ArtifactType: doc.ArtifactType})
		}
	}
	r.mu.Unlock()
	w.Header().Set("Content-Type", ispec.MediaTypeImageIndex)
	json.NewEncoder(w).Encode(idx)
}
