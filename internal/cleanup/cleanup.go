// Package cleanup undoes the steps of something that failed half way.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Stack holds what undoes the steps taken so far. It is used by one goroutine:
//
//	var undo cleanup.Stack
//	defer undo.OnError(&err)
//	if err := os.Mkdir(dir, 0o711); err != nil { … }
//	undo.Add("remove bundle", func() error { return os.RemoveAll(dir) })
//
// The zero value is ready.
type Stack struct{ steps []step }

type step struct {
	name string
	undo func() error
}

// Add puts what undoes the step just taken on the stack. The name goes into the
// error should undo fail.
func (s *Stack) Add(name string, undo func() error) {
	s.steps = append(s.steps, step{name, undo})
}

// Release forgets everything: the steps are to stay.
func (s *Stack) Release() { s.steps = nil }

// Run undoes every step, the last first, whether or not some fail, and returns
// their errors joined. The stack is empty afterwards.
func (s *Stack) Run() error {
	var errs []error
	for len(s.steps) > 0 {
		last := s.steps[len(s.steps)-1]
		s.steps = s.steps[:len(s.steps)-1]
		if err := last.undo(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.name, err))
		}
	}
	return errors.Join(errs...)
}

// OnError is for defer, with the named result of the function: it runs the
// stack when that is an error, and adds to it what could not be undone. The
// kind of the error stays that of the first one.
func (s *Stack) OnError(err *error) {
	if *err == nil {
		return
	}
	if uerr := s.Run(); uerr != nil {
		*err = fmt.Errorf("%w (and then: %v)", *err, uerr)
	}
}

// Timeout is how long a clean-up may take that has to go on after its caller
// has left.
const Timeout = 10 * time.Second

// Context makes a context for cleaning up: it has the values of ctx, does not
// end with it, and ends after Timeout.
func Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), Timeout)
}
