package image_test

import (
	"testing"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestRewriteConfig(t *testing.T) {
	rootFS := ispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("x")}}
	got, err := image.RewriteConfig([]byte(`{"os":"linux","x":{"y":[1]},"config":{"Image":"old","Env":[]}}`), rootFS, []string{"erofs"}, true)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"os": `"linux"`, "x": `{"y":[1]}`, "config": `{"Env":[]}`, "os.features": `["erofs"]`,
		"rootfs": `{"type":"layers","diff_ids":["` + rootFS.DiffIDs[0].String() + `"]}`,
	} {
		if string(got[key]) != want {
			t.Errorf("%s: %s, want %s", key, got[key], want)
		}
	}
	for _, doc := range []string{"null", "[]", "", "3"} {
		if _, err := image.RewriteConfig([]byte(doc), rootFS, []string{"erofs"}, true); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", doc, err)
		}
	}
}
