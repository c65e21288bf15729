package grpcapi

import (
	"fmt"
	"testing"

	"berth/internal/transfer"

	api "github.com/containerd/containerd/api/types/transfer"
)

// The last report of each object reaches the client, however fast they come,
// and in the order in which the objects appeared.
func TestReporter(t *testing.T) {
	named, conn := serveTransfers(t)
	client := openStream(t, conn, "progress")
	st, err := named.take("ns", "progress")
	if err != nil {
		t.Fatal(err)
	}
	last := make(chan map[string]int64, 1)
	go func() {
		seen := make(map[string]int64)
		for {
			a, err := client.Recv()
			if err != nil {
				last <- seen
				return
			}
			var p api.Progress
			if err := unpack(a, &p); err != nil {
				t.Error(err)
			}
			if p.Progress < seen[p.Name+p.Event] {
				t.Errorf("%s went back from %d to %d", p.Name, seen[p.Name+p.Event], p.Progress)
			}
			seen[p.Name+p.Event] = p.Progress
		}
	}()
	r := newReporter(st)
	for i := range int64(5000) {
		r.report(transfer.Progress{Event: "downloading", Name: fmt.Sprint("layer", i%3), Progress: i})
	}
	r.report(transfer.Progress{Event: "complete", Name: "layer0", Progress: 5000})
	r.close()
	st.Close()
	seen := <-last
	if seen["layer0complete"] != 5000 || seen["layer1downloading"] != 4999 || seen["layer2downloading"] != 4997 {
		t.Errorf("the client saw %v", seen)
	}
}
