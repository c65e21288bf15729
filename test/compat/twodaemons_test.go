package compat

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// twoDaemons are a daemon of ours and one of theirs, of which the same is asked.
type twoDaemons struct {
	ours, theirs *grpc.ClientConn
	calls, bad   int
}

// startBoth starts them with the lines added to their configuration.
func startBoth(t *testing.T, config string) *twoDaemons {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	return &twoDaemons{ours: startOne(t, oursBin, config), theirs: startOne(t, peerBin, config)}
}

func startOne(t *testing.T, bin, extra string) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-compat-")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = "%[1]s/c.sock"
[ttrpc]
address = "%[1]s/c.sock.ttrpc"
[plugins.'io.containerd.internal.v1.opt']
path = "%[1]s/opt"
[plugins.'io.containerd.gc.v1.scheduler']
startup_delay = "1h"
%[2]s
`, dir, extra)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", dir+"/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() && testing.Verbose() {
			t.Logf("the log of %s:\n%.4000s", bin, log.String())
		}
		os.RemoveAll(dir)
	})
	conn, err := grpc.NewClient("unix://"+dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("%s does not start: %v", bin, err)
	}
	return conn
}

// askBoth calls a method of both and compares code and answer. The answer of ours
// is returned, nil when it was an error.
func askBoth[Req, Resp proto.Message](t *testing.T, b *twoDaemons, ctx context.Context, what string, method func(grpc.ClientConnInterface) func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (resp Resp, ok bool) {
	t.Helper()
	b.calls++
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ours, oerr := method(b.ours)(ctx, proto.CloneOf(req))
	theirs, terr := method(b.theirs)(ctx, proto.CloneOf(req))
	switch {
	case status.Code(terr) == codes.Unavailable:
		t.Fatalf("containerd has died of %s %s: %v", what, text(req), terr)
	case status.Code(terr) == codes.Unknown && (status.Code(oerr) == codes.InvalidArgument || status.Code(oerr) == codes.NotFound):
		// Better: theirs is bolt's bare error.
	case terr == nil && strings.Contains(status.Convert(oerr).Message(), "error parsing regexp"):
		// Better: theirs takes it, and finds nothing.
	case status.Code(oerr) != status.Code(terr):
		b.differ(t, "%s %s\n  ours:   %v %v\n  theirs: %v %v", what, text(req), status.Code(oerr), oerr, status.Code(terr), terr)
	case oerr == nil:
		plain(ours.ProtoReflect())
		plain(theirs.ProtoReflect())
		if !proto.Equal(ours, theirs) {
			b.differ(t, "%s %s\n  ours:   %s\n  theirs: %s", what, text(req), text(ours), text(theirs))
		}
	}
	return ours, oerr == nil
}

// forget deletes what there is after a difference, so that it has no others for
// a consequence.
func (b *twoDaemons) forget(t *testing.T, before int, ids func(context.Context, grpc.ClientConnInterface) []string, remove func(context.Context, grpc.ClientConnInterface, string) error) {
	t.Helper()
	if b.bad == before {
		return
	}
	for _, conn := range []grpc.ClientConnInterface{b.ours, b.theirs} {
		for _, ns := range []string{"a", "b"} {
			ctx := namespaced(t, ns)
			for _, id := range ids(ctx, conn) {
				if err := remove(ctx, conn, id); err != nil {
					t.Fatalf("remove %s: %v", id, err)
				}
			}
		}
	}
}

func (b *twoDaemons) differ(t *testing.T, format string, args ...any) {
	t.Helper()
	if b.bad++; b.bad <= 60 {
		t.Errorf(format, args...)
	}
}

func text(m proto.Message) string {
	return prototext.MarshalOptions{}.Format(m)
}

// plain makes what may differ equal: times that are set are set to the same.
func plain(m protoreflect.Message) {
	if ts, ok := m.Interface().(*timestamppb.Timestamp); ok {
		if ts.AsTime().Year() > 1970 {
			ts.Seconds, ts.Nanos = 1, 0
		}
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					plain(v.Message())
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				plain(v.List().Get(i).Message())
			}
		default:
			plain(v.Message())
		}
		return true
	})
}

func namespaced(t *testing.T, namespace string, more ...string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), append([]string{"containerd-namespace", namespace}, more...)...)
}

// choices draws from values.
type choices struct{ *rand.Rand }

func pick[T any](c choices, from ...T) T { return from[c.IntN(len(from))] }

func (c choices) labels() map[string]string {
	switch c.IntN(8) {
	case 0, 1:
		return nil
	case 2:
		return map[string]string{"": "v"}
	case 3:
		return map[string]string{"empty": "", "k": "v"}
	case 4:
		return map[string]string{"long": strings.Repeat("x", pick(c, 4000, 4091, 4092, 4093, 5000))}
	}
	return map[string]string{"k": pick(c, "v", "w"), "a.b/c": pick(c, "1", "2", ""), "other": "x"}
}

func (c choices) any() *anypb.Any {
	switch c.IntN(6) {
	case 0:
		return nil
	case 1:
		return &anypb.Any{}
	}
	return &anypb.Any{TypeUrl: pick(c, "types.example.com/a", "b"), Value: []byte(pick(c, "", "1", "22"))}
}

func (c choices) extensions() map[string]*anypb.Any {
	switch c.IntN(5) {
	case 0, 1:
		return nil
	case 2:
		return map[string]*anypb.Any{"": {TypeUrl: "x"}}
	}
	return map[string]*anypb.Any{"e.x": {TypeUrl: "e", Value: []byte(pick(c, "1", "2"))}, pick(c, "f", "g"): {TypeUrl: "f"}}
}

func (c choices) id() string {
	if c.IntN(10) > 0 {
		return pick(c, "one", "two", "three", "four")
	}
	return pick(c, "", "a b", "-a", "a-", "a..b", "a/b", "ä", strings.Repeat("a", 76), strings.Repeat("a", 77), "A_b-c.d", "a__b", "version")
}

// mask is nil, or of some of these paths.
func (c choices) mask(paths ...string) *fieldmaskpb.FieldMask {
	switch c.IntN(6) {
	case 0:
		return nil
	case 1:
		return &fieldmaskpb.FieldMask{}
	}
	m := &fieldmaskpb.FieldMask{}
	for range 1 + c.IntN(3) {
		m.Paths = append(m.Paths, pick(c, paths...))
	}
	return m
}

func (c choices) filters() []string {
	if c.IntN(3) == 0 {
		return nil
	}
	var fs []string
	for range 1 + c.IntN(2) {
		field := pick(c, "id", "name", "image", "runtime.name", "runtime", "snapshotter", "labels.k", `labels."a.b/c"`, "labels", "labels.none", "nothing", "target.digest",
			"target.mediatype", "target", "annotations.note", "sandboxer", "kind", "parent", "size", "digest", "labels.a.b", "sandbox", "id.x", "name.x", "spec", "ref")
		fs = append(fs, pick(c, "", field, field+"=="+pick(c, "one", "v", `""`, "1", "overlayfs"), field+"!="+pick(c, "one", "v", `""`), field+"~="+pick(c, "o", "^t", `""`, "/e$/"),
			field+"==one,labels.k==v", field+"=", field+"==", ","+field, field+" == v"))
	}
	return fs
}
