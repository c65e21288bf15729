package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// trimDelay is how long no call must be under way before memory is given back.
	trimDelay = 2 * time.Second
	// trimWorth is how many bytes must have been allocated since the last time
	// for it to be worth a collection.
	trimWorth = 8 << 20
)

// trimmer gives memory back to the system when the daemon has become idle. The
// Go runtime does so while it allocates, which an idle daemon does not: without
// this it would keep for minutes what a pull has used.
type trimmer struct {
	timer *time.Timer

	mu        sync.Mutex
	allocated uint64 // bytes ever allocated, at the last trim; protected by mu
}

func newTrimmer() *trimmer {
	t := &trimmer{}
	t.timer = time.AfterFunc(trimDelay, t.trim)
	return t
}

// activity is told when calls begin and when the last of them has ended.
func (t *trimmer) activity(busy bool) {
	if busy {
		t.timer.Stop()
		return
	}
	t.timer.Reset(trimDelay)
}

func (t *trimmer) close() error {
	t.timer.Stop()
	return nil
}

func (t *trimmer) trim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := allocatedBytes()
	if now-t.allocated < trimWorth {
		return
	}
	t.allocated = now
	// Two collections: the first only moves what pools (sync.Pool) keep out of
	// their reach.
	runtime.GC()
	debug.FreeOSMemory()
}

func allocatedBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
