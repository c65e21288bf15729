package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth/internal/content"
	"berth/internal/content/contenttest"
	"berth/internal/object"
	"berth/internal/remote"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// serveContent serves a store on a unix socket and returns a connection to it.
func serveContent(t testing.TB, cs content.Store) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(ctx, req)
			return resp, wire.ToStatus(err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return wire.ToStatus(handler(srv, ss))
		}),
	)
	api.RegisterContentServer(server, newContentServer(func(context.Context) content.Store { return cs }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		<-done
	})
	return conn
}

func newLocal(t testing.TB) *content.Local {
	t.Helper()
	cs, err := content.OpenLocal(content.LocalOptions{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

func TestContentContractAcrossSocket(t *testing.T) {
	contenttest.Suite{
		Open:            func(t *testing.T) content.Store { return remote.NewContent(serveContent(t, newLocal(t))) },
		NoLabels:        true,
		StatelessReader: true,
	}.Run(t)
}

func openWrite(t *testing.T, c api.ContentClient) api.Content_WriteClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := c.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// exchange sends a message and returns the response to it.
func exchange(t *testing.T, stream api.Content_WriteClient, req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	t.Helper()
	if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return stream.Recv()
}

func TestWriteSession(t *testing.T) {
	cs := newLocal(t)
	client := api.NewContentClient(serveContent(t, cs))
	stream := openWrite(t, client)
	blob, d := contenttest.Blob(1, 300)

	steps := []struct {
		req    *api.WriteContentRequest
		offset int64
		digest digest.Digest
	}{
		{&api.WriteContentRequest{Action: api.WriteAction_STAT, Ref: "r", Total: 300}, 0, digest.FromBytes(nil)},
		{&api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: []byte("wrong")}, 5, digest.FromString("wrong")},
		{&api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: blob[:100]}, 100, digest.FromBytes(blob[:100])},
		{&api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 100, Data: blob[100:200]}, 200, digest.FromBytes(blob[:200])},
		{&api.WriteContentRequest{Action: api.WriteAction_STAT}, 200, digest.FromBytes(blob[:200])},
		{&api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: 200, Data: blob[200:], Expected: d.String()}, 300, d},
	}
	for i, step := range steps {
		resp, err := exchange(t, stream, step.req)
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if resp.Action != step.req.Action || resp.Offset != step.offset || resp.Digest != step.digest.String() ||
			resp.Total != 300 || resp.StartedAt == nil || resp.UpdatedAt == nil {
			t.Fatalf("step %d: response %v", i, resp)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the commit: %v", err)
	}
	if got := contenttest.Get(t, cs, d); !bytes.Equal(got, blob) {
		t.Fatal("the blob is wrong")
	}
}

