package grpcapi

import (
	"context"
	"fmt"
	"sync"

	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/streaming/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// streams keeps the streams that clients have opened until a call names them.
//
// A stream lives as long as the client's call. It is found by its name in its
// namespace, taken once, and gone when the client leaves or the taker closes it.
type streams struct {
	api.UnimplementedStreamingServer

	// stopping ends when the server stops: then nobody takes streams any more.
	stopping context.Context

	mu   sync.Mutex
	open map[streamKey]*stream // protected by mu
}

type streamKey struct{ namespace, name string }

func newStreams(stopping context.Context) *streams {
	return &streams{stopping: stopping, open: make(map[streamKey]*stream)}
}

// Stream registers the stream under the name in its first message, confirms
// that with an empty one, and keeps it open.
func (s *streams) Stream(server api.Streaming_StreamServer) error {
	first, err := server.Recv()
	if err != nil {
		return err
	}
	var init api.StreamInit
	if err := unpack(first, &init); err != nil {
		return fmt.Errorf("first message of a stream: %w", err)
	}
	if init.ID == "" {
		return required("id of the stream")
	}
	key := streamKey{ScopeOf(server.Context()).Namespace, init.ID}
	st := &stream{grpc: server, closed: make(chan struct{})}
	if err := s.add(key, st); err != nil {
		return err
	}
	defer s.remove(key)
	if err := st.Send(&emptypb.Empty{}); err != nil {
		return err
	}
	select {
	case <-st.closed:
	case <-server.Context().Done():
	case <-s.stopping.Done():
		if !s.isTaken(st) {
			return errStopping
		}
		select {
		case <-st.closed:
		case <-server.Context().Done():
		}
	}
	return nil
}

func (s *streams) isTaken(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.taken
}

func (s *streams) add(key streamKey, st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[key]; ok {
		return fmt.Errorf("stream %q: %w", key.name, errdefs.ErrAlreadyExists)
	}
	s.open[key] = st
	return nil
}

func (s *streams) remove(key streamKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, key)
}

// take hands a stream to its one user, who closes it. errdefs.ErrNotFound when
// no client has it open, errdefs.ErrFailedPrecondition when it was taken before.
func (s *streams) take(namespace, name string) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.open[streamKey{namespace, name}]
	if !ok {
		return nil, fmt.Errorf("stream %q in namespace %q: %w", name, namespace, errdefs.ErrNotFound)
	}
	if st.taken {
		return nil, fmt.Errorf("stream %q in namespace %q is in use already: %w", name, namespace, errdefs.ErrFailedPrecondition)
	}
	st.taken = true
	return st, nil
}

// stream is the daemon's end of a client's stream. One goroutine receives;
// sending is safe for several.
type stream struct {
	grpc  api.Streaming_StreamServer
	taken bool // protected by streams.mu

	sending sync.Mutex // one message at a time, as gRPC demands

	close  sync.Once
	closed chan struct{} // closed when the daemon is done with the stream
}

func (s *stream) Send(m proto.Message) error {
	a, err := pack(m)
	if err != nil {
		return err
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	select {
	case <-s.closed:
		return fmt.Errorf("stream is closed: %w", errdefs.ErrFailedPrecondition)
	default:
	}
	return wire.FromStatus(s.grpc.Send(a))
}

// Recv returns io.EOF when the client has sent all.
func (s *stream) Recv() (*anypb.Any, error) { return s.grpc.Recv() }

// Gone is closed when the client has left.
func (s *stream) Gone() <-chan struct{} { return s.grpc.Context().Done() }

// Close ends the client's call, and with it a Send or Recv that is under way.
// Closing twice is fine.
func (s *stream) Close() { s.close.Do(func() { close(s.closed) }) }

// pack makes an Any as containerd's clients expect it: the bare name of the
// message is the type URL.
func pack(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}

// unpack decodes a into m, errdefs.ErrInvalidArgument when it is another
// message or not sound.
func unpack(a *anypb.Any, m proto.Message) error {
	if want := m.ProtoReflect().Descriptor().FullName(); a.MessageName() != want {
		return fmt.Errorf("message %q where %q belongs: %w", a.GetTypeUrl(), want, errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return fmt.Errorf("message %q: %v: %w", a.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	return nil
}
