package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	api "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeContainers does what a test wants in the place of a method.
type fakeContainers struct {
	containersapi.UnimplementedContainersServer
	get  func(context.Context) error
	list func(context.Context) error
}

func (f fakeContainers) Get(ctx context.Context, _ *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	return &containersapi.GetContainerResponse{}, f.get(ctx)
}

func (f fakeContainers) ListStream(_ *containersapi.ListContainersRequest, stream containersapi.Containers_ListStreamServer) error {
	return f.list(stream.Context())
}

// serveAPI serves on a socket until the test ends.
func serveAPI(t *testing.T, log *slog.Logger, register func(*grpc.Server, context.Context)) (*Server, *grpc.ClientConn) {
	t.Helper()
	stopping, stop := context.WithCancelCause(context.Background())
	around := interceptors{log: log, stopping: stopping, calls: new(atomic.Int64), activity: func(bool) {}}
	s := &Server{grpc.NewServer(grpc.ChainUnaryInterceptor(around.unary), grpc.ChainStreamInterceptor(around.stream)), stop}
	register(s.Server, stopping)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		served.Wait()
	})
	return s, conn
}

func in(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, namespaceHeader, namespace)
}

func TestScope(t *testing.T) {
	var seen Scope
	see := func(ctx context.Context) error {
		seen = ScopeOf(ctx)
		return nil
	}
	_, conn := serveAPI(t, slog.New(slog.DiscardHandler), func(s *grpc.Server, stopping context.Context) {
		containersapi.RegisterContainersServer(s, fakeContainers{get: see, list: see})
		versionapi.RegisterVersionServer(s, versionService{version: "v1"})
	})
	client := containersapi.NewContainersClient(conn)
	unary := func(ctx context.Context) error {
		_, err := client.Get(ctx, &containersapi.GetContainerRequest{})
		return err
	}
	streaming := func(ctx context.Context) error {
		stream, err := client.ListStream(ctx, &containersapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		if _, err = stream.Recv(); err == io.EOF {
			return nil
		}
		return err
	}
	for name, call := range map[string]func(context.Context) error{"unary": unary, "stream": streaming} {
		t.Run(name, func(t *testing.T) {
			if err := call(metadata.AppendToOutgoingContext(in(t.Context(), "ns"), leaseHeader, "l1")); err != nil {
				t.Fatal(err)
			}
			if want := (Scope{"ns", "l1"}); seen != want {
				t.Errorf("scope %+v, want %+v", seen, want)
			}
			for namespace, want := range map[string]struct {
				code codes.Code
				text string
			}{
				"":                      {codes.FailedPrecondition, "namespace is required: failed precondition"},
				"a b":                   {codes.InvalidArgument, `identifier "a b" must match`},
				"../x":                  {codes.InvalidArgument, "must match"},
				"a__b":                  {codes.InvalidArgument, "must match"},
				"a.-b":                  {codes.InvalidArgument, "must match"},
				strings.Repeat("x", 77): {codes.InvalidArgument, "greater than maximum length (76 characters)"},
			} {
				err := call(in(t.Context(), namespace))
				if status.Code(err) != want.code || !strings.Contains(err.Error(), want.text) {
					t.Errorf("namespace %q: %v, want %v %q", namespace, err, want.code, want.text)
				}
			}
			if err := call(t.Context()); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("no namespace: %v", err)
			}
		})
	}
	if _, err := versionapi.NewVersionClient(conn).Version(t.Context(), &emptypb.Empty{}); err != nil {
		t.Errorf("version needs a namespace: %v", err)
	}
}

