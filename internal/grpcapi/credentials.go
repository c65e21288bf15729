package grpcapi

import (
	"context"
	"fmt"
	"sync"

	"berth/internal/registry"

	api "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
)

// credentials asks the client of a transfer for them, one question at a time.
type credentials struct {
	stream *stream

	mu      sync.Mutex // held while a question is open; protects what follows
	broken  error      // why no further question makes sense
	answers chan answer
	start   sync.Once
}

type answer struct {
	message *anypb.Any
	err     error
}

func newCredentials(st *stream) *credentials {
	return &credentials{stream: st, answers: make(chan answer)}
}

// get is a registry.CredentialsFunc. A client that has no credentials may
// answer with none, or (as containerd's do after a failure) not at all: then
// ctx is what ends the wait.
func (c *credentials) get(ctx context.Context, reference, host string) (registry.Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return registry.Credentials{}, c.broken
	}
	c.start.Do(func() { go c.receive() })
	if err := c.stream.Send(&api.AuthRequest{Host: host, Reference: reference}); err != nil {
		return registry.Credentials{}, fmt.Errorf("ask the client for credentials for %s: %w", host, err)
	}
	select {
	case a := <-c.answers:
		if a.err != nil {
			c.broken = fmt.Errorf("the client's answer on credentials for %s: %w", host, a.err)
			return registry.Credentials{}, c.broken
		}
		return credentialsOf(a.message)
	case <-ctx.Done():
		// A later answer would be taken for that to the next question.
		c.broken = fmt.Errorf("the client did not answer the question for credentials for %s: %w", host, errdefs.ErrUnavailable)
		return registry.Credentials{}, fmt.Errorf("%v: %w", c.broken, context.Cause(ctx))
	}
}

// receive ends when the stream does.
func (c *credentials) receive() {
	for {
		m, err := c.stream.Recv()
		select {
		case c.answers <- answer{m, err}:
		case <-c.stream.Gone():
			return
		case <-c.stream.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func credentialsOf(m *anypb.Any) (registry.Credentials, error) {
	var resp api.AuthResponse
	if err := unpack(m, &resp); err != nil {
		return registry.Credentials{}, fmt.Errorf("credentials: %w", err)
	}
	switch resp.AuthType {
	case api.AuthType_CREDENTIALS:
		return registry.Credentials{Username: resp.Username, Secret: resp.Secret}, nil
	case api.AuthType_REFRESH:
		return registry.Credentials{Secret: resp.Secret}, nil
	case api.AuthType_HEADER:
		return registry.Credentials{Header: resp.Secret}, nil
	default:
		return registry.Credentials{}, nil
	}
}
