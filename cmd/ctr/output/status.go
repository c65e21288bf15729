package output

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// Status is a line on a terminal that tells what a long command is doing; where
// stderr is no terminal it is nothing. The zero value is nothing, too.
type Status struct {
	w     io.Writer
	shown time.Time
}

// NewStatus shows on stderr.
func NewStatus() *Status {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return &Status{}
	}
	return &Status{w: os.Stderr}
}

// statusTime is the shortest time between two changes of the line.
const statusTime = 100 * time.Millisecond

// At shows a new line in place of the one before.
func (s *Status) At(format string, args ...any) {
	if s.w == nil || time.Since(s.shown) < statusTime {
		return
	}
	s.shown = time.Now()
	text := []rune(fmt.Sprintf(format, args...))
	fmt.Fprintf(s.w, "\r%s\x1b[K", string(text[:min(len(text), 79)]))
}

// Clear takes the line away.
func (s *Status) Clear() {
	if s.w != nil && !s.shown.IsZero() {
		fmt.Fprint(s.w, "\r\x1b[K")
	}
}
