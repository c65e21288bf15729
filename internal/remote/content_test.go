package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// peer is a server that sends what the test says, whatever is asked for.
type peer struct {
	api.ContentClient
	size  int64
	reads []*api.ReadContentRequest
	send  func(req *api.ReadContentRequest) ([][]byte, error)
}

func (p *peer) Info(context.Context, *api.InfoRequest, ...grpc.CallOption) (*api.InfoResponse, error) {
	return &api.InfoResponse{Info: &api.Info{Size: p.size}}, nil
}

func (p *peer) Read(_ context.Context, req *api.ReadContentRequest, _ ...grpc.CallOption) (api.Content_ReadClient, error) {
	p.reads = append(p.reads, req)
	chunks, err := p.send(req)
	return &chunkStream{chunks: chunks, end: err}, nil
}

type chunkStream struct {
	grpc.ClientStream
	chunks [][]byte
	end    error
}

func (s *chunkStream) Recv() (*api.ReadContentResponse, error) {
	if len(s.chunks) == 0 {
		return nil, s.end
	}
	chunk := s.chunks[0]
	s.chunks = s.chunks[1:]
	return &api.ReadContentResponse{Data: chunk}, nil
}

func TestReaderDistrustsServer(t *testing.T) {
	for name, tc := range map[string]struct {
		chunks [][]byte
		end    error
		n      int
		is     func(error) bool
	}{
		"too little":   {[][]byte{[]byte("abc")}, io.EOF, 3, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"nothing":      {nil, io.EOF, 0, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"too much":     {[][]byte{bytes.Repeat([]byte("a"), 1000)}, io.EOF, 10, func(err error) bool { return err == nil }},
		"empty chunks": {[][]byte{nil, []byte("abcde"), nil, []byte("fghij")}, io.EOF, 10, func(err error) bool { return err == nil }},
		"breaks off":   {[][]byte{[]byte("abc")}, status.Error(codes.NotFound, "gone"), 3, errdefs.IsNotFound},
	} {
		for _, off := range []int64{0, 5} { // the stream, and a range of its own
			p := &peer{size: 100, send: func(*api.ReadContentRequest) ([][]byte, error) { return tc.chunks, tc.end }}
			r, err := (&Content{client: p}).ReaderAt(t.Context(), ispec.Descriptor{Digest: digest.FromString("x")})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := r.ReadAt(make([]byte, 10), off); n != tc.n || !tc.is(err) {
				t.Errorf("%s at %d: %d bytes, %v", name, off, n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Reading through is one call; a jump is a call of its own and does not end it.
func TestReaderKeepsStream(t *testing.T) {
	blob := make([]byte, 1000)
	for i := range blob {
		blob[i] = byte(i)
	}
	p := &peer{size: 1000, send: func(req *api.ReadContentRequest) ([][]byte, error) {
		end := int64(len(blob))
		if req.Size > 0 {
			end = req.Offset + req.Size
		}
		var chunks [][]byte
		for off := req.Offset; off < end; off += 64 {
			chunks = append(chunks, blob[off:min(off+64, end)])
		}
		return chunks, io.EOF
	}}
	r, err := (&Content{client: p}).ReaderAt(t.Context(), ispec.Descriptor{Digest: digest.FromString("x")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, off := range []int64{0, 100, 200, 950, 300, 400} {
		buf := make([]byte, 100)
		n, err := r.ReadAt(buf, off)
		if want := min(100, 1000-off); int64(n) != want || err != nil && err != io.EOF || !bytes.Equal(buf[:n], blob[off:off+want]) {
			t.Fatalf("at %d: %d bytes, %v", off, n, err)
		}
	}
	if len(p.reads) != 2 {
		t.Fatalf("%d calls: %v", len(p.reads), p.reads)
	}
}
