package registry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/registry"
	"berth/internal/registry/registrytest"

	"github.com/containerd/errdefs"
)

func TestTokensExpire(t *testing.T) {
	srv := registrytest.New(t)
	put(srv, 100)
	ts := registrytest.NewTokenServer(t, "", "")
	ts.SetLife(3600)
	srv.RequireToken(ts)
	r := remote(t, srv.Host+"/a/b:v1")
	for range 3 {
		if _, err := r.Resolve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Pushing wants another scope: its token is there before anything is sent.
	if err := pushed(t, r, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if n := len(ts.Asked()); n != 2 {
		t.Errorf("tokens were asked for %d times: %q", n, ts.Asked())
	}
	for _, q := range srv.Requests()[1:] {
		if q.Authorization == "" {
			t.Errorf("%s %s was sent without the token", q.Method, q.Path)
		}
	}
}

func TestTokenByOAuth(t *testing.T) {
	for name, tc := range map[string]struct {
		creds registry.Credentials
		setup func(*registrytest.TokenServer)
		kind  func(error) bool
	}{
		"GET is not known":              {registry.Credentials{Username: "joe", Secret: secret}, (*registrytest.TokenServer).OnlyOAuth, nil},
		"GET is not known, wrong login": {registry.Credentials{Username: "joe", Secret: "wrong"}, (*registrytest.TokenServer).OnlyOAuth, errdefs.IsUnauthorized},
		"identity token":                {registry.Credentials{Secret: secret}, func(*registrytest.TokenServer) {}, nil},
		"identity token, wrong":         {registry.Credentials{Secret: "wrong"}, func(*registrytest.TokenServer) {}, errdefs.IsUnauthorized},
		"POST is not known": {registry.Credentials{Username: "joe", Secret: secret}, func(ts *registrytest.TokenServer) {
			ts.AddFault(registrytest.Fault{Method: "POST", Do: registrytest.Status(405)})
		}, nil},
		"the server is down": {registry.Credentials{Username: "joe", Secret: secret}, func(ts *registrytest.TokenServer) { ts.AddFault(registrytest.Fault{Do: registrytest.Status(503)}) }, errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			srv := registrytest.New(t)
			put(srv, 100)
			ts := registrytest.NewTokenServer(t, "joe", secret)
			tc.setup(ts)
			srv.RequireToken(ts)
			_, err := remote(t, srv.Host+"/a/b:v1", creds(tc.creds)).Resolve(t.Context())
			if tc.kind == nil && err != nil || tc.kind != nil && (!tc.kind(err) || strings.Contains(err.Error(), secret)) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The scopes of a mount are asked for together.
func TestMountScopes(t *testing.T) {
	srv := registrytest.New(t)
	blob := srv.AddBlob("", []byte("there"))
	srv.AddFault(registrytest.Fault{Method: "HEAD", Do: registrytest.Status(404)})
	ts := registrytest.NewTokenServer(t, "", "")
	srv.RequireToken(ts)
	existed, err := remote(t, srv.Host+"/a/b:v1").Push(t.Context(), registry.Upload{Desc: blob, MountFrom: "other/repo"})
	if err != nil || !existed {
		t.Fatal(existed, err)
	}
	asked := ts.Asked()
	if last := asked[len(asked)-1]; !strings.Contains(last, "repository:a/b:pull,push") || !strings.Contains(last, "repository:other/repo:pull") {
		t.Errorf("asked for %q", asked)
	}
}

func TestCredentialsOfEachHost(t *testing.T) {
	mirror, upstream := registrytest.New(t), registrytest.New(t)
	put(mirror, 10)
	mirror.RequireBasic("joe", "mirror's")
	var asked []string
	r := remote(t, "registry.example/a/b:v1", func(o *registry.Options) {
		o.HostDir = mirrored(t, upstream.Host, mirror.Host)
		o.Credentials = func(_ context.Context, ref, host string) (registry.Credentials, error) {
			asked = append(asked, ref+" "+host)
			return registry.Credentials{Username: "joe", Secret: "mirror's"}, nil
		}
	})
	if _, err := r.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0] != "registry.example/a/b:v1 "+mirror.Host {
		t.Errorf("asked for the credentials of %q", asked)
	}
}

// A directory without hosts.toml is laid out as Docker's are.
func TestClientCertificates(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Content-Length", "10")
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateKey(t, srv.TLS.Certificates[0])})
	for name, files := range map[string]map[string]string{
		"docker's layout":     {"ca.crt": string(cert), "client.cert": string(cert), "client.key": string(key)},
		"one file":            {"ca.crt": string(cert), "client.cert": string(cert) + string(key)},
		"hosts.toml, pair":    {"hosts.toml": "ca = \"x/ca.pem\"\nclient = [[\"c.pem\", \"k.pem\"]]\n", "x/ca.pem": string(cert), "c.pem": string(cert), "k.pem": string(key)},
		"hosts.toml, list":    {"hosts.toml": "ca = [\"ca.pem\"]\nclient = [\"both.pem\"]\ncapabilities = []\n", "ca.pem": string(cert), "both.pem": string(cert) + string(key)},
		"hosts.toml, string":  {"hosts.toml": "ca = \"ca.pem\"\nclient = \"both.pem\"\n", "ca.pem": string(cert), "both.pem": string(cert) + string(key)},
		"hosts.toml, of host": {"hosts.toml": "[host.\"https://" + host + "\"]\nca = \"ca.pem\"\nclient = \"both.pem\"\ndial_timeout = \"3s\"\n", "ca.pem": string(cert), "both.pem": string(cert) + string(key)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, dirName := range []string{strings.Replace(host, ":", "_", 1) + "_", host, "_default"} {
				hosts := t.TempDir()
				for f, s := range files {
					full := filepath.Join(hosts, dirName, f)
					os.MkdirAll(filepath.Dir(full), 0o700)
					os.WriteFile(full, []byte(s), 0o600)
				}
				if _, err := remote(t, host+"/a/b:v1", func(o *registry.Options) { o.HostDir = hosts }).Resolve(t.Context()); err != nil {
					t.Errorf("%s: %v", dirName, err)
				}
			}
		})
	}
	if _, err := remote(t, host+"/a/b:v1").Resolve(t.Context()); err == nil {
		t.Error("it lets everybody in")
	}
}

func privateKey(t *testing.T, c tls.Certificate) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
