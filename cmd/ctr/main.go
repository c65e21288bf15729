// Command ctr is the command line of Berth: it drives a containerd daemon,
// Berth's or another, over the gRPC API.
//
// Commands, flags, arguments, aliases, output columns and exit codes are those
// of containerd's ctr, so that scripts run unchanged; what goes beyond it
// (--format, examples, suggestions, completion, progress) adds to that.
//
// There is one file per noun and one list of commands, in root.go. Commands talk
// to the generated API clients; a session carries the connection. Results go to
// stdout, everything else to stderr; an error is one line and exit status 1, but
// for run, exec, start and attach, which exit with the status of the container's
// process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"berth/cmd/ctr/output"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/grpclog"
)

// exitStatus ends ctr with the status of a container's process; nothing is
// printed.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// withStatus is an error that ends ctr with a status other than 1.
type withStatus struct {
	error
	status int
}

func (e withStatus) Unwrap() error { return e.error }

// usage is an error in what was typed. Its kind is errdefs.ErrInvalidArgument,
// which is not printed: the sentence says it.
type usage string

func (u usage) Error() string { return string(u) }
func (u usage) Unwrap() error { return errdefs.ErrInvalidArgument }

func invalid(format string, args ...any) error { return usage(fmt.Sprintf(format, args...)) }

func main() {
	// gRPC reports a connection that fails on stderr, in words of its own; the
	// error of the call says it already.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	os.Exit(run(context.Background(), os.Args))
}

func run(ctx context.Context, args []string) int {
	err := rootCommand().Run(ctx, args)
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "ctr:", output.Message(err.Error()))
	if e, ok := errors.AsType[withStatus](err); ok {
		return e.status
	}
	return 1
}
