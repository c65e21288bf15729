package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

// maxErrorBody bounds what is read of an answer that is an error.
const maxErrorBody = 16 << 10

// readError reads the beginning of an answer that is an error, and closes it.
func readError(resp *http.Response) []byte {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	resp.Body.Close()
	return b
}

// statusError describes an answer that was not hoped for: which host, what was
// asked, what it said, what to do. The kinds: 401 Unauthenticated, 403
// PermissionDenied, 404 NotFound, 429 ResourceExhausted, 5xx Unavailable.
func (h *host) statusError(c *call, resp *http.Response, body []byte) error {
	status := fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	if said := serverMessage(body); said != "" {
		status += ": " + said
	}
	var kind error
	hint := ""
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		kind, hint = errdefs.ErrUnauthenticated, "it needs a login, or the one given is wrong"
	case code == http.StatusForbidden:
		kind, hint = errdefs.ErrPermissionDenied, "the login given does not allow it, or the repository does not exist"
	case code == http.StatusNotFound:
		kind, hint = errdefs.ErrNotFound, "check the name and the tag"
	case code == http.StatusTooManyRequests:
		kind, hint = errdefs.ErrResourceExhausted, "too many requests, try again later"
		if d, ok := retryAfter(resp); ok {
			hint = fmt.Sprintf("too many requests, try again in %s", d)
		}
	case code == http.StatusRequestedRangeNotSatisfiable:
		kind = errdefs.ErrOutOfRange
	case code >= 500:
		kind, hint = errdefs.ErrUnavailable, "the server has a problem"
	case code >= 300 && code < 400:
		kind, hint = errdefs.ErrFailedPrecondition, "it redirects to nowhere"
	case code == http.StatusBadRequest && resp.Request != nil && resp.Request.URL.Scheme == "http":
		kind, hint = errdefs.ErrFailedPrecondition, "if it speaks https, leave out --plain-http"
	default:
		kind = errdefs.ErrFailedPrecondition
	}
	if hint != "" {
		status += " (" + hint + ")"
	}
	from := ""
	if resp.Request != nil && !h.owns(resp.Request.URL) {
		from = " (redirected to " + redact(resp.Request.URL) + ")"
	}
	return fmt.Errorf("registry %s%s: cannot %s: %s: %w", h.name, from, c.doing, status, kind)
}

// serverMessage takes what a registry says of an error out of its answer
// (distribution-spec, "Error Codes"), fit to be shown on one line.
func serverMessage(body []byte) string {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return ""
	}
	var said []string
	for _, e := range doc.Errors[:min(len(doc.Errors), 3)] {
		said = append(said, oneLine(strings.TrimPrefix(e.Code+": "+e.Message, ": ")))
	}
	if len(said) == 0 && doc.Details != "" {
		said = append(said, oneLine(doc.Details))
	}
	return strings.Join(said, "; ")
}

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
