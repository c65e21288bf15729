package dockerconfig

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/registry"

	"github.com/containerd/errdefs"
)

func TestAuths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	os.WriteFile(file, []byte(`{"auths": {
		"https://index.docker.io/v1/": {"auth": "am9lOnMzY3JldDpy"},
		"r.example:5000": {"username": "ann", "password": "pw"},
		"https://scheme.example/v1/": {"auth": "YTpi"},
		"token.example": {"auth": "PHRva2VuPjo=", "identitytoken": "id"},
		"bad.example": {"auth": "%%%"}}}`), 0o600)
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]registry.Credentials{
		"registry-1.docker.io": {Username: "joe", Secret: "s3cret:r"}, "docker.io": {Username: "joe", Secret: "s3cret:r"},
		"r.example:5000": {Username: "ann", Secret: "pw"}, "scheme.example": {Username: "a", Secret: "b"}, "token.example": {Secret: "id"},
		"r.example": {}, "other.example": {}, "example": {},
	} {
		got, err := c.Credentials(t.Context(), "", host)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
		if c.Knows(host) != (want != registry.Credentials{}) {
			t.Errorf("%s: Knows is wrong", host)
		}
	}
	if _, err := c.Credentials(t.Context(), "", "bad.example"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), file) {
		t.Errorf("auth that is not base64: %v", err)
	}
	if c, err := Load(filepath.Join(dir, "none")); err != nil || c.Knows("docker.io") {
		t.Error("no file:", err)
	}
	os.WriteFile(file, []byte("{"), 0o600)
	if _, err := Load(file); !errdefs.IsInvalidArgument(err) {
		t.Error("a broken file:", err)
	}
}

func TestHelpers(t *testing.T) {
	dir := t.TempDir()
	helper := func(name, script string) {
		os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	helper("good", `read s; [ "$1" = get ] && echo "{\"ServerURL\":\"$s\",\"Username\":\"joe\",\"Secret\":\"of $s\"}"`)
	helper("token", `echo '{"Username":"<token>","Secret":"id"}'`)
	helper("none", `echo "credentials not found in native keychain"; exit 1`)
	helper("fails", `echo s3cret; echo "no keychain" >&2; exit 3`)
	helper("endless", `exec yes`)
	helper("huge", `head -c 1000000 /dev/zero`)
	c := &Config{
		CredsStore:  "none",
		CredHelpers: map[string]string{"good.example": "good", dockerHub: "good", "token.example": "token", "fails.example": "fails", "huge.example": "huge", "bad.example": "../x", "gone.example": "gone", "endless.example": "endless"},
		Auths:       map[string]auth{"file.example": {Username: "f", Password: "p"}},
	}
	for host, want := range map[string]registry.Credentials{
		"good.example": {Username: "joe", Secret: "of good.example"}, "docker.io": {Username: "joe", Secret: "of " + dockerHub},
		"token.example": {Secret: "id"}, "file.example": {Username: "f", Secret: "p"}, "other.example": {},
	} {
		got, err := c.Credentials(t.Context(), "", host)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	for host, says := range map[string]string{"fails.example": "no keychain", "huge.example": "more than", "bad.example": "not a name", "gone.example": "docker-credential-gone"} {
		_, err := c.Credentials(t.Context(), "", host)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", host, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Credentials(ctx, "", "endless.example"); err == nil || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("a helper without end: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"auths":{"a":{"auth":"YTpi"}},"credHelpers":{"b":"c"},"credsStore":"d"}`))
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"identitytoken":"x"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		for host := range c.Auths {
			c.Knows(host)
			c.entry(host).credentials()
		}
	})
}
