package image

import (
	"strings"
	"testing"

	distref "github.com/distribution/reference"
)

// FuzzName: what the reference implementation of the grammar says, is said here.
func FuzzName(f *testing.F) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, s := range []string{
		"", "a", "alpine:3", "docker.io/library/alpine", "index.docker.io/a", "docker.io/a/b", "library/a", "localhost/a", "localhost:5000", "localhost:5000/a:b",
		"127.0.0.1:5000/a/b:v1@sha256:" + hex, "a@sha256:" + hex, "a@sha256:" + hex[1:], "a@sha512:" + hex, "a@md5:" + hex[:32], "a@b@c", "a@", "a:", ":a", "a:b:c",
		"A/b", "A/B", "a/B", "Up.example/x", "[::1]:80/a", "[::1]/a", "[]/a", "[::1", "a.b./c", "a..b/c", "-a/b", "a-/b", "a-b/c", "a--b", "a---b", "a__b", "a___b", "a_b", "_a", "a_", "a._b", "a..b",
		"a//b", "/a", "a/", "a/:b", "a.b:/c", "a.b:x/c", "a.b:1x/c", hex, "x" + hex, "docker.io/" + hex, strings.Repeat("a", 256), "h.x/" + strings.Repeat("a", 255), "h.x/" + strings.Repeat("a", 256),
		"a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), "a:.t", "a:-t", "a:_t", "a:t.-_", "a/b/c/d", "é", "a:é", "0Ş000", "a b", "a.b/c_d/e", "a_b/c", "a.b:5000", "library/a/b", "docker.io/library/a/b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, wantErr := distref.Parse(s)
		n, err := ParseName(s)
		if _, named := want.(distref.Named); wantErr == nil && !named {
			wantErr = distref.ErrReferenceInvalidFormat // a digest alone
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %v, want %v", s, err, wantErr)
		}
		if err == nil && (n.String() != want.String() || n.Domain != distref.Domain(want.(distref.Named)) || n.Path != distref.Path(want.(distref.Named))) {
			t.Fatalf("%q: %+v, want %v", s, n, want)
		}
		named, wantErr := distref.ParseNormalizedNamed(s)
		n, err = ParseDockerName(s)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q as Docker takes it: %v, want %v", s, err, wantErr)
		}
		if err != nil {
			return
		}
		if n.String() != named.String() || n.Familiar() != distref.FamiliarString(named) || n.Tagged().String() != distref.TagNameOnly(named).String() {
			t.Fatalf("%q as Docker takes it: %+v, want %v", s, n, named)
		}
	})
}
