package registry

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestCovered(t *testing.T) {
	want := []string{"repository:a/b:pull,push"}
	for s, ok := range map[string]bool{"repository:a/b:pull": true, "repository:a/b:push,pull": true, "repository:a/b:delete": false, "repository:a:pull": false, "x": false} {
		if covered(s, want) != ok {
			t.Errorf("%s: %v", s, !ok)
		}
	}
}

func TestRealm(t *testing.T) {
	a := authorizer{host: &host{name: "r.example", scheme: "https"}}
	for s, ok := range map[string]bool{
		"https://auth.corp.internal/token": true, "https://10.1.2.3/token": true, "http://auth.example/token": false,
		"https://169.254.169.254/latest": false, "https://u:p@auth.example/": false, "file:///etc/passwd": false, "": false, "/token": false,
	} {
		if _, err := a.realm(s); (err == nil) != ok || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("server = \"https://r.example\"\n[host.\"http://m.example:5000/v2/x\"]\ncapabilities = [\"pull\"]\nca = [\"a\"]\nclient = [[\"a\", \"b\"], [\"c\"]]\n[host.\"http://m.example:5000/v2/x\".header]\na = [\"b\"]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := parseHosts("/certs", b)
		if err == nil && len(hosts) == 0 {
			t.Error("no host and no error")
		}
		for _, h := range hosts {
			if h.base != nil && (h.base.Host == "" || h.base.User != nil) {
				t.Errorf("%v was accepted", h.base)
			}
		}
	})
}

func FuzzReference(f *testing.F) {
	f.Add("127.0.0.1:5000/a/b:c@sha256:0000000000000000000000000000000000000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q: %+v, then %+v, %v", s, r, again, err)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 0-0/*")
	f.Add("bytes 0-0/-5")
	f.Fuzz(func(t *testing.T, s string) {
		if first, total, ok := contentRange(s); ok && (first < 0 || total < -1) {
			t.Errorf("%q: %d of %d", s, first, total)
		}
	})
}
