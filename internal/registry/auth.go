package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/registry/challenge"

	"github.com/containerd/errdefs"
)

// maxToken bounds the answer of a token service.
const maxToken = 128 << 10

// authorizer knows how to be let in by one host: it answers challenges and
// remembers what worked (RFC 7235; distribution's token authentication
// specification).
//
// It is written here because the one of oras-go refuses token services on
// private addresses, which is where those of companies' own registries are.
// What must not happen is kept: a secret goes over plain HTTP only when the
// registry itself is spoken to in plain HTTP, and never to a link-local address
// (the metadata services of clouds) unless the registry is there too.
type authorizer struct {
	host        *host
	reference   string
	credentials CredentialsFunc

	mu     sync.Mutex
	loaded bool
	creds  Credentials
	basic  bool
	// tokens by the scopes that were wanted.
	tokens map[string]bearer
	// known is the challenge that was last met with a token.
	known *challenge.Challenge
	// asking is held by the one goroutine that fetches a token.
	asking chan struct{}
}

// bearer is a token and when it is to be used no more.
type bearer struct {
	value   string
	expires time.Time
}

func (b bearer) valid() bool { return b.value != "" && time.Now().Before(b.expires) }

// renew gets a token before it is missed, once it is known that the host wants
// one: a body that is large need not be sent twice.
func (a *authorizer) renew(ctx context.Context, scopes []string) error {
	if len(scopes) == 0 {
		return nil
	}
	a.mu.Lock()
	known, creds := a.known, a.creds
	wanted := known != nil && !a.tokens[scopeKey(scopes)].valid()
	a.mu.Unlock()
	if !wanted {
		return nil
	}
	return a.fetchToken(ctx, *known, creds, scopes)
}

// load looks the credentials up, once.
func (a *authorizer) load(ctx context.Context) (Credentials, error) {
	a.mu.Lock()
	if a.loaded || a.credentials == nil {
		defer a.mu.Unlock()
		return a.creds, nil
	}
	a.mu.Unlock()
	creds, err := a.credentials(ctx, a.reference, a.host.name)
	if err != nil {
		return Credentials{}, fmt.Errorf("look up the credentials: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded, a.creds = true, creds
	return creds, nil
}

// authorise adds what the host is known to want.
func (a *authorizer) authorise(req *http.Request, scopes []string) {
	if req.Header.Get("Authorization") != "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.loaded && a.creds.Header != "":
		req.Header.Set("Authorization", a.creds.Header)
	case a.basic:
		req.SetBasicAuth(a.creds.Username, a.creds.Secret)
	default:
		if t := a.tokens[scopeKey(scopes)]; t.valid() {
			req.Header.Set("Authorization", "Bearer "+t.value)
		}
	}
}

// answer meets the challenges of a 401; false when there is nothing (more) to
// offer. offered is the Authorization that the refused request had: what other
// requests at the same time have offered says nothing about this one.
func (a *authorizer) answer(ctx context.Context, headers []string, offered string, scopes []string) (bool, error) {
	creds, err := a.load(ctx)
	if err != nil {
		return false, err
	}
	if creds.Header != "" {
		return offered != creds.Header, nil
	}
	challenges := challenge.Parse(headers)
	for _, c := range challenges {
		if c.Scheme == "bearer" && c.Params["realm"] != "" {
			a.refuse(scopes, strings.TrimPrefix(offered, "Bearer "))
			return true, a.fetchToken(ctx, c, creds, scopes)
		}
	}
	for _, c := range challenges {
		if c.Scheme == "basic" && (creds.Username != "" || creds.Secret != "") {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.basic = true
			return !strings.HasPrefix(offered, "Basic "), nil
		}
	}
	return false, nil
}

// refuse forgets a token that the host did not take.
func (a *authorizer) refuse(scopes []string, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if key := scopeKey(scopes); a.tokens[key].value == value {
		delete(a.tokens, key)
	}
}

// fetchToken asks the token service for the wanted scopes. Callers that want a
// token at the same time wait for each other: the second finds that of the first.
func (a *authorizer) fetchToken(ctx context.Context, c challenge.Challenge, creds Credentials, scopes []string) error {
	key := scopeKey(scopes)
	a.mu.Lock()
	if a.asking == nil {
		a.asking = make(chan struct{}, 1)
	}
	asking := a.asking
	a.mu.Unlock()

	select {
	case asking <- struct{}{}:
		defer func() { <-asking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	a.mu.Lock()
	fresh := a.tokens[key].valid()
	a.mu.Unlock()
	if fresh {
		return nil
	}

	realm, err := a.realm(c.Params["realm"])
	if err != nil {
		return err
	}
	want := slices.Clone(scopes)
	for s := range strings.FieldsSeq(c.Params["scope"]) {
		if !covered(s, want) {
			want = append(want, s)
		}
	}
	token, err := a.requestToken(ctx, tokenQuestion{realm, c.Params["service"], want, creds})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens == nil {
		a.tokens = map[string]bearer{}
	}
	a.tokens[key], a.known = token, &c
	return nil
}

// realm checks the address of the token service.
func (a *authorizer) realm(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("it names the token service %.200q, which is not a URL to be asked: %w", s, errdefs.ErrFailedPrecondition)
	}
	plain := a.host.scheme == "http" || a.host.plain.Load()
	if u.Scheme == "http" && !plain {
		return nil, fmt.Errorf("it names the token service %s, which would see the credentials over plain HTTP: %w", redact(u), errdefs.ErrFailedPrecondition)
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLinkLocalUnicast() && !strings.HasPrefix(a.host.name, u.Hostname()) {
		return nil, fmt.Errorf("it names the token service %s on a link-local address: %w", redact(u), errdefs.ErrFailedPrecondition)
	}
	return u, nil
}

// tokenQuestion is one way to ask a token service.
type tokenQuestion struct {
	realm   *url.URL
	service string
	scopes  []string
	creds   Credentials
}

// requestToken gets a token: with GET, or with an OAuth2 POST when there is
// only an identity token to show, or when the service knows nothing else.
func (a *authorizer) requestToken(ctx context.Context, q tokenQuestion) (bearer, error) {
	if q.creds.Secret != "" && q.creds.Username == "" {
		return a.ask(ctx, q, q.post())
	}
	token, err := a.ask(ctx, q, q.get())
	if q.creds.Username != "" && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)) {
		// 404, 405 and their like: it speaks OAuth2 only. What that says of the
		// login counts, unless it is not known there either.
		if t, again := a.ask(ctx, q, q.post()); again == nil || errdefs.IsUnauthorized(again) {
			return t, again
		}
	}
	return token, err
}

// get is the question of distribution's token specification.
func (q tokenQuestion) get() call {
	c := call{method: http.MethodGet, query: url.Values{}, header: http.Header{}}
	if q.service != "" {
		c.query.Set("service", q.service)
	}
	for _, s := range q.scopes {
		c.query.Add("scope", s)
	}
	if q.creds.Username != "" {
		c.query.Set("account", q.creds.Username)
		c.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(q.creds.Username+":"+q.creds.Secret)))
	}
	return c
}