func TestWorksWithoutNamespace(t *testing.T) {
	for method, want := range map[string]bool{
		"/containerd.services.namespaces.v1.Namespaces/List":          true,
		"/containerd.services.version.v1.Version/Version":             true,
		"/containerd.services.introspection.v1.Introspection/Plugins": true,
		"/containerd.services.events.v1.Events/Subscribe":             true,
		"/containerd.services.events.v1.Events/Forward":               true,
		"/containerd.services.events.v1.Events/Publish":               false,
		"/grpc.health.v1.Health/Check":                                true,
		"/runtime.v1.RuntimeService/Version":                          true,
		"/containerd.services.tasks.v1.Tasks/List":                    false,
		"/containerd.services.content.v1.Content/Read":                false,
		"/containerd.services.transfer.v1.Transfer/Transfer":          false,
		"": false,
	} {
		if got := worksWithoutNamespace(method); got != want {
			t.Errorf("%s: %v, want %v", method, got, want)
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	var log bytes.Buffer
	boom := func(context.Context) error { panic("boom") }
	_, conn := serveAPI(t, slog.New(slog.NewTextHandler(&log, nil)), func(s *grpc.Server, stopping context.Context) {
		containersapi.RegisterContainersServer(s, fakeContainers{get: boom, list: boom})
	})
	client := containersapi.NewContainersClient(conn)
	for range 2 { // the second call shows that the server lives on
		_, err := client.Get(in(t.Context(), "ns"), &containersapi.GetContainerRequest{})
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "boom") {
			t.Errorf("a panic became %v", err)
		}
	}
	stream, err := client.ListStream(in(t.Context(), "ns"), &containersapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("a panic in a stream became %v", err)
	}
	if text := log.String(); !strings.Contains(text, "boom") || !strings.Contains(text, "server_test.go") {
		t.Errorf("the log lacks the panic or its stack: %s", text)
	}
}

func TestErrorsAreMapped(t *testing.T) {
	want := errors.Join(errdefs.ErrAlreadyExists)
	_, conn := serveAPI(t, slog.New(slog.DiscardHandler), func(s *grpc.Server, stopping context.Context) {
		containersapi.RegisterContainersServer(s, fakeContainers{get: func(context.Context) error { return want }})
	})
	_, err := containersapi.NewContainersClient(conn).Get(in(t.Context(), "ns"), &containersapi.GetContainerRequest{})
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("got %v", err)
	}
}

// Shutdown lets a call finish, does not wait for one that only waits, and cuts
// off what does not end.
func TestShutdown(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s, conn := serveAPI(t, slog.New(slog.DiscardHandler), func(s *grpc.Server, stopping context.Context) {
		containersapi.RegisterContainersServer(s, fakeContainers{get: func(context.Context) error {
			close(started)
			<-release
			return nil
		}})
		streamingapi.RegisterStreamingServer(s, newStreams(stopping))
	})
	openStream(t, conn, "untaken")
	result := make(chan error, 1)
	go func() {
		_, err := containersapi.NewContainersClient(conn).Get(in(context.Background(), "ns"), &containersapi.GetContainerRequest{})
		result <- err
	}()
	<-started
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Shutdown(context.Background())
	}()
	select {
	case <-done:
		t.Fatal("did not wait for the call")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	<-done
	if err := <-result; err != nil {
		t.Errorf("the call was cut off: %v", err)
	}
}

func TestShutdownDeadline(t *testing.T) {
	started := make(chan struct{})
	s, conn := serveAPI(t, slog.New(slog.DiscardHandler), func(s *grpc.Server, stopping context.Context) {
		containersapi.RegisterContainersServer(s, fakeContainers{get: func(ctx context.Context) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		}})
	})
	result := make(chan error, 1)
	go func() {
		_, err := containersapi.NewContainersClient(conn).Get(in(context.Background(), "ns"), &containersapi.GetContainerRequest{})
		result <- err
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.Shutdown(ctx)
	if err := <-result; err == nil {
		t.Error("a call that never ends has ended well")
	}
}

