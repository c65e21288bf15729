package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"berth/cmd/ctr/progress"

	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types/transfer"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
)

// stream is a side channel of a transfer, known to the daemon by its id.
type stream struct {
	id string
	streamingapi.Streaming_StreamClient
}

// openStream announces a stream; the daemon has it when this returns.
func (s *session) openStream(ctx context.Context, kind string) (*stream, error) {
	c, err := streamingapi.NewStreamingClient(s).Stream(ctx)
	if err != nil {
		return nil, err
	}
	st := &stream{id: kind + "-" + uuid.NewString(), Streaming_StreamClient: c}
	if err := st.sendMessage(&streamingapi.StreamInit{ID: st.id}); err != nil {
		return nil, err
	}
	if _, err := st.Recv(); err != nil {
		return nil, fmt.Errorf("opening a stream for the transfer: %w", err)
	}
	return st, nil
}

func (st *stream) sendMessage(m proto.Message) error {
	a, err := marshalAny(m)
	if err != nil {
		return err
	}
	return st.Send(a)
}

// receiveMessage decodes the next message into m. io.EOF at the end.
func (st *stream) receiveMessage(m proto.Message) error {
	a, err := st.Recv()
	if err != nil {
		return err
	}
	if name := string(m.ProtoReflect().Descriptor().FullName()); a.TypeUrl != name {
		return fmt.Errorf("the daemon sent %s in a stream of %s", a.TypeUrl, name)
	}
	return proto.Unmarshal(a.Value, m)
}

// Flow control of byte streams: the receiver grants windows, the sender keeps
// messages to maxChunk.
const (
	window   = 4 << 20
	maxChunk = 32 << 10
)

// sendBytes feeds r to the daemon as far as it grants.
func (st *stream) sendBytes(r io.Reader) error {
	defer st.CloseSend()
	buf := make([]byte, maxChunk)
	granted := 0
	for {
		for granted <= 0 {
			var w transfer.WindowUpdate
			if err := st.receiveMessage(&w); err != nil {
				return ignoreEOF(err)
			}
			granted += int(w.Update)
		}
		n, err := r.Read(buf[:min(len(buf), granted)])
		if n > 0 {
			if err := st.sendMessage(&transfer.Data{Data: buf[:n]}); err != nil {
				return ignoreEOF(err) // the daemon has what it needs, or says why not
			}
			granted -= n
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// receiveBytes writes what the daemon sends to w until it is done.
func (st *stream) receiveBytes(w io.Writer) error {
	granted := 0
	for {
		if granted < window/2 {
			if err := st.sendMessage(&transfer.WindowUpdate{Update: window}); err == nil {
				granted += window
			}
		}
		var d transfer.Data
		if err := st.receiveMessage(&d); err != nil {
			return ignoreEOF(err)
		}
		granted -= len(d.Data)
		if _, err := w.Write(d.Data); err != nil {
			return err
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// progressTail is how long reports may still come in when the transfer is over.
const progressTail = 200 * time.Millisecond

// transfer asks the daemon to move source to destination and shows the progress
// on out, nil for nowhere.
func (s *session) transfer(ctx context.Context, source, destination proto.Message, out *os.File) (err error) {
	req := &transferapi.TransferRequest{}
	if req.Source, err = marshalAny(source); err != nil {
		return err
	}
	if req.Destination, err = marshalAny(destination); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if out != nil {
		st, err := s.openStream(ctx, "progress")
		if err != nil {
			return err
		}
		req.Options = &transferapi.TransferOptions{ProgressStream: st.id}
		display, shown := progress.New(out), make(chan struct{})
		go func() {
			defer close(shown)
			for {
				var p transfer.Progress
				if st.receiveMessage(&p) != nil {
					return
				}
				display.Update(&p)
			}
		}()
		defer func() {
			st.CloseSend()
			select {
			case <-shown:
			case <-time.After(progressTail):
				cancel()
				<-shown
			}
			display.Close(err != nil)
		}()
		_, err = transferapi.NewTransferClient(s).Transfer(ctx, req)
		return err
	}
	_, err = transferapi.NewTransferClient(s).Transfer(ctx, req)
	return err
}
