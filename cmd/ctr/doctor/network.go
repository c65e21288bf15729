package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// checkNetwork looks at what CNI networks need.
func checkNetwork(_ context.Context, e *exam) {
	configs, _ := filepath.Glob(e.path("etc/cni/net.d/*.conf*")) // of a constant pattern
	plugins := ""
	for _, dir := range []string{"opt/cni/bin", "usr/lib/cni", "usr/libexec/cni"} {
		if e.exists(dir + "/bridge") {
			plugins = "/" + dir
			break
		}
	}
	switch {
	case len(configs) == 0:
		e.add("CNI", Info, "no network is configured in /etc/cni/net.d: --cni and Kubernetes need one", "")
	case plugins == "":
		e.add("CNI", Problem, fmt.Sprintf("%s names plugins, but there are none in /opt/cni/bin", filepath.Base(configs[0])), "apt-get install containernetworking-plugins && ln -s /usr/lib/cni /opt/cni/bin")
	case plugins != "/opt/cni/bin":
		e.add("CNI", Warning, "plugins are in "+plugins+", not in /opt/cni/bin, where they are looked for", "ln -s "+plugins+" /opt/cni/bin, or CNI_PATH="+plugins)
	default:
		e.ok("CNI", "%s", filepath.Base(configs[0]))
	}
	if e.text("proc/sys/net/ipv4/ip_forward") == "0" {
		status := Info
		if len(configs) > 0 {
			status = Warning
		}
		e.add("IP forwarding", status, "off: containers on a bridge reach nothing beyond it", "sysctl -w net.ipv4.ip_forward=1")
	} else {
		e.ok("IP forwarding", "on")
	}
	if len(configs) > 0 && !e.exists("proc/sys/net/bridge/bridge-nf-call-iptables") {
		e.add("bridge netfilter", Warning, "traffic across bridges passes by iptables: services of Kubernetes fail", "modprobe br_netfilter")
	}
	if conf := e.text("etc/resolv.conf"); !strings.Contains("\n"+conf, "\nnameserver") {
		e.add("resolv.conf", Warning, "/etc/resolv.conf names no name server: names of registries cannot be looked up", "add a line: nameserver ADDRESS")
	}
	if year := time.Now().Year(); e.Root == "/" && year < 2024 {
		e.add("clock", Problem, fmt.Sprintf("it says %d: certificates are refused", year), "set the clock")
	}
}

// probeTime bounds the probe of one registry.
const probeTime = 5 * time.Second

// checkRegistries resolves and asks the hosts of the configured registries.
func checkRegistries(ctx context.Context, e *exam) {
	if e.CertsDir == "" {
		return
	}
	servers, problems := configuredServers(e.path(e.CertsDir))
	for _, p := range problems {
		e.add("hosts.toml", Problem, p, "see the file; pulls from that registry fail")
	}
	results := make([]Result, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { results[i] = probe(ctx, s) })
	}
	wg.Wait()
	e.results = append(e.results, results...)
}

// server is a registry's address, with what its hosts.toml says.
type server struct {
	url        string
	skipVerify bool
}

// configuredServers reads the hosts.toml of every registry.
func configuredServers(dir string) (out []server, problems []string) {
	entries, _ := os.ReadDir(dir) // there may be none
	for _, d := range entries {
		path := filepath.Join(dir, d.Name(), "hosts.toml")
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var file struct {
			Server     string `toml:"server"`
			SkipVerify bool   `toml:"skip_verify"`
			Host       map[string]struct {
				SkipVerify bool `toml:"skip_verify"`
			} `toml:"host"`
		}
		if err := toml.Unmarshal(b, &file); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", path, err))
			continue
		}
		add := func(address string, skip bool) {
			if !strings.Contains(address, "://") {
				address = "https://" + address
			}
			s := server{strings.TrimSuffix(address, "/"), skip}
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
		for host, h := range file.Host {
			add(host, h.SkipVerify)
		}
		if file.Server != "" {
			add(file.Server, file.SkipVerify)
		}
	}
	slices.SortFunc(out, func(a, b server) int { return strings.Compare(a.url, b.url) })
	return out, problems
}

// probe asks a registry for its version. Any answer of HTTP is good: it may want
// credentials.
func probe(ctx context.Context, s server) Result {
	r := Result{Area: "registries", Check: s.url, Status: Warning}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	u, err := url.Parse(s.url)
	if err != nil || u.Hostname() == "" {
		r.Found, r.Fix = "it is not an address such as https://registry.example.com", "mend its hosts.toml"
		return r
	}
	if _, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err != nil {
		r.Found, r.Fix = "its name cannot be looked up: "+err.Error(), "check /etc/resolv.conf and the name"
		return r
	}
	client := &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{InsecureSkipVerify: s.skipVerify}, DisableKeepAlives: true},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Scheme+"://"+u.Host+"/v2/", nil)
	if err != nil {
		r.Found = err.Error()
		return r
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		var certificate *tls.CertificateVerificationError
		r.Found, r.Fix = "it does not answer: "+err.Error(), "check the network, a proxy (HTTPS_PROXY) and the registry"
		if errors.As(err, &certificate) && !s.skipVerify {
			// The daemon may have a CA of its own for it.
			r.Status, r.Found, r.Fix = Info, "it answers with a certificate that this host does not trust: "+certificate.Err.Error(), "give its hosts.toml the ca"
		}
		return r
	}
	resp.Body.Close()
	r.Status, r.Found = OK, fmt.Sprintf("answers in %s", time.Since(start).Round(time.Millisecond))
	return r
}
