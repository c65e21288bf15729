package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// watchdog calls bite when it was not touched for a while. It sleeps while it
// is paused: the time in which we are the slow ones does not count.
type watchdog struct {
	timer *time.Timer
	after time.Duration
	// patience is what wait adds.
	patience time.Duration
}

func newWatchdog(after time.Duration, bite func()) *watchdog {
	w := &watchdog{after: after}
	if after > 0 {
		w.timer = time.AfterFunc(after, bite)
	}
	return w
}

func (w *watchdog) touch() {
	if w.timer != nil {
		w.timer.Reset(w.after)
	}
}

// wait is touch when all was said and the other side has work to do.
func (w *watchdog) wait() {
	if w.timer != nil {
		w.timer.Reset(w.after + w.patience)
	}
}

func (w *watchdog) pause() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) stop() { w.pause() }

// watchedBody is the body of an answer: a Read that waits too long ends the
// request with errStalled.
type watchedBody struct {
	body   io.ReadCloser
	dog    *watchdog
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.dog.touch()
	n, err := b.body.Read(p)
	b.dog.pause()
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	var err error
	b.once.Do(func() {
		b.dog.stop()
		err = b.body.Close()
		b.cancel(nil)
	})
	return err
}

// errRequestBody marks a failure to read what is to be sent: no other attempt helps.
var errRequestBody = errors.New("read what is to be sent")

// watchedUpload is the body of a request: as long as it is read, the
// connection moves. Its last bytes are left to the answer to wait for.
type watchedUpload struct {
	io.ReadCloser
	dog  *watchdog
	left int64
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	b.dog.touch()
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left <= 0 || err == io.EOF {
		b.dog.wait()
	}
	if err != nil && err != io.EOF {
		err = errors.Join(errRequestBody, err)
	}
	return n, err
}

// drain reads a little of a body that nobody wants, so that its connection can
// be used again, and closes it.
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}
