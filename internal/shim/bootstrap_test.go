package shim

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func params() []byte {
	var b []byte
	str := func(n protowire.Number, v string) {
		b = protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	str(1, "id")
	str(2, "ns")
	level := int32(logLevelDebug)
	b = protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), uint64(int64(level)))
	str(4, "v2.4.2")
	str(5, "/run/d.sock.ttrpc")
	str(6, "/run/d.sock")
	str(7, "/usr/bin/containerd")
	str(8, "\n\x00")
	str(9, "/run/s")
	return b
}

func TestDecodeBootstrap(t *testing.T) {
	b, ok := decodeBootstrap(params(), "id", "ns")
	if !ok || b.id != "id" || b.namespace != "ns" || b.address != "/run/d.sock" || b.ttrpcAddress != "/run/d.sock.ttrpc" || b.socketDir != "/run/s" || !b.debug {
		t.Errorf("%+v, %v", b, ok)
	}
	for name, raw := range map[string][]byte{"empty": nil, "truncated": params()[:10], "options": mustMarshal(t, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{8, 1}})} {
		if _, ok := decodeBootstrap(raw, "id", "ns"); ok {
			t.Errorf("%s: taken for parameters", name)
		}
	}
	if _, ok := decodeBootstrap(params(), "other", "ns"); ok {
		t.Error("parameters for another shim are taken")
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func FuzzBootstrap(f *testing.F) {
	f.Add(params())
	f.Add([]byte{0x0a, 0x02, 'i', 'd', 0x12, 0x02, 'n', 's', 0x3d})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b, ok := decodeBootstrap(raw, "id", "ns"); ok && (b.id != "id" || b.namespace != "ns") {
			t.Errorf("%+v", b)
		}
	})
}

func TestReplies(t *testing.T) {
	raw, err := flagReply("")("unix:///s")
	if err != nil || string(raw) != "unix:///s" {
		t.Errorf("%q, %v", raw, err)
	}
	for max, want := range map[string]int{"2": 2, "3": 3, "9": 3} {
		raw, err := flagReply(max)("unix:///s")
		var got struct {
			Version           int
			Address, Protocol string
		}
		if err != nil || json.Unmarshal(raw, &got) != nil || got.Version != want || got.Address != "unix:///s" || got.Protocol != "ttrpc" {
			t.Errorf("MAX_SHIM_VERSION=%s: %s, %v", max, raw, err)
		}
	}
	for _, max := range []string{"1", "x"} {
		if _, err := flagReply(max)("unix:///s"); err == nil {
			t.Errorf("MAX_SHIM_VERSION=%s is taken", max)
		}
	}
	raw, err = protobufReply("unix:///s")
	want := []byte("\x08\x03\x12\tunix:///s\x1a\x05ttrpc")
	if err != nil || !bytes.Equal(raw, want) {
		t.Errorf("%q, %v; want %q", raw, err, want)
	}
}

func TestGroup(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		`{}`: "id",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`:                                     "pod",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"grp"}}`: "grp",
	} {
		path := filepath.Join(dir, "config.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := groupOf(path, "id"); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", content, got, err, want)
		}
	}
}

func TestInfo(t *testing.T) {
	var out bytes.Buffer
	if err := Info("io.containerd.runc.v2", "v1", "r", strings.NewReader(""), &out); err != nil {
		t.Fatal(err)
	}
	info := new(types.RuntimeInfo)
	if err := proto.Unmarshal(out.Bytes(), info); err != nil {
		t.Fatal(err)
	}
	if info.Name != "io.containerd.runc.v2" || info.Annotations[serveAnnotation] != "1" {
		t.Errorf("%v", info)
	}
	var features struct{ MountOptions, Hooks []string }
	if err := json.Unmarshal(info.Features.Value, &features); err != nil || len(features.Hooks) == 0 {
		t.Errorf("features %s: %v", info.Features.Value, err)
	}
	bad := mustMarshal(t, &anypb.Any{TypeUrl: "some.other.Options"})
	if err := Info("n", "v", "r", bytes.NewReader(bad), &out); err == nil {
		t.Error("options of another type are taken")
	}
}

func TestSpecErrors(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		`not JSON`:                         "not an OCI runtime configuration",
		`{"linux":{},"root":{"path":"/"}}`: "has no process",
		`{"process":{},"root":{}}`:         "has no linux section",
		`{"process":{},"linux":{}}`:        "names no root filesystem",
	} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := loadSpec(dir, newLog(&bytes.Buffer{}, false)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
}
