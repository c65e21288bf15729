package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth/internal/content"
	"berth/internal/object"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// listBatch is how many blobs one message of a list has.
	listBatch = 100
	// readChunk is how many bytes one message of a read has.
	readChunk = 256 << 10
)

type contentServer struct {
	api.UnimplementedContentServer
	// open yields the store of the call's namespace; what is written through it
	// is held by the call's lease.
	open func(context.Context) content.Store
	// buffers of *[readChunk]byte
	buffers sync.Pool
}

func newContentServer(open func(context.Context) content.Store) *contentServer {
	return &contentServer{open: open, buffers: sync.Pool{New: func() any { return new([readChunk]byte) }}}
}

func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fmt.Errorf("digest %.200q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	return d, nil
}

func (s *contentServer) Info(ctx context.Context, req *api.InfoRequest) (*api.InfoResponse, error) {
	d, err := parseDigest(req.Digest)
	if err != nil {
		return nil, err
	}
	info, err := s.open(ctx).Info(ctx, d)
	if err != nil {
		return nil, err
	}
	return &api.InfoResponse{Info: records.BlobInfoToProto(info)}, nil
}

func (s *contentServer) Update(ctx context.Context, req *api.UpdateRequest) (*api.UpdateResponse, error) {
	if _, err := parseDigest(req.Info.GetDigest()); err != nil {
		return nil, err
	}
	info, err := s.open(ctx).Update(ctx, records.BlobInfoFromProto(req.Info), req.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, err
	}
	return &api.UpdateResponse{Info: records.BlobInfoToProto(info)}, nil
}

func (s *contentServer) List(req *api.ListContentRequest, stream api.Content_ListServer) error {
	ctx := stream.Context()
	batch := make([]*api.Info, 0, listBatch)
	send := func() error {
		err := stream.Send(&api.ListContentResponse{Info: batch})
		batch = batch[:0]
		return err
	}
	err := s.open(ctx).Walk(ctx, func(info object.BlobInfo) error {
		batch = append(batch, records.BlobInfoToProto(info))
		if len(batch) < listBatch {
			return nil
		}
		return send()
	}, req.Filters...)
	if err != nil || len(batch) == 0 {
		return err
	}
	return send()
}

func (s *contentServer) Delete(ctx context.Context, req *api.DeleteContentRequest) (*emptypb.Empty, error) {
	d, err := parseDigest(req.Digest)
	if err != nil {
		return nil, err
	}
	return empty(s.open(ctx).Delete(ctx, d))
}

// Read sends the range in chunks; the range is cut at the end of the blob. The
// offset of a message counts from the start of the blob, as the API defines it.
// Differs from containerd: it counts from the start of the range there.
func (s *contentServer) Read(req *api.ReadContentRequest, stream api.Content_ReadServer) error {
	ctx := stream.Context()
	d, err := parseDigest(req.Digest)
	if err != nil {
		return err
	}
	blob, err := s.open(ctx).ReaderAt(ctx, ispec.Descriptor{Digest: d})
	if err != nil {
		return err
	}
	defer blob.Close()
	offset := max(req.Offset, 0)
	if offset > blob.Size() {
		return fmt.Errorf("read %s from byte %d: it has %d: %w", req.Digest, offset, blob.Size(), errdefs.ErrOutOfRange)
	}
	end := blob.Size()
	if req.Size > 0 && req.Size < end-offset {
		end = offset + req.Size
	}

	buf := s.buffers.Get().(*[readChunk]byte)
	defer s.buffers.Put(buf) // Send has encoded it when it returns
	for offset < end {
		n, err := blob.ReadAt(buf[:min(end-offset, readChunk)], offset)
		if n > 0 {
			if err := stream.Send(&api.ReadContentResponse{Offset: offset, Data: buf[:n]}); err != nil {
				return err
			}
			offset += int64(n)
		}
		if offset < end && err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it ends at byte %d instead of %d: %w", offset, blob.Size(), errdefs.ErrDataLoss)
			}
			return fmt.Errorf("read %s: %w", req.Digest, err)
		}
	}
	return nil
}

