package wire

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
)

// ToStatus maps an error to the status that gRPC and ttrpc send: the code is
// that of the errdefs kind, the message is the error's text. An error that is a
// status already passes unchanged; nil is nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT); full && errdefs.Resolve(err) == errdefs.ErrUnknown {
		// Differs from containerd: a full disk is ResourceExhausted everywhere.
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	st := status.Convert(errgrpc.ToGRPC(err))
	if _, ok := status.FromError(err); !ok && len(st.Details()) > 0 {
		// The details are further errors of a chain, whose texts the message has
		// already: clients would show them twice.
		st = status.New(st.Code(), st.Message())
	}
	return st.Err()
}

// FromStatus maps what a gRPC or ttrpc client got back to an errdefs kind with
// the text of the server. An error that is no status passes unchanged, so that
// one which an interceptor of the connection has mapped keeps its kind; nil is
// nil.
func FromStatus(err error) error {
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return errgrpc.ToNative(err)
}