func TestWriteSessionRefuses(t *testing.T) {
	cs := newLocal(t)
	client := api.NewContentClient(serveContent(t, cs))
	existing := contenttest.Put(t, cs, "existing", []byte("here"), nil)
	_, other := contenttest.Blob(2, 2)
	stat := &api.WriteContentRequest{Action: api.WriteAction_STAT, Ref: "r"}
	data := &api.WriteContentRequest{Action: api.WriteAction_WRITE, Data: []byte("abc")}
	for name, tc := range map[string]struct {
		before []*api.WriteContentRequest
		req    *api.WriteContentRequest
		code   codes.Code
		kept   bool // the ingest is still there
	}{
		"no reference":      {nil, &api.WriteContentRequest{Action: api.WriteAction_STAT}, codes.InvalidArgument, false},
		"bad digest first":  {nil, &api.WriteContentRequest{Ref: "r", Expected: "sha256:x"}, codes.InvalidArgument, false},
		"existing first":    {nil, &api.WriteContentRequest{Ref: "r", Expected: existing.String()}, codes.AlreadyExists, false},
		"unknown action":    {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Action: 9}, codes.InvalidArgument, true},
		"other reference":   {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Ref: "s"}, codes.InvalidArgument, true},
		"gap":               {[]*api.WriteContentRequest{stat, data}, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 4}, codes.OutOfRange, true},
		"overlap":           {[]*api.WriteContentRequest{stat, data}, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 2}, codes.OutOfRange, true},
		"negative offset":   {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: -1}, codes.OutOfRange, true},
		"huge offset":       {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 1 << 62}, codes.OutOfRange, true},
		"bad digest later":  {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Expected: "../x"}, codes.InvalidArgument, true},
		"existing later":    {[]*api.WriteContentRequest{stat, data}, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: 3, Expected: existing.String()}, codes.AlreadyExists, false},
		"existing, commit":  {[]*api.WriteContentRequest{stat}, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Data: []byte("here"), Expected: existing.String()}, codes.AlreadyExists, false},
		"wrong digest":      {[]*api.WriteContentRequest{stat, data}, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: 3, Expected: other.String()}, codes.FailedPrecondition, true},
		"wrong total":       {[]*api.WriteContentRequest{stat, data}, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: 3, Total: 4}, codes.FailedPrecondition, true},
		"wrong first total": {[]*api.WriteContentRequest{{Ref: "r", Total: 5}, data}, &api.WriteContentRequest{Action: api.WriteAction_COMMIT, Offset: 3}, codes.FailedPrecondition, true},
	} {
		t.Run(name, func(t *testing.T) {
			stream := openWrite(t, client)
			for i, req := range tc.before {
				if _, err := exchange(t, stream, req); err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			if _, err := exchange(t, stream, tc.req); status.Code(err) != tc.code {
				t.Fatalf("got %v, want %v", err, tc.code)
			}
			err := cs.Abort(t.Context(), "r")
			if kept := err == nil; kept != tc.kept {
				t.Fatalf("ingest kept: %v (%v)", kept, err)
			}
		})
	}
	if list, err := cs.ListStatuses(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("left over: %v, %v", list, err)
	}
}

// A client that goes away in the middle leaves what it wrote, unlocked.
func TestWriteSessionClientVanishes(t *testing.T) {
	cs := newLocal(t)
	blob, d := contenttest.Blob(3, 1000)
	client := api.NewContentClient(serveContent(t, closeSignal{cs, make(chan struct{})}))
	for name, leave := range map[string]func(stream api.Content_WriteClient, cancel func()){
		"cancelled":   func(_ api.Content_WriteClient, cancel func()) { cancel() },
		"half closed": func(stream api.Content_WriteClient, _ func()) { _ = stream.CloseSend() },
	} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{})
			client := api.NewContentClient(serveContent(t, closeSignal{cs, closed}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := client.Write(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := exchange(t, stream, &api.WriteContentRequest{Action: api.WriteAction_WRITE, Ref: name, Data: blob[:600]}); err != nil {
				t.Fatal(err)
			}
			leave(stream, cancel)
			<-closed
			st, err := cs.Status(t.Context(), name)
			if err != nil || st.Offset != 600 {
				t.Fatalf("status is %+v, %v", st, err)
			}
			if err := cs.Abort(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		})
	}
	_, err := client.Info(t.Context(), &api.InfoRequest{Digest: d.String()})
	if status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
}

// closeSignal is a store that tells when its one writer has been closed.
type closeSignal struct {
	content.Store
	closed chan struct{}
}

func (s closeSignal) Writer(ctx context.Context, opts content.WriteOptions) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts)
	return signalWriter{w, s.closed}, err
}

type signalWriter struct {
	content.Writer
	closed chan struct{}
}

func (w signalWriter) Close() error {
	defer close(w.closed)
	return w.Writer.Close()
}