// post is the question of distribution's OAuth2 specification.
func (q tokenQuestion) post() call {
	form := url.Values{"client_id": {"berth"}, "service": {q.service}, "scope": {strings.Join(q.scopes, " ")}}
	if q.creds.Username == "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", q.creds.Secret)
	} else {
		form.Set("grant_type", "password")
		form.Set("username", q.creds.Username)
		form.Set("password", q.creds.Secret)
	}
	body := form.Encode()
	return call{
		method: http.MethodPost, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		body: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }, size: int64(len(body)),
	}
}

// ask puts a question to the token service.
func (a *authorizer) ask(ctx context.Context, q tokenQuestion, c call) (bearer, error) {
	c.doing, c.absolute, c.accept = "get a token from "+redact(q.realm), q.realm, []int{http.StatusOK}
	// A host of its own: nothing of the registry (headers, tokens, namespace)
	// goes to the token service, and a body is not sent on by a redirect.
	svc := &host{name: q.realm.Host, scheme: q.realm.Scheme, opts: a.host.opts}
	svc.opts.Headers = nil
	client := *a.host.client
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if req.URL.Scheme != via[0].URL.Scheme && req.URL.Scheme != "https" {
			return errors.New("redirect of a token request to plain HTTP")
		}
		if c.body != nil && !sameOrigin(via[0].URL, req.URL) {
			return errors.New("redirect of a token request to another host")
		}
		return checkRedirect(req, via)
	}
	svc.client, svc.auth = &client, &authorizer{host: svc}
	began := time.Now()
	resp, err := svc.do(ctx, c)
	if err != nil {
		return bearer{}, err
	}
	defer resp.Body.Close()
	return readToken(resp.Body, began, redact(q.realm))
}

// A token is used for a while at least, whatever the service says, and not for
// ever.
const (
	minTokenLife = 10 * time.Second
	tokenLife    = 60 * time.Second // when nothing is said: distribution's default
	maxTokenLife = 24 * time.Hour
)

func readToken(r io.Reader, began time.Time, service string) (bearer, error) {
	var doc struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxToken)).Decode(&doc); err != nil {
		return bearer{}, fmt.Errorf("token service %s: answer is malformed: %w: %w", service, err, errdefs.ErrUnavailable)
	}
	if doc.Token == "" {
		doc.Token = doc.AccessToken
	}
	if doc.Token == "" {
		return bearer{}, fmt.Errorf("token service %s: answer holds no token: %w", service, errdefs.ErrUnauthenticated)
	}
	life := tokenLife
	if doc.ExpiresIn > 0 {
		life = min(time.Duration(min(doc.ExpiresIn, 1<<20))*time.Second, maxTokenLife)
	}
	// Counted from before the question, by our own clock: theirs may be wrong.
	return bearer{doc.Token, began.Add(max(life*9/10, minTokenLife))}, nil
}

func scopeKey(scopes []string) string {
	s := slices.Clone(scopes)
	slices.Sort(s)
	return strings.Join(slices.Compact(s), " ")
}

// covered tells whether scope ("repository:a/b:pull") is part of one of those wanted.
func covered(scope string, want []string) bool {
	i := strings.LastIndex(scope, ":")
	if i < 0 {
		return slices.Contains(want, scope)
	}
	for _, w := range want {
		j := strings.LastIndex(w, ":")
		if j < 0 || w[:j] != scope[:i] {
			continue
		}
		have := strings.Split(w[j+1:], ",")
		all := true
		for action := range strings.SplitSeq(scope[i+1:], ",") {
			all = all && slices.Contains(have, action)
		}
		if all {
			return true
		}
	}
	return false
}
