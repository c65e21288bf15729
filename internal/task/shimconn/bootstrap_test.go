package shimconn

import (
	"encoding/json"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func bootstrapSeeds(t testing.TB) map[string][]byte {
	r := &bootapi.BootstrapResult{
		Version: 3, Address: "unix:///run/containerd/s/0123", Protocol: "ttrpc",
		Extensions: []*bootapi.Extension{{Value: &anypb.Any{TypeUrl: "x", Value: []byte{1, 2}}}},
	}
	message, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"message": message, "JSON": text, "spaced JSON": append([]byte("\n "), text...)}
}

func TestParseBootstrap(t *testing.T) {
	for name, b := range bootstrapSeeds(t) {
		r, err := ParseBootstrap(b)
		if err != nil || r.Version != 3 || r.Address != "unix:///run/containerd/s/0123" || r.Protocol != "ttrpc" || len(r.Extensions) != 1 {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	for _, line := range []string{"unix:///run/containerd/s/0123", "unix:///run/containerd/s/0123\n", "/containerd-shim/ns/id/shim.sock"} {
		r, err := ParseBootstrap([]byte(line))
		if err != nil || r.Version != 2 || r.Protocol != "ttrpc" || r.Address != strings.TrimSpace(line) {
			t.Errorf("%q: %v, %v", line, r, err)
		}
	}
	for _, bad := range []string{
		"", " \n", `{`, `{"version":3}`, `{"version":3,"address":"unix:///x","protocol":"smoke"}`,
		`{"version":1,"address":"unix:///x"}`, `{"version":2,"address":"unix:///x","protocol":"grpc"}`,
		"two\nlines", "\x08\xff", "\x08\x03", strings.Repeat("x", MaxBootstrap+1),
	} {
		if r, err := ParseBootstrap([]byte(bad)); err == nil {
			t.Errorf("%.40q is taken for %v", bad, r)
		}
	}
	if _, err := ParseBootstrap([]byte(`{"version":4,"address":"unix:///x"}`)); !errdefs.IsNotImplemented(err) {
		t.Errorf("a future version: %v, want NotImplemented", err)
	}
}

func FuzzParseBootstrap(f *testing.F) {
	for _, b := range bootstrapSeeds(f) {
		f.Add(b)
	}
	f.Add([]byte("unix:///run/containerd/s/0123\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseBootstrap(b)
		if err != nil {
			return
		}
		if r.Version < 2 || r.Version > NewestVersion || r.Address == "" || r.Protocol != "ttrpc" && r.Protocol != "grpc" {
			t.Errorf("%q is taken for %v", b, r)
		}
		saved, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseBootstrap(saved)
		if err != nil || again.Version != r.Version || again.Protocol != r.Protocol {
			t.Errorf("%s, as saved, reads %v, %v", saved, again, err)
		}
	})
}