// openStream opens a named stream as a client.
func openStream(t *testing.T, conn *grpc.ClientConn, name string) streamingapi.Streaming_StreamClient {
	t.Helper()
	stream, err := tryStream(t.Context(), conn, name)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func tryStream(ctx context.Context, conn *grpc.ClientConn, name string) (streamingapi.Streaming_StreamClient, error) {
	stream, err := streamingapi.NewStreamingClient(conn).Stream(in(ctx, "ns"))
	if err != nil {
		return nil, err
	}
	if err := stream.Send(mustPack(&streamingapi.StreamInit{ID: name})); err != nil {
		return nil, err
	}
	_, err = stream.Recv()
	return stream, err
}

func mustPack(m proto.Message) *anypb.Any {
	a, err := pack(m)
	if err != nil {
		panic(err)
	}
	return a
}

func serveTransfers(t *testing.T) (*streams, *grpc.ClientConn) {
	var named *streams
	_, conn := serveAPI(t, slog.New(slog.DiscardHandler), func(s *grpc.Server, stopping context.Context) {
		named = newStreams(stopping)
		streamingapi.RegisterStreamingServer(s, named)
		transferapi.RegisterTransferServer(s, &transfers{streams: named})
	})
	return named, conn
}

// TestEcho sends bytes through both directions of the stream protocol.
func TestEcho(t *testing.T) {
	for _, size := range []int{0, 1, window - 1, window, 5*window + 17} {
		_, conn := serveTransfers(t)
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		up, down := openStream(t, conn, "up"), openStream(t, conn, "down")
		go sendBytes(up, data)
		received := make(chan []byte, 1)
		go func() { received <- receiveBytes(t, down) }()
		_, err := transferapi.NewTransferClient(conn).Transfer(in(t.Context(), "ns"), &transferapi.TransferRequest{
			Source:      mustPack(&api.ImageImportStream{Stream: "up"}),
			Destination: mustPack(&api.ImageExportStream{Stream: "down"}),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := <-received; !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d", size, len(got))
		}
	}
}

// sendBytes is a client's end: it never sends more than it was granted.
func sendBytes(stream streamingapi.Streaming_StreamClient, data []byte) {
	granted := 0
	for len(data) > 0 {
		for granted == 0 {
			a, err := stream.Recv()
			if err != nil {
				return
			}
			var update api.WindowUpdate
			if unpack(a, &update) != nil {
				return
			}
			granted += int(update.Update)
		}
		n := min(len(data), granted, 32<<10)
		if stream.Send(mustPack(&api.Data{Data: data[:n]})) != nil {
			return
		}
		data, granted = data[n:], granted-n
	}
	_ = stream.CloseSend()
}

// receiveBytes is a client's end: it grants 64 KiB at a time.
func receiveBytes(t *testing.T, stream streamingapi.Streaming_StreamClient) []byte {
	var out []byte
	granted := 0
	for {
		if granted <= 0 {
			if stream.Send(mustPack(&api.WindowUpdate{Update: 64 << 10})) == nil {
				granted += 64 << 10
			}
		}
		a, err := stream.Recv()
		if err != nil {
			if err != io.EOF {
				t.Errorf("the stream ended with %v", err)
			}
			return out
		}
		var data api.Data
		if err := unpack(a, &data); err != nil {
			t.Error(err)
			return out
		}
		granted -= len(data.Data)
		if granted < 0 {
			t.Errorf("%d bytes more than were granted", -granted)
		}
		out = append(out, data.Data...)
	}
}

// A client that goes away in the middle of an import must not look like the
// end of its archive.
func TestImportCutOff(t *testing.T) {
	_, conn := serveTransfers(t)
	ctx, cancel := context.WithCancel(t.Context())
	up, err := tryStream(ctx, conn, "up")
	if err != nil {
		t.Fatal(err)
	}
	down := openStream(t, conn, "down")
	result := make(chan error, 1)
	go func() {
		_, err := transferapi.NewTransferClient(conn).Transfer(in(t.Context(), "ns"), &transferapi.TransferRequest{
			Source:      mustPack(&api.ImageImportStream{Stream: "up"}),
			Destination: mustPack(&api.ImageExportStream{Stream: "down"}),
		})
		result <- err
	}()
	if _, err := up.Recv(); err != nil { // the grant: the transfer reads
		t.Fatal(err)
	}
	if err := up.Send(mustPack(&api.Data{Data: []byte("half")})); err != nil {
		t.Fatal(err)
	}
	go receiveBytes(t, down)
	cancel()
	if err := <-result; err == nil {
		t.Error("half of the bytes counted as all")
	}
}

// A transfer that is cancelled does not wait for a client that sends nothing
// more and keeps its stream open.
func TestImportIsCancelled(t *testing.T) {
	_, conn := serveTransfers(t)
	up, down := openStream(t, conn, "up"), openStream(t, conn, "down")
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := transferapi.NewTransferClient(conn).Transfer(in(ctx, "ns"), &transferapi.TransferRequest{
			Source:      mustPack(&api.ImageImportStream{Stream: "up"}),
			Destination: mustPack(&api.ImageExportStream{Stream: "down"}),
		})
		result <- err
	}()
	if _, err := up.Recv(); err != nil { // the grant: the transfer reads
		t.Fatal(err)
	}
	cancel()
	if err := <-result; err == nil {
		t.Error("the transfer succeeded")
	}
	for _, stream := range []streamingapi.Streaming_StreamClient{up, down} {
		ended := make(chan error, 1)
		go func() { _, err := stream.Recv(); ended <- err }()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a message came after the end of the transfer")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the transfer still waits for its client")
		}
	}
}

