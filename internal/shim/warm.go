package shim

import (
	"encoding/json"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// warm has the codecs learn the types that making a container needs, which takes
// longer than the coding itself: a spare does that while it waits.
func warm() {
	const config = `{"ociVersion":"","process":{"user":{},"args":["a"],"env":["a"],"capabilities":{"bounding":["a"]},"rlimits":[{"type":"a"}],"oomScoreAdj":0},
"root":{"path":"a"},"hostname":"a","mounts":[{"destination":"a","options":["a"]}],"annotations":{"a":"a"},
"linux":{"resources":{"devices":[{"allow":false,"major":1}],"memory":{"limit":1},"cpu":{"shares":1},"pids":{"limit":1}},"cgroupsPath":"a","namespaces":[{"type":"pid"}],
"seccomp":{"defaultAction":"a","architectures":["a"],"syscalls":[{"names":["a"],"action":"a","args":[{"op":"a"}]}]},"devices":[{"path":"a"}],"maskedPaths":["a"]}}`
	spec := new(specs.Spec)
	_ = json.Unmarshal([]byte(config), spec)
	_, _ = json.Marshal(&libcontainer.State{BaseState: libcontainer.BaseState{Config: configs.Config{
		Mounts: []*configs.Mount{{}}, Namespaces: configs.Namespaces{{}}, Seccomp: &configs.Seccomp{Syscalls: []*configs.Syscall{{}}},
	}}})
	for _, m := range []proto.Message{&ttrpc.Request{Metadata: []*ttrpc.KeyValue{{}}}, &ttrpc.Response{}} {
		if raw, err := proto.Marshal(m); err == nil {
			_ = proto.Unmarshal(raw, m)
		}
	}
}

// Memory. While a container is made and started, garbage is left lying: collecting
// it would take more time than it takes room. Once it runs the shim is idle for
// most of its life, and lets less garbage add up.
const (
	gcWhenBusy = 400
	gcWhenIdle = 40
	idleAfter  = time.Second
)

// tune comes before anything is done, and before anything is done again.
func tune() {
	// One processor does: there is little to do at a time, and each has its caches.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(gcWhenBusy)
}

// keepSmall is called when nothing has been done for a while. It does not collect:
// in a heap as small as this a collection costs more pages than it gives back
// (0.4 MB measured). The next one comes soon when there is something to collect.
func keepSmall() {
	debug.SetGCPercent(gcWhenIdle)
}
