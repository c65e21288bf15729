package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth/internal/content"
	"berth/internal/object"
	"berth/internal/wire"
	"berth/internal/wire/records"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Content is the content store behind a connection. Its readers end with their
// blob: what is read after a Delete is errdefs.ErrNotFound.
type Content struct{ client api.ContentClient }

// NewContent makes a store of a connection; see Scope. Closing the connection
// is up to the caller.
func NewContent(conn grpc.ClientConnInterface) *Content {
	return &Content{client: api.NewContentClient(conn)}
}

func (c *Content) Info(ctx context.Context, d digest.Digest) (object.BlobInfo, error) {
	resp, err := c.client.Info(ctx, &api.InfoRequest{Digest: d.String()})
	if err != nil {
		return object.BlobInfo{}, wire.FromStatus(err)
	}
	return records.BlobInfoFromProto(resp.Info), nil
}

func (c *Content) Update(ctx context.Context, info object.BlobInfo, fieldpaths ...string) (object.BlobInfo, error) {
	req := &api.UpdateRequest{Info: records.BlobInfoToProto(info)}
	if len(fieldpaths) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fieldpaths}
	}
	resp, err := c.client.Update(ctx, req)
	if err != nil {
		return object.BlobInfo{}, wire.FromStatus(err)
	}
	return records.BlobInfoFromProto(resp.Info), nil
}

