package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// readyTimeout is how long a logger may take to say that it is ready.
const readyTimeout = 30 * time.Second

// loggerURI tells that the streams go to a program: binary:///path?arg=value, or
// binary-v2 for one that must write a byte when it is ready.
func loggerURI(stdout string) (*url.URL, bool) {
	if !strings.HasPrefix(stdout, "binary://") && !strings.HasPrefix(stdout, "binary-v2://") {
		return nil, false
	}
	u, err := url.Parse(stdout)
	return u, err == nil
}

// startLogger gives the process the pipes of a logger as stdout and stderr. The
// logger reads them until they are at their end, and outlives us if it must.
func (s *Streams) startLogger(ctx context.Context, uri *url.URL, opts Options) error {
	outR, outW, err := pipe(opts, neither)
	if err != nil {
		return err
	}
	defer outR.Close()
	errR, errW, err := pipe(opts, neither)
	if err != nil {
		outW.Close()
		return err
	}
	defer errR.Close()
	if err := runLogger(uri, opts, outR, errR); err != nil {
		return errors.Join(err, outW.Close(), errW.Close())
	}
	s.child[1], s.child[2] = outW, errW
	return nil
}

// attachLogger sends a logger what a terminal shows.
func (s *Streams) attachLogger(ctx context.Context, uri *url.URL, console *os.File, opts Options) error {
	r, w, err := pipe(opts, writeEnd)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := runLogger(uri, opts, r, nil); err != nil {
		return errors.Join(err, w.Close())
	}
	s.run(pump{src: console, dst: w, copy: copyBuffered, end: func() { w.Close() }})
	return nil
}

// runLogger starts the program and returns when it is ready. Its files are, from 3
// on: what to read as stdout and as stderr, and a pipe to write a byte to, or
// close, when it is ready. Compat: containerd's logging protocol.
func runLogger(uri *url.URL, opts Options, stdout, stderr *os.File) error {
	var args []string
	for k, vs := range uri.Query() {
		args = append(args, k)
		if len(vs) > 0 {
			args = append(args, vs[0])
		}
	}
	ready, theirs, err := pipe(Options{}, readEnd)
	if err != nil {
		return err
	}
	defer ready.Close()
	if stderr == nil {
		if stderr, err = os.Open(os.DevNull); err != nil {
			theirs.Close()
			return err
		}
		defer stderr.Close()
	}
	cmd := exec.Command(uri.Path, args...)
	cmd.Env = []string{"CONTAINER_ID=" + opts.ID, "CONTAINER_NAMESPACE=" + opts.Namespace}
	cmd.ExtraFiles = []*os.File{stdout, stderr, theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the logger %s: %w", uri.Path, err)
	}
	// It is collected like an orphan.
	pid := cmd.Process
	defer pid.Release()
	if err := ready.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
		return err
	}
	n, err := ready.Read(make([]byte, 1))
	switch {
	case errors.Is(err, io.EOF) && uri.Scheme == "binary-v2":
		err = fmt.Errorf("the logger %s ended without saying that it is ready: %w", uri.Path, errdefs.ErrUnavailable)
	case n == 1 || errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("the logger %s is not ready after %v: %w", uri.Path, readyTimeout, context.DeadlineExceeded)
	}
	return errors.Join(err, pid.Kill())
}