func TestReadRanges(t *testing.T) {
	cs := newLocal(t)
	client := api.NewContentClient(serveContent(t, cs))
	blob, _ := contenttest.Blob(4, 700_000)
	d := contenttest.Put(t, cs, "r", blob, nil)
	for _, tc := range []struct{ offset, size, from, to int64 }{
		{0, 0, 0, 700_000},
		{-5, 0, 0, 700_000},
		{0, -1, 0, 700_000},
		{100, 200, 100, 300},
		{600_000, 1 << 62, 600_000, 700_000},
		{1, 1<<63 - 1, 1, 700_000},
		{699_999, 1, 699_999, 700_000},
		{700_000, 0, 700_000, 700_000},
	} {
		stream, err := client.Read(t.Context(), &api.ReadContentRequest{Digest: d.String(), Offset: tc.offset, Size: tc.size})
		if err != nil {
			t.Fatal(err)
		}
		at := tc.from
		var got []byte
		for {
			msg, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if msg.Offset != at {
				t.Fatalf("%+v: message at %d, want %d", tc, msg.Offset, at)
			}
			at += int64(len(msg.Data))
			got = append(got, msg.Data...)
		}
		if !bytes.Equal(got, blob[tc.from:tc.to]) {
			t.Fatalf("%+v: %d bytes, wrong", tc, len(got))
		}
	}
	for digest, code := range map[string]codes.Code{d.String(): codes.OutOfRange, "sha256:" + strings.Repeat("0", 64): codes.NotFound, "x": codes.InvalidArgument} {
		stream, err := client.Read(t.Context(), &api.ReadContentRequest{Digest: digest, Offset: 700_001})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != code {
			t.Fatalf("%s: %v, want %v", digest, err, code)
		}
	}
}

func TestParallelReadsOfOneReader(t *testing.T) {
	rc := remote.NewContent(serveContent(t, newLocal(t)))
	blob, _ := contenttest.Blob(6, 1<<20)
	d := contenttest.Put(t, rc, "r", blob, nil)
	r, err := rc.ReaderAt(t.Context(), descriptor(d))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
			if err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

// Messages that lack every part are refused, not trusted.
func TestContentEmptyRequests(t *testing.T) {
	client := api.NewContentClient(serveContent(t, newLocal(t)))
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"info":   func() error { _, err := client.Info(ctx, &api.InfoRequest{}); return err },
		"update": func() error { _, err := client.Update(ctx, &api.UpdateRequest{}); return err },
		"delete": func() error { _, err := client.Delete(ctx, &api.DeleteContentRequest{}); return err },
		"status": func() error { _, err := client.Status(ctx, &api.StatusRequest{}); return err },
		"abort":  func() error { _, err := client.Abort(ctx, &api.AbortRequest{}); return err },
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A blob that shrank under its reader must not pass for a short one.
func TestReadOfShrunkBlob(t *testing.T) {
	cs := newLocal(t)
	d := contenttest.Put(t, cs, "r", []byte("0123456789"), nil)
	rc := remote.NewContent(serveContent(t, shrunk{cs}))
	r, err := rc.ReaderAt(t.Context(), descriptor(d))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.ReadAt(make([]byte, 20), 0); !errdefs.IsDataLoss(err) {
		t.Fatalf("got %v", err)
	}
}

func descriptor(d digest.Digest) ispec.Descriptor { return ispec.Descriptor{Digest: d} }

// shrunk is a store whose readers end before the size they tell.
type shrunk struct{ content.Store }

func (s shrunk) ReaderAt(ctx context.Context, desc ispec.Descriptor) (content.ReaderAt, error) {
	r, err := s.Store.ReaderAt(ctx, desc)
	return shrunkReader{r}, err
}

func (s shrunk) Info(ctx context.Context, d digest.Digest) (object.BlobInfo, error) {
	info, err := s.Store.Info(ctx, d)
	info.Size += 10
	return info, err
}

type shrunkReader struct{ content.ReaderAt }

func (r shrunkReader) Size() int64 { return r.ReaderAt.Size() + 10 }

func BenchmarkContentAcrossSocket(b *testing.B) {
	rc := remote.NewContent(serveContent(b, newLocal(b)))
	blob, d := contenttest.Blob(5, 64<<20)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(blob)))
		for b.Loop() {
			contenttest.Put(b, rc, "ref", blob, nil)
			if err := rc.Delete(b.Context(), d); err != nil {
				b.Fatal(err)
			}
		}
	})
	contenttest.Put(b, rc, "ref", blob, nil)
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(len(blob)))
		for b.Loop() {
			r, err := rc.ReaderAt(b.Context(), descriptor(d))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(r, 0, r.Size()), make([]byte, 256<<10)); err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	})
}
