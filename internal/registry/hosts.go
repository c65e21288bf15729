package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// capability is what a host may be asked for.
type capability uint8

const (
	canPull capability = 1 << iota
	canResolve
	canPush
	canReferrers
	canAll = canPull | canResolve | canPush | canReferrers
)

// host is one server that may serve a reference.
type host struct {
	name         string // host[:port]
	scheme       string // what to begin with
	path         string // of the API's root, "/v2"
	capabilities capability
	header       http.Header
	// namespace is the registry that a mirror stands in for, or empty; a mirror
	// of several registries tells them apart by it (query parameter ns).
	namespace string
	// plain is set once a host that may be spoken to in plain HTTP did not
	// understand TLS.
	mayFallBack bool
	plain       atomic.Bool

	client *http.Client
	auth   *authorizer
	opts   Options
	// attempts per request that reads: one where another host can stand in.
	attempts int
}

// hostConfig is a host before its client is made.
type hostConfig struct {
	base         *url.URL // nil: the registry of the reference
	capabilities capability
	header       http.Header
	caFiles      []string
	clientPairs  [][2]string
	skipVerify   bool
	tlsGiven     bool
	dialTimeout  time.Duration
}

// mirrorDialTime bounds connecting to a host that others can stand in for, where
// hosts.toml sets no dial_timeout.
const mirrorDialTime = 3 * time.Second

// hostsFor reads what is configured for the reference's registry and makes the
// hosts, in the order in which they are to be asked.
func hostsFor(ref Reference, opts Options) ([]*host, error) {
	configs := []hostConfig{{capabilities: canAll}}
	if opts.HostDir != "" {
		dir, err := hostDirectory(opts.HostDir, ref.Host)
		if err != nil {
			return nil, err
		}
		if dir != "" {
			if configs, err = loadHostDirectory(dir); err != nil {
				return nil, err
			}
		}
	}
	hosts := make([]*host, 0, len(configs))
	for i, c := range configs {
		if i < len(configs)-1 && c.dialTimeout == 0 {
			c.dialTimeout = mirrorDialTime
		}
		h, err := newHost(ref, c, opts)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

func newHost(ref Reference, c hostConfig, opts Options) (*host, error) {
	h := &host{capabilities: c.capabilities, header: c.header, path: "/v2", opts: opts}
	if c.base == nil {
		h.name, h.scheme = ref.Host, "https"
		if ref.Host == "docker.io" {
			h.name = "registry-1.docker.io"
		} else if opts.DefaultScheme != "" {
			h.scheme = opts.DefaultScheme
		} else if loopback(ref.Host) {
			h.mayFallBack = true
			c.skipVerify = c.skipVerify || !c.tlsGiven && opts.CACert == ""
			if _, port, _ := net.SplitHostPort(ref.Host); port == "80" {
				h.scheme = "http"
			}
		}
	} else {
		h.name, h.scheme, h.path = c.base.Host, c.base.Scheme, c.base.Path
		h.mayFallBack = loopback(h.name)
		if h.scheme == "http" && c.tlsGiven && c.base.Port() != "80" {
			// Compat: with TLS settings plain HTTP is the second choice.
			h.scheme, h.mayFallBack = "https", true
		}
	}
	if h.scheme != "http" && h.scheme != "https" {
		return nil, fmt.Errorf("scheme %q of host %s: http or https is wanted: %w", h.scheme, h.name, errdefs.ErrInvalidArgument)
	}
	if h.name != ref.Host && !(ref.Host == "docker.io" && h.name == "registry-1.docker.io") {
		h.namespace = ref.Host
	}
	tlsConfig, err := tlsFor(c, opts)
	if err != nil {
		return nil, err
	}
	h.client = newClient(tlsConfig, c.dialTimeout)
	h.auth = &authorizer{host: h, reference: ref.String(), credentials: opts.Credentials}
	return h, nil
}

func newClient(tlsConfig *tls.Config, dialTimeout time.Duration) *http.Client {
	if dialTimeout <= 0 {
		dialTimeout = 30 * time.Second
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         dialer.DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: 15 * time.Second,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     15 * time.Second,
			ReadBufferSize:      64 << 10,
			// What is stored is what was sent, byte for byte.
			DisableCompression: true,
			// HTTP/1.1 gives every blob a connection of its own: its flow control
			// is the kernel's, and one that stalls can be given up alone.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
		CheckRedirect: checkRedirect,
	}
}

func tlsFor(c hostConfig, opts Options) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.skipVerify || opts.SkipVerify}
	if opts.CACert != "" {
		c.caFiles = append(c.caFiles, opts.CACert)
	}
	if opts.ClientCert != "" || opts.ClientKey != "" {
		c.clientPairs = append(c.clientPairs, [2]string{opts.ClientCert, opts.ClientKey})
	}
	for _, f := range c.caFiles {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %w", err)
		}
		if conf.RootCAs == nil {
			if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
				conf.RootCAs = x509.NewCertPool()
			}
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	for _, p := range c.clientPairs {
		key := p[1]
		if key == "" {
			key = p[0] // both in one file
		}
		cert, err := tls.LoadX509KeyPair(p[0], key)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w: %w", p[0], err, errdefs.ErrInvalidArgument)
		}
		conf.Certificates = append(conf.Certificates, cert)
	}
	return conf, nil
}

