package registrytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// TokenServer gives out tokens.
type TokenServer struct {
	// URL to be named as the realm.
	URL string

	user, password string
	mu             sync.Mutex
	tokens         map[string][]string // scopes by token
	asked          []string            // scopes, one request per element
	life           int                 // expires_in, when it is not 0
	faults         []*Fault
	server         *httptest.Server
}

// NewTokenServer starts a token server. With an empty user it gives tokens to
// everybody; an identity token is the password alone.
func NewTokenServer(t testing.TB, user, password string) *TokenServer {
	ts := &TokenServer{user: user, password: password, tokens: map[string][]string{}}
	s := httptest.NewServer(ts)
	ts.URL = s.URL + "/token"
	ts.server = s
	t.Cleanup(ts.Stop)
	return ts
}

// Stop ends the server.
func (ts *TokenServer) Stop() {
	ts.server.CloseClientConnections()
	ts.server.Close()
}

// Asked returns the scopes that were asked for, one element per request.
func (ts *TokenServer) Asked() []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return append([]string(nil), ts.asked...)
}

// Forget makes all tokens invalid.
func (ts *TokenServer) Forget() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	clear(ts.tokens)
}

// AddFault makes the token server misbehave.
func (ts *TokenServer) AddFault(f Fault) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.faults = append(ts.faults, &f)
}

// SetLife sets how long tokens are said to live, in seconds.
func (ts *TokenServer) SetLife(seconds int) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.life = seconds
}

// OnlyOAuth makes it answer GET with 405.
func (ts *TokenServer) OnlyOAuth() {
	ts.AddFault(Fault{Method: http.MethodGet, Do: Status(http.StatusMethodNotAllowed)})
}

// ServeHTTP implements http.Handler.
func (ts *TokenServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	ts.mu.Lock()
	fault := choose(ts.faults, q)
	ts.mu.Unlock()
	if fault != nil {
		fault.Do(w, q, http.HandlerFunc(ts.serve))
		return
	}
	ts.serve(w, q)
}

func (ts *TokenServer) serve(w http.ResponseWriter, q *http.Request) {
	user, password, _ := q.BasicAuth()
	scopes := q.URL.Query()["scope"]
	if q.Method == http.MethodPost {
		form := url.Values{}
		if b, err := io.ReadAll(q.Body); err == nil {
			form, _ = url.ParseQuery(string(b))
		}
		scopes = strings.Fields(form.Get("scope"))
		switch {
		case form.Get("grant_type") == "password":
			user, password = form.Get("username"), form.Get("password")
		case form.Get("refresh_token") == ts.password:
			user, password = ts.user, ts.password
		}
	}
	if ts.user != "" && (user != ts.user || password != ts.password) {
		Error(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user or password")
		return
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	token := fmt.Sprintf("token-%d-%d", len(ts.asked), time.Now().UnixNano())
	ts.asked = append(ts.asked, strings.Join(scopes, " "))
	ts.tokens[token] = scopes
	answer := map[string]any{"token": token}
	if ts.life != 0 {
		answer["expires_in"] = ts.life
	}
	json.NewEncoder(w).Encode(answer)
}

func (ts *TokenServer) allows(token, repository, action string) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, s := range ts.tokens[token] {
		actions, ok := strings.CutPrefix(s, "repository:"+repository+":")
		if ok && strings.Contains(actions, action) {
			return true
		}
	}
	return false
}