func TestStreamNames(t *testing.T) {
	named, conn := serveTransfers(t)
	openStream(t, conn, "one")
	if _, err := tryStream(t.Context(), conn, "one"); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a second stream of the name: %v", err)
	}
	if _, err := tryStream(t.Context(), conn, ""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream without a name: %v", err)
	}
	if _, err := named.take("other", "one"); !errdefs.IsNotFound(err) {
		t.Errorf("found in another namespace: %v", err)
	}
	st, err := named.take("ns", "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := named.take("ns", "one"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("taken twice: %v", err)
	}
	st.Close()
	<-st.Gone()
}

func TestStreamGoesWithItsClient(t *testing.T) {
	named, conn := serveTransfers(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := tryStream(ctx, conn, "one"); err != nil {
		t.Fatal(err)
	}
	st, err := named.take("ns", "one")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-st.Gone()
	if _, err := st.Recv(); err == nil {
		t.Error("received from a client that is gone")
	}
}

func TestStreamFirstMessage(t *testing.T) {
	_, conn := serveTransfers(t)
	stream, err := streamingapi.NewStreamingClient(conn).Stream(in(t.Context(), "ns"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(mustPack(&api.Data{Data: []byte("x")})); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream that begins with data: %v", err)
	}
}

func TestTransferRefuses(t *testing.T) {
	_, conn := serveTransfers(t)
	store := mustPack(&api.ImageStore{Name: "a"})
	for name, tc := range map[string]struct {
		from, to *anypb.Any
		code     codes.Code
	}{
		"no source":        {nil, store, codes.Unimplemented},
		"unknown type":     {mustPack(&emptypb.Empty{}), store, codes.Unimplemented},
		"broken message":   {&anypb.Any{TypeUrl: "containerd.types.transfer.ImageStore", Value: []byte{0xff}}, store, codes.InvalidArgument},
		"store to itself?": {mustPack(&api.OCIRegistry{}), mustPack(&api.OCIRegistry{}), codes.Unimplemented},
		"no such stream":   {mustPack(&api.ImageImportStream{Stream: "x"}), store, codes.NotFound},
		"prefix export": {mustPack(&api.ImageStore{ExtraReferences: []*api.ImageReference{{Name: "a", IsPrefix: true}}}),
			mustPack(&api.ImageExportStream{Stream: "x"}), codes.Unimplemented},
	} {
		_, err := transferapi.NewTransferClient(conn).Transfer(in(t.Context(), "ns"), &transferapi.TransferRequest{Source: tc.from, Destination: tc.to})
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
	}
}

func TestCredentials(t *testing.T) {
	named, conn := serveTransfers(t)
	client := openStream(t, conn, "auth")
	st, err := named.take("ns", "auth")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	answers := map[string]*api.AuthResponse{
		"user":   {AuthType: api.AuthType_CREDENTIALS, Username: "u", Secret: "s"},
		"token":  {AuthType: api.AuthType_REFRESH, Secret: "t"},
		"header": {AuthType: api.AuthType_HEADER, Secret: "Bearer x"},
		"none":   {},
	}
	go func() {
		for {
			a, err := client.Recv()
			if err != nil {
				return
			}
			var req api.AuthRequest
			if unpack(a, &req) != nil || req.Reference != "host/name:tag" {
				return
			}
			if resp, ok := answers[req.Host]; ok && client.Send(mustPack(resp)) != nil {
				return
			}
		}
	}()
	c := newCredentials(st)
	for host, want := range answers {
		got, err := c.get(t.Context(), "host/name:tag", host)
		secret := got.Secret
		if got.Header != "" {
			secret = got.Header
		}
		if err != nil || got.Username != want.Username || secret != want.Secret {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.get(ctx, "host/name:tag", "silent"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client that does not answer: %v", err)
	}
	if _, err := c.get(t.Context(), "host/name:tag", "user"); !errdefs.IsUnavailable(err) {
		t.Errorf("a question after one that stayed open: %v", err)
	}
}