func (s *contentServer) Status(ctx context.Context, req *api.StatusRequest) (*api.StatusResponse, error) {
	status, err := s.open(ctx).Status(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	return &api.StatusResponse{Status: records.IngestStatusToProto(status)}, nil
}

func (s *contentServer) ListStatuses(ctx context.Context, req *api.ListStatusesRequest) (*api.ListStatusesResponse, error) {
	statuses, err := s.open(ctx).ListStatuses(ctx, req.Filters...)
	if err != nil {
		return nil, err
	}
	return &api.ListStatusesResponse{Statuses: records.IngestStatusesToProto(statuses)}, nil
}

func (s *contentServer) Abort(ctx context.Context, req *api.AbortRequest) (*emptypb.Empty, error) {
	return empty(s.open(ctx).Abort(ctx, req.Ref))
}

// Write is one session on one ingest: it holds the ingest's lock from the first
// message until the commit or the end of the stream. A client that goes away
// leaves the ingest to be resumed.
func (s *contentServer) Write(stream api.Content_WriteServer) error {
	ctx := stream.Context()
	req, err := stream.Recv()
	if err != nil {
		return ended(err)
	}
	if req.Ref == "" {
		return fmt.Errorf("the first message of a write must have a reference: %w", errdefs.ErrInvalidArgument)
	}
	session := &writeSession{store: s.open(ctx), ref: req.Ref}
	if req.Expected != "" {
		if session.expected, err = parseDigest(req.Expected); err != nil {
			return err
		}
	}
	session.writer, err = session.store.Writer(ctx, content.WriteOptions{
		Ref: req.Ref, Size: max(req.Total, 0), Expected: session.expected,
	})
	if err != nil {
		return err
	}
	defer session.writer.Close()
	for {
		resp, err := session.handle(ctx, req)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		if req.Action == api.WriteAction_COMMIT {
			return nil
		}
		if req, err = stream.Recv(); err != nil {
			return ended(err)
		}
	}
}

// ended is the result of a session whose client said that it sends no more.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// writeSession is the state of a Write stream.
type writeSession struct {
	store  content.Store
	writer content.Writer
	ref    string
	// What the commit must yield: the latest values that a message had.
	total    int64
	expected digest.Digest
}

func (w *writeSession) handle(ctx context.Context, req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if req.Ref != "" && req.Ref != w.ref {
		return nil, fmt.Errorf("a write to %q cannot go on to %q: %w", w.ref, req.Ref, errdefs.ErrInvalidArgument)
	}
	if req.Total > 0 {
		w.total = req.Total
	}
	if err := w.expect(ctx, req); err != nil {
		return nil, err
	}
	switch req.Action {
	case api.WriteAction_STAT:
	case api.WriteAction_WRITE, api.WriteAction_COMMIT:
		if err := w.write(req); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("write action %d is unknown: %w", req.Action, errdefs.ErrInvalidArgument)
	}
	status, err := w.writer.Status()
	if err != nil {
		return nil, err
	}
	resp := &api.WriteContentResponse{
		Action:    req.Action,
		StartedAt: wire.TimeToProto(status.StartedAt),
		UpdatedAt: wire.TimeToProto(status.UpdatedAt),
		Offset:    status.Offset,
		Total:     w.total,
		Digest:    w.writer.Digest().String(),
	}
	if req.Action != api.WriteAction_COMMIT {
		return resp, nil
	}
	if err := w.writer.Commit(ctx, w.total, w.expected, req.Labels); err != nil {
		return nil, err
	}
	if w.expected != "" {
		resp.Digest = w.expected.String() // of another algorithm, perhaps
	}
	return resp, nil
}

// expect takes up the digest of a message. If there is such a blob already the
// session is over and the ingest of no more use; a commit finds that out itself.
func (w *writeSession) expect(ctx context.Context, req *api.WriteContentRequest) error {
	if req.Expected == "" || req.Expected == w.expected.String() {
		return nil
	}
	d, err := parseDigest(req.Expected)
	if err != nil {
		return err
	}
	w.expected = d
	if req.Action == api.WriteAction_COMMIT {
		return nil
	}
	if _, err := w.store.Info(ctx, d); err != nil {
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	err = fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
	if cerr := errors.Join(w.writer.Close(), w.store.Abort(ctx, w.ref)); cerr != nil {
		err = fmt.Errorf("%w (and then: %v)", err, cerr)
	}
	return err
}

// write appends the data of a message. Offset 0 starts the ingest over; any
// other must be where it stands.
func (w *writeSession) write(req *api.WriteContentRequest) error {
	status, err := w.writer.Status()
	if err != nil {
		return err
	}
	switch {
	case req.Offset == 0 && status.Offset > 0:
		if err := w.writer.Truncate(0); err != nil {
			return err
		}
	case req.Offset != status.Offset:
		return fmt.Errorf("write to %q at byte %d: it stands at %d: %w", w.ref, req.Offset, status.Offset, errdefs.ErrOutOfRange)
	}
	if len(req.Data) == 0 {
		return nil
	}
	_, err = w.writer.Write(req.Data)
	return err
}