func (c *Content) Walk(ctx context.Context, fn func(object.BlobInfo) error, filters ...string) error {
	ctx, cancel := context.WithCancel(ctx) // ends the stream when fn fails
	defer cancel()
	stream, err := c.client.List(ctx, &api.ListContentRequest{Filters: filters})
	if err != nil {
		return wire.FromStatus(err)
	}
	return receive(stream.Recv, func(msg *api.ListContentResponse) error {
		for _, info := range msg.Info {
			if err := fn(records.BlobInfoFromProto(info)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Content) Delete(ctx context.Context, d digest.Digest) error {
	_, err := c.client.Delete(ctx, &api.DeleteContentRequest{Digest: d.String()})
	return wire.FromStatus(err)
}

func (c *Content) Status(ctx context.Context, ref string) (object.IngestStatus, error) {
	resp, err := c.client.Status(ctx, &api.StatusRequest{Ref: ref})
	if err != nil {
		return object.IngestStatus{}, wire.FromStatus(err)
	}
	return records.IngestStatusFromProto(resp.Status), nil
}

func (c *Content) ListStatuses(ctx context.Context, filters ...string) ([]object.IngestStatus, error) {
	resp, err := c.client.ListStatuses(ctx, &api.ListStatusesRequest{Filters: filters})
	if err != nil {
		return nil, wire.FromStatus(err)
	}
	return records.IngestStatusesFromProto(resp.Statuses), nil
}

func (c *Content) Abort(ctx context.Context, ref string) error {
	_, err := c.client.Abort(ctx, &api.AbortRequest{Ref: ref})
	return wire.FromStatus(err)
}

// ReaderAt opens a blob. The reader ends with ctx.
func (c *Content) ReaderAt(ctx context.Context, desc ispec.Descriptor) (content.ReaderAt, error) {
	info, err := c.Info(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	return &contentReader{ctx: ctx, cancel: cancel, client: c.client, digest: desc.Digest, size: info.Size}, nil
}

// Writer opens an ingest. The writer holds a stream, which ends with ctx.
func (c *Content) Writer(ctx context.Context, opts content.WriteOptions) (content.Writer, error) {
	if opts.Ref == "" {
		return nil, fmt.Errorf("ingest reference is empty: %w", errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &contentWriter{cancel: cancel, opts: opts}
	var err error
	if w.stream, err = c.client.Write(ctx); err != nil {
		cancel()
		return nil, wire.FromStatus(err)
	}
	if _, err := w.call(&api.WriteContentRequest{
		Action: api.WriteAction_STAT, Ref: opts.Ref, Total: opts.Size, Expected: opts.Expected.String(),
	}); err != nil {
		cancel()
		return nil, err
	}
	return w, nil
}

const (
	// writeChunk is well below the 4 MiB that a gRPC server takes by default.
	writeChunk = 1 << 20
	// closeTimeout bounds the wait for a server that does not end a stream.
	closeTimeout = 10 * time.Second
)

type contentWriter struct {
	stream api.Content_WriteClient
	cancel context.CancelFunc // ends the stream
	opts   content.WriteOptions
	closed bool
	// As of the latest response.
	offset int64
	digest digest.Digest
}

// call sends a request and waits for its response.
func (w *contentWriter) call(req *api.WriteContentRequest) (*api.WriteContentResponse, error) {
	if w.closed {
		return nil, fmt.Errorf("ingest %q: the writer is closed: %w", w.opts.Ref, errdefs.ErrFailedPrecondition)
	}
	// A failed Send says only that the stream has ended; Recv tells why.
	if err := w.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, wire.FromStatus(err)
	}
	resp, err := w.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("ingest %q: the server ended the write: %w", w.opts.Ref, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, wire.FromStatus(err)
	}
	w.offset = resp.Offset
	if resp.Digest != "" {
		w.digest = digest.Digest(resp.Digest)
	}
	return resp, nil
}

func (w *contentWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		chunk := p[written:min(written+writeChunk, len(p))]
		before := w.offset
		if _, err := w.call(&api.WriteContentRequest{Action: api.WriteAction_WRITE, Offset: before, Data: chunk}); err != nil {
			return written, err
		}
		n := w.offset - before
		if n != int64(len(chunk)) {
			return written + int(min(max(n, 0), int64(len(chunk)))), io.ErrShortWrite
		}
		written += len(chunk)
	}
	return written, nil
}

func (w *contentWriter) Digest() digest.Digest { return w.digest }

func (w *contentWriter) Status() (object.IngestStatus, error) {
	resp, err := w.call(&api.WriteContentRequest{Action: api.WriteAction_STAT})
	if err != nil {
		return object.IngestStatus{}, err
	}
	return object.IngestStatus{
		Ref: w.opts.Ref, Offset: resp.Offset, Total: resp.Total, Expected: w.opts.Expected,
		StartedAt: wire.TimeFromProto(resp.StartedAt), UpdatedAt: wire.TimeFromProto(resp.UpdatedAt),
	}, nil
}

// Truncate is a write of nothing at offset 0.
func (w *contentWriter) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("ingest %q: cut to %d bytes: only 0 is supported: %w", w.opts.Ref, size, errdefs.ErrNotImplemented)
	}
	_, err := w.call(&api.WriteContentRequest{Action: api.WriteAction_WRITE})
	return err
}

func (w *contentWriter) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) error {
	defer w.Close()
	stop := context.AfterFunc(ctx, w.cancel)
	defer stop()
	resp, err := w.call(&api.WriteContentRequest{
		Action: api.WriteAction_COMMIT, Total: size, Offset: w.offset, Expected: expected.String(), Labels: labels,
	})
	if err != nil {
		return err
	}
	if expected != "" && w.digest != expected {
		return fmt.Errorf("ingest %q: the server committed %s, expected is %s: %w", w.opts.Ref, w.digest, expected, errdefs.ErrDataLoss)
	}
	if size > 0 && resp.Offset != size {
		return fmt.Errorf("ingest %q: the server committed %d bytes, expected are %d: %w", w.opts.Ref, resp.Offset, size, errdefs.ErrDataLoss)
	}
	return nil
}

// Close waits until the server has given up its lock on the ingest.
func (w *contentWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	defer w.cancel()
	if err := w.stream.CloseSend(); err != nil {
		return wire.FromStatus(err)
	}
	defer time.AfterFunc(closeTimeout, w.cancel).Stop()
	for {
		// An error is that of the session, of which the call that met it told.
		if _, err := w.stream.Recv(); err != nil {
			return nil
		}
	}
}
