package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"berth/internal/image"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// absent is a call's error of the kind errdefs.ErrNotFound.
type absent struct {
	error
	service string // the gRPC service that was asked, such as containerd.services.images.v1.Images
}

func (a absent) Unwrap() error { return a.error }

// explain adds to the error of a call what helps with it.
func explain(target, method string, before, err error) error {
	service, target := path.Base(path.Dir(method)), strings.TrimPrefix(target, "passthrough:///")
	said := status.Convert(before).Message() // gRPC's own words, when the daemon has none
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return absent{err, service}
	case errdefs.IsUnavailable(err) && (strings.HasPrefix(said, "error reading from server") || strings.Contains(said, "Error while dialing")):
		return fmt.Errorf("the daemon at %s has gone away meanwhile: %w", target, errdefs.ErrUnavailable)
	case errdefs.IsUnavailable(err) && strings.HasPrefix(said, "connection error"):
		return fmt.Errorf("the daemon at %s takes connections but does not answer: %w", target, errdefs.ErrUnavailable)
	case errdefs.IsDeadlineExceeded(err) && strings.Contains(said, "waiting for connections to become ready"):
		return fmt.Errorf("the daemon at %s takes connections but has not answered in time: %w", target, context.DeadlineExceeded)
	case status.Code(before) == codes.Unimplemented && strings.Contains(err.Error(), "unknown service"):
		return fmt.Errorf("the daemon does not offer %s: it is too old for this command, or its plugin is off ('ctr plugins ls'): %w", service, err)
	}
	return err
}

// suggestTime bounds the search for something that has a name like the wrong one.
const suggestTime = 2 * time.Second

// suggest adds to an error about an argument that names nothing what the person
// may have meant: a name like it, or the same one in another namespace.
func (s *session) suggest(ctx context.Context, cmd *cli.Command, err error) error {
	a, ok := errors.AsType[absent](err)
	if !ok {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suggestTime)
	defer cancel()
	source := sourceOf(a.service)
	if source == nil {
		return err
	}
	for _, arg := range cmd.Args().Slice() {
		if arg == "" || !strings.Contains(err.Error(), arg) {
			continue
		}
		names := source(ctx, s)
		if slices.Contains(names, arg) {
			continue // it is not what is missing
		}
		if a.service == tasksService && slices.Contains(containerIDs(ctx, s), arg) {
			return fmt.Errorf("%w: the container has no task; 'ctr tasks start %s' starts one", err, arg)
		}
		if hint := meant(arg, names); hint != "" {
			return fmt.Errorf("%w%s", err, hint)
		}
		if ns := s.elsewhere(ctx, source, arg); ns != "" {
			return fmt.Errorf("%w in the namespace %s; it is in %s: use -n %s", err, s.namespace, ns, ns)
		}
		if a.service == imagesService {
			if name, e := image.ParseDockerName(arg); e == nil {
				return fmt.Errorf("%w; 'ctr images pull %s' may fetch it", err, name.Tagged())
			}
		}
	}
	return err
}

// elsewhere is another namespace that has something of that name, or empty.
func (s *session) elsewhere(ctx context.Context, source nameSource, name string) string {
	for _, ns := range namespaceNames(ctx, s) {
		if ns == s.namespace {
			continue
		}
		other := &session{ClientConn: s.ClientConn, namespace: ns}
		if slices.Contains(source(withNamespace(ctx, ns), other), name) {
			return ns
		}
	}
	return ""
}

// meant is ", did you mean X?" for the name of an object: one that is near, or
// that word is a short form of, as alpine is of docker.io/library/alpine:latest.
func meant(word string, names []string) string {
	for _, name := range names {
		short := name
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') && !strings.Contains(word, ":") {
			short = name[:i]
		}
		if strings.HasSuffix(short, "/"+word) {
			return fmt.Sprintf(", did you mean %q?", name)
		}
	}
	if hint := didYouMean(word, names); hint != "" || !strings.Contains(word, "/") {
		return hint
	}
	for _, name := range names { // the same from another registry
		if path.Base(name) == path.Base(word) {
			return fmt.Sprintf(", did you mean %q?", name)
		}
	}
	return ""
}

// didYouMean is ", did you mean X?" when a name is near word, or empty.
func didYouMean(word string, names []string) string {
	best, at := "", 1+len(word)/4
	for _, name := range names {
		if len(name) < 2 {
			continue
		}
		if strings.HasPrefix(name, word) && len(word) > 1 {
			return fmt.Sprintf(", did you mean %q?", name)
		}
		if d := distance(word, name); d <= at && (best == "" || d < at) {
			best, at = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			d := last[j]
			if a[i] != b[j] {
				d++
			}
			d = min(d, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, before[j-1]+1)
			}
			row[j+1] = d
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
