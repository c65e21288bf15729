package transfer

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/image"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// reportEvery is how often the counts of what is moving are reported.
const reportEvery = 100 * time.Millisecond

// reporter turns the work of one transfer into reports, one at a time. All
// methods of a nil reporter, and of a nil job, do nothing.
//
// Compat: the event words, the names (image.RefKey) and the parents are those
// that containerd's clients draw their trees of.
type reporter struct {
	send ProgressFunc
	root string // name of the image
	verb string // "downloading", "uploading"

	mu      sync.Mutex
	jobs    []*job
	byKey   map[string]*job
	parents map[string][]string
	stop    chan struct{}
	stopped chan struct{}
}

// job is one descriptor in work.
type job struct {
	r       *reporter
	desc    ispec.Descriptor
	name    string
	parents []string
	event   string // the last that was sent; guarded by r.mu
	sent    int64
	verb    string
	moved   atomic.Int64
}

// newReporter starts to report; close ends it. nil when nobody listens.
func newReporter(send ProgressFunc, root, verb string) *reporter {
	if send == nil {
		return nil
	}
	r := &reporter{send: send, root: root, verb: verb, byKey: map[string]*job{}, parents: map[string][]string{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	go r.run()
	return r
}

func (r *reporter) run() {
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

// close ends the reports; none is sent afterwards.
func (r *reporter) close() {
	if r == nil {
		return
	}
	close(r.stop)
	<-r.stopped
}

// say reports something about the transfer as a whole.
func (r *reporter) say(event string) { r.image(event, "", nil) }

// image reports something about an image.
func (r *reporter) image(event, name string, desc *ispec.Descriptor) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send(Progress{Event: event, Name: name, Desc: desc})
}

// children says what a document names, before jobs for that are made.
func (r *reporter) children(parent ispec.Descriptor, children []ispec.Descriptor) {
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

// job begins the reports about a descriptor: it waits.
func (r *reporter) job(desc ispec.Descriptor) *job {
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
	j := &job{r: r, desc: desc, name: image.RefKey(desc), parents: parents, verb: r.verb}
	r.jobs, r.byKey[key] = append(r.jobs, j), j
	j.emit("waiting", 0)
	return j
}

// add counts bytes that moved.
func (j *job) add(n int) {
	if j != nil {
		j.moved.Add(int64(n))
	}
}

// set says how many bytes had moved before.
func (j *job) set(n int64) {
	if j != nil {
		j.moved.Store(n)
	}
}

// extracting says that from now on it is unpacking that is counted.
func (j *job) extracting() {
	if j == nil {
		return
	}
	j.r.mu.Lock()
	defer j.r.mu.Unlock()
	j.verb, j.event, j.sent = "extracting", "", -1
	j.moved.Store(0)
}

// done sends the last report of a stage: "complete", "extracted", "already exists".
func (j *job) done(event string) {
	if j == nil {
		return
	}
	j.r.mu.Lock()
	defer j.r.mu.Unlock()
	j.moved.Store(j.desc.Size)
	j.sent = j.desc.Size
	j.emit(event, j.desc.Size)
}

func (j *job) tick() {
	n := j.moved.Load()
	if n > j.sent && (j.event == "" || j.event == "waiting" || j.event == j.verb) {
		j.sent = n
		j.emit(j.verb, n)
	}
}

func (j *job) emit(event string, n int64) {
	j.event = event
	j.r.send(Progress{Event: event, Name: j.name, Parents: j.parents, Progress: n, Total: j.desc.Size, Desc: &j.desc})
}
