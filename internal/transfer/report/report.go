// Package report turns the work of one transfer into progress reports.
package report

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/image"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// reportEvery is how often the counts of what is moving are reported.
const reportEvery = 100 * time.Millisecond

// Progress is one report; the fields are those of containerd's progress message.
type Progress struct {
	// Event is "waiting", "downloading", "complete", "extracting", "saved", …
	Event    string
	Name     string
	Parents  []string
	Progress int64
	Total    int64
	Desc     *ispec.Descriptor
}

// Func takes reports; it is called by one goroutine at a time and must
// not block for long. nil means nobody listens.
type Func func(Progress)

// Reporter turns the work of one transfer into reports, one at a time. All
// methods of a nil reporter, and of a nil job, do nothing.
//
// Compat: the event words, the names (image.RefKey) and the parents are those
// that containerd's clients draw their trees of.
type Reporter struct {
	send Func
	root string // name of the image
	verb string // "downloading", "uploading"

	mu      sync.Mutex
	jobs    []*Job
	byKey   map[string]*Job
	parents map[string][]string
	stop    chan struct{}
	stopped chan struct{}
}

// Job is one descriptor in work.
type Job struct {
	r       *Reporter
	desc    ispec.Descriptor
	name    string
	parents []string
	event   string // the last that was sent; guarded by r.mu
	sent    int64
	verb    string
	moved   atomic.Int64
}

// New starts to report; close ends it. nil when nobody listens.
func New(send Func, root, verb string) *Reporter {
	if send == nil {
		return nil
	}
	r := &Reporter{send: send, root: root, verb: verb, byKey: map[string]*Job{}, parents: map[string][]string{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	go r.run()
	return r
}

func (r *Reporter) run() {
	defer close(r.stopped)
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			r.mu.Lock()
			for _, j := range r.jobs {
				j.tick()
			}
			r.mu.Unlock()
		case <-r.stop:
			return
		}
	}
}

// Close ends the reports; none is sent afterwards.
func (r *Reporter) Close() {
	if r == nil {
		return
	}
	close(r.stop)
	<-r.stopped
}

// Say reports something about the transfer as a whole.
func (r *Reporter) Say(event string) { r.Image(event, "", nil) }

// Image reports something about an image.
func (r *Reporter) Image(event, name string, desc *ispec.Descriptor) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send(Progress{Event: event, Name: name, Desc: desc})
}

// Children says what a document names, before jobs for that are made.
func (r *Reporter) Children(parent ispec.Descriptor, children []ispec.Descriptor) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := image.RefKey(parent)
	for _, c := range children {
		key := c.Digest.String()
		if !slices.Contains(r.parents[key], name) {
			r.parents[key] = append(r.parents[key], name)
		}
	}
}

// Job begins the reports about a descriptor: it waits.
func (r *Reporter) Job(desc ispec.Descriptor) *Job {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := desc.Digest.String()
	if j := r.byKey[key]; j != nil {
		return j
	}
	parents := r.parents[key]
	if len(parents) == 0 {
		parents = []string{r.root}
	}
	j := &Job{r: r, desc: desc, name: image.RefKey(desc), parents: parents, verb: r.verb}
	r.jobs, r.byKey[key] = append(r.jobs, j), j
	j.emit("waiting", 0)
	return j
}

// Archive is the name in the reports about an archive that is read.
const Archive = "archive"

// Stream begins the reports about an archive that is read, or written, from its
// beginning to its end; size is 0 when it is not known. The name is Archive, or
// empty for one that is written.
//
// Compat: containerd's ctr draws what has a name on its standard output, and
// that may be where the archive goes.
func (r *Reporter) Stream(name string, size int64) *Job {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	j := &Job{r: r, desc: ispec.Descriptor{Size: size}, name: name, verb: r.verb}
	r.jobs = append(r.jobs, j)
	j.emit(r.verb, 0)
	return j
}

// Add counts bytes that moved.
func (j *Job) Add(n int) {
	if j != nil {
		j.moved.Add(int64(n))
	}
}

// Reader counts what is read of r, and ends with ctx.
func (j *Job) Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r, j} }

type reader struct {
	ctx context.Context
	r   io.Reader
	job *Job
}

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.r.Read(p)
	r.job.Add(n)
	return n, err
}

// Set says how many bytes had moved before.
func (j *Job) Set(n int64) {
	if j != nil {
		j.moved.Store(n)
	}
}

// Extracting says that from now on it is unpacking that is counted.
func (j *Job) Extracting() {
	if j == nil {
		return
	}
	j.r.mu.Lock()
	defer j.r.mu.Unlock()
	j.verb, j.event, j.sent = "extracting", "", -1
	j.moved.Store(0)
}

// Done sends the last report of a stage: "complete", "extracted", "already exists".
func (j *Job) Done(event string) {
	if j == nil {
		return
	}
	j.r.mu.Lock()
	defer j.r.mu.Unlock()
	if j.desc.Size > 0 { // a stream's size may not be known
		j.moved.Store(j.desc.Size)
	}
	j.sent = j.moved.Load()
	j.emit(event, j.sent)
}

func (j *Job) tick() {
	n := j.moved.Load()
	if n > j.sent && (j.event == "" || j.event == "waiting" || j.event == j.verb) {
		j.sent = n
		j.emit(j.verb, n)
	}
}

func (j *Job) emit(event string, n int64) {
	j.event = event
	p := Progress{Event: event, Name: j.name, Parents: j.parents, Progress: n, Total: j.desc.Size}
	if j.desc.Digest != "" {
		p.Desc = &j.desc
	}
	j.r.send(p)
}
