package compat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/containerd/containerd/api/services/containers/v1"
	_ "github.com/containerd/containerd/api/services/content/v1"
	_ "github.com/containerd/containerd/api/services/diff/v1"
	_ "github.com/containerd/containerd/api/services/events/v1"
	_ "github.com/containerd/containerd/api/services/images/v1"
	_ "github.com/containerd/containerd/api/services/introspection/v1"
	_ "github.com/containerd/containerd/api/services/leases/v1"
	_ "github.com/containerd/containerd/api/services/mounts/v1"
	_ "github.com/containerd/containerd/api/services/namespaces/v1"
	_ "github.com/containerd/containerd/api/services/sandbox/v1"
	_ "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/api/services/streaming/v1"
	_ "github.com/containerd/containerd/api/services/tasks/v1"
	_ "github.com/containerd/containerd/api/services/transfer/v1"
	_ "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// methods are all that the proto files of the API module, and of gRPC's health
// service, have.
func methods() map[string]protoreflect.MethodDescriptor {
	all := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if p := string(f.Package()); !strings.HasPrefix(p, "containerd.services.") && p != "grpc.health.v1" || strings.Contains(p, ".ttrpc.") {
			return true
		}
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				all[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
			}
		}
		return true
	})
	return all
}

// method finds one by its last two names, as in Containers/Get.
func method(t testing.TB, short string) (string, protoreflect.MethodDescriptor) {
	t.Helper()
	for name, m := range methods() {
		if strings.HasSuffix(name, "."+short) {
			return name, m
		}
	}
	t.Fatalf("no method %s", short)
	return "", nil
}

// call is one call of the API: the request, or several for a stream, in the text
// form of protobuf messages. $DIR stands for the node's directory, $SPEC for an OCI spec.
type call struct {
	method string
	// ns is the namespace, none if empty; lease as well.
	ns, lease string
	requests  []string
}

// answer is what came back, with all that differs from daemon to daemon made equal.
type answer struct {
	Code     codes.Code
	Messages []any
	message  string // of the error, not compared
}

func (a answer) String() string {
	b, _ := json.Marshal(a.Messages)
	s := fmt.Sprintf("%v %s", a.Code, b)
	if a.message != "" {
		s += " (" + a.message + ")"
	}
	return s
}

func dialNode(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// do makes the call and reads all answers.
func (c call) do(t testing.TB, conn *grpc.ClientConn, replace *strings.Replacer, undo *strings.Replacer) answer {
	t.Helper()
	full, m := method(t, c.method)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if c.ns != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.ns)
	}
	if c.lease != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "containerd-lease", c.lease)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, full)
	if err != nil {
		t.Fatal(err)
	}
	requests := c.requests
	if len(requests) == 0 {
		requests = []string{""}
	}
	for _, r := range requests {
		req := dynamicpb.NewMessage(m.Input())
		if err := prototext.Unmarshal([]byte(replace.Replace(r)), req); err != nil {
			t.Fatalf("%s: %v", c.method, err)
		}
		if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	stream.CloseSend()
	var a answer
	var whole *dynamicpb.Message // a list that comes in pieces, whose cuts do not matter
	for {
		resp := dynamicpb.NewMessage(m.Output())
		err := stream.RecvMsg(resp)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.Code, a.message = status.Code(err), status.Convert(err).Message()
			}
			break
		}
		if m.IsStreamingServer() && !m.IsStreamingClient() && inPieces(m.Output()) {
			data := m.Output().Fields().ByName("data")
			isData := data != nil && data.Kind() == protoreflect.BytesKind
			if isData {
				resp.Clear(m.Output().Fields().ByName("offset"))
			}
			if whole == nil {
				whole = resp
				continue
			}
			if isData {
				resp.Set(data, protoreflect.ValueOfBytes(append(whole.Get(data).Bytes(), resp.Get(data).Bytes()...)))
			}
			proto.Merge(whole, resp)
			continue
		}
		a.Messages = append(a.Messages, normal(resp, undo))
	}
	if whole != nil {
		a.Messages = append(a.Messages, normal(whole, undo))
	}
	return a
}

// inPieces tells messages that are parts of a list, or of bytes.
func inPieces(m protoreflect.MessageDescriptor) bool {
	for i := range m.Fields().Len() {
		if f := m.Fields().Get(i); f.IsList() || f.Kind() == protoreflect.BytesKind {
			return true
		}
	}
	return false
}

var (
	numbers = regexp.MustCompile(`/(snapshots|t)/[0-9]+`)
	// changing fields differ between two daemons, and between two runs of one.
	changing = []string{"pid", "shim_pid", "uuid", "pidns", "version", "build_version"}
)

// normal turns a message into what JSON shows, and equal for both daemons.
func normal(m protoreflect.Message, undo *strings.Replacer) any {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Timestamp":
		if m.Get(m.Descriptor().Fields().ByName("seconds")).Int() <= 0 {
			return "no time"
		}
		return "a time"
	case "google.protobuf.Any":
		url := m.Get(m.Descriptor().Fields().ByName("type_url")).String()
		value := string(m.Get(m.Descriptor().Fields().ByName("value")).Bytes())
		if strings.Contains(url, "Metrics") || strings.Contains(url, "RuntimeInfo") {
			return url
		}
		return map[string]string{"type_url": url, "value": undo.Replace(value)}
	}
	out := make(map[string]any)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		one := func(v protoreflect.Value) any {
			switch f.Kind() {
			case protoreflect.MessageKind:
				return normal(v.Message(), undo)
			case protoreflect.StringKind:
				return numbers.ReplaceAllString(undo.Replace(v.String()), "/$1/N")
			case protoreflect.BytesKind:
				return undo.Replace(string(v.Bytes()))
			}
			return fmt.Sprint(v.Interface())
		}
		switch {
		case name == "revision":
			// A program that is built outside of a checkout has none.
		case slices.Contains(changing, name):
			out[name] = "changing"
		case f.IsMap():
			entries := make(map[string]any)
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if f.MapValue().Kind() == protoreflect.MessageKind {
					entries[k.String()] = normal(v.Message(), undo)
				} else {
					entries[k.String()] = undo.Replace(fmt.Sprint(v.Interface()))
				}
				return true
			})
			out[name] = entries
		case f.IsList():
			list := []any{}
			for i := range v.List().Len() {
				list = append(list, one(v.List().Get(i)))
			}
			out[name] = list
		default:
			out[name] = one(v)
		}
		return true
	})
	return out
}