// hostDirectory finds the directory below root that configures a host: its name
// with the port as "_5000_", its name, or _default. Empty when there is none.
func hostDirectory(root, name string) (string, error) {
	names := []string{name, "_default"}
	if i := strings.LastIndex(name, ":"); i > 0 {
		names = slices.Insert(names, 0, name[:i]+"_"+name[i+1:]+"_")
	}
	for _, n := range names {
		dir := filepath.Join(root, n)
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// loadHostDirectory reads hosts.toml or, when there is none, certificates named
// in Docker's way: *.crt are CAs, *.cert with *.key are for the client.
//
// Differs from containerd: a hosts.toml that cannot be parsed is an error here;
// falling back to the registry itself would skip the mirrors in silence.
func loadHostDirectory(dir string) ([]hostConfig, error) {
	file := filepath.Join(dir, "hosts.toml")
	b, err := os.ReadFile(file)
	if err == nil && len(b) > 0 {
		hosts, err := parseHosts(dir, b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrInvalidArgument)
		}
		return hosts, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	c := hostConfig{capabilities: canAll}
	for _, e := range entries {
		full := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			c.caFiles, c.tlsGiven = append(c.caFiles, full), true
		case ".cert":
			key := strings.TrimSuffix(full, ".cert") + ".key"
			if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
				key = "" // in the same file
			}
			c.clientPairs = append(c.clientPairs, [2]string{full, key})
			c.tlsGiven = true
		}
	}
	return []hostConfig{c}, nil
}

// hostTable is a [host."…"] table of hosts.toml, or its top level.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

func parseHosts(dir string, b []byte) ([]hostConfig, error) {
	var f struct {
		hostTable
		Server string               `toml:"server"`
		Host   map[string]hostTable `toml:"host"`
	}
	if err := toml.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	order, err := hostOrder(b)
	if err != nil {
		return nil, err
	}
	var out []hostConfig
	for _, name := range order {
		t, ok := f.Host[name]
		if !ok {
			continue
		}
		c, err := t.config(dir, name)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		out = append(out, c)
	}
	c, err := f.config(dir, f.Server)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", f.Server, err)
	}
	return append(out, c), nil
}

// hostOrder returns the keys of the host tables as the file orders them: the
// first is tried first.
func hostOrder(b []byte) ([]string, error) {
	var p unstable.Parser
	p.Reset(b)
	var out []string
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.KeyValue {
			continue
		}
		var key []string
		for it := e.Key(); it.Next() && len(key) < 2; {
			key = append(key, string(it.Node().Data))
		}
		if len(key) == 2 && key[0] == "host" && !slices.Contains(out, key[1]) {
			out = append(out, key[1])
		}
	}
	return out, p.Error()
}

func (t hostTable) config(dir, server string) (hostConfig, error) {
	c := hostConfig{capabilities: canAll, header: http.Header{}}
	if server != "" {
		if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
			server = "https://" + server
		}
		u, err := url.Parse(server)
		if err != nil {
			return c, err
		}
		if u.Host == "" || u.User != nil {
			return c, errors.New("a URL with a host and without user information is wanted")
		}
		if u.Path != "" {
			u.Path = path.Clean(u.Path)
		}
		if !t.OverridePath && !strings.HasSuffix(u.Path, "/v2") {
			u.Path = strings.TrimSuffix(u.Path, "/") + "/v2"
		}
		c.base = u
	}
	if len(t.Capabilities) > 0 {
		c.capabilities = 0
		for _, name := range t.Capabilities {
			bit, ok := map[string]capability{"pull": canPull, "resolve": canResolve, "push": canPush, "referrers": canReferrers}[strings.ToLower(name)]
			if !ok {
				return c, fmt.Errorf("unknown capability %q", name)
			}
			c.capabilities |= bit
		}
	}
	if t.SkipVerify != nil {
		c.skipVerify, c.tlsGiven = *t.SkipVerify, true
	}
	var err error
	if c.caFiles, err = fileList(dir, t.CA); err != nil {
		return c, fmt.Errorf("ca: %w", err)
	}
	if c.clientPairs, err = pairList(dir, t.Client); err != nil {
		return c, fmt.Errorf("client: %w", err)
	}
	c.tlsGiven = c.tlsGiven || c.caFiles != nil || c.clientPairs != nil
	for k, v := range t.Header {
		values, err := stringList(v)
		if err != nil {
			return c, fmt.Errorf("header %q: %w", k, err)
		}
		for _, s := range values {
			c.header.Add(k, s)
		}
	}
	if t.DialTimeout != "" {
		if c.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return c, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	return c, nil
}

// stringList takes a string or a list of strings.
func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, errors.New("a string or a list of strings is wanted")
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, errors.New("a string or a list of strings is wanted")
}

func fileList(dir string, v any) ([]string, error) {
	names, err := stringList(v)
	for i, n := range names {
		names[i] = inDir(dir, n)
	}
	return names, err
}

// pairList takes one file, a list of files, or a list of [certificate, key].
func pairList(dir string, v any) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
		if v == nil {
			list = nil
		}
	}
	var out [][2]string
	for _, e := range list {
		files, err := fileList(dir, e)
		if err != nil {
			return nil, err
		}
		switch len(files) {
		case 1:
			out = append(out, [2]string{files[0], ""})
		case 2:
			out = append(out, [2]string{files[0], files[1]})
		default:
			return nil, errors.New("pairs of a certificate and a key are wanted")
		}
	}
	return out, nil
}

func inDir(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}
