package compat

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"google.golang.org/grpc/codes"
)

// pair is a daemon of each kind.
type pair struct {
	ours, theirs *subject
}

// subject is a daemon that is asked.
type subject struct {
	*node
	bin string
	do  func(call) answer
}

// died tells whether a call has ended the daemon, which is then started again.
func (s *subject) died(a answer) bool {
	if a.Code != codes.Unavailable || !strings.Contains(a.message, "EOF") && !strings.Contains(a.message, "reset") {
		return false
	}
	if err := s.cmd.Wait(); err == nil {
		return false
	}
	s.start(s.bin)
	return true
}

func newPair(t *testing.T, config string) pair {
	t.Helper()
	one := func(bin string) *subject {
		n := newNode(t, config)
		n.start(bin)
		rootfs := filepath.Join(n.dir, "rootfs")
		if err := os.MkdirAll(filepath.Join(rootfs, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(busybox)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), b, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, applet := range []string{"sh", "sleep", "cat", "true"} {
			os.Symlink("busybox", filepath.Join(rootfs, "bin", applet))
		}
		conn := dialNode(t, n.addr)
		replace := strings.NewReplacer("$DIR", n.dir, "$SPEC", strconv.Quote(specOf(t, "sleep", "1000")), "$PROCESS", strconv.Quote(processOf(t, "sleep", "1000")))
		undo := strings.NewReplacer(n.dir, "$DIR")
		return &subject{node: n, bin: bin, do: func(c call) answer { return c.do(t, conn, replace, undo) }}
	}
	return pair{ours: one(oursBin), theirs: one(peerBin)}
}

func specOf(t *testing.T, args ...string) string {
	ctx := namespaces.WithNamespace(t.Context(), "d")
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "c"}, oci.WithProcessArgs(append([]string{"/bin/busybox"}, args...)...), oci.WithCgroup("/berth-compat/"+strconv.Itoa(os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	s.Process.OOMScoreAdj = nil
	s.Process.Rlimits = nil
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func processOf(t *testing.T, args ...string) string {
	var s oci.Spec
	if err := json.Unmarshal([]byte(specOf(t, args...)), &s); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s.Process)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// deliberate are the calls whose answers differ on purpose: method, a part of the
// request, the code that ours gives, and the reason. What is later in the
// script must not depend on the difference.
var deliberate = []struct {
	method, request string
	code            codes.Code
	why             string
}{
	{"Namespaces/Update", "", codes.OK, "the answer has the namespace, containerd's is always empty"},
	{"Snapshots/List", "", codes.FailedPrecondition, "containerd answers Unknown where the namespace is missing"},
	{"Leases/Create", "labels:{key:\"random\"", codes.OK, "generated IDs are random"},
	{"Content/Write", "", codes.OK, "one answer for each request; containerd repeats the last when the client has sent all"},
	{"Content/Write", "", codes.FailedPrecondition, "answers tell the times of the ingest"},
	{"Content/Write", `expected:"bad"`, codes.InvalidArgument, "containerd takes what is no digest"},
	{"Content/ListStatuses", "ref==again", codes.OK, "an ingest that stands for a shared blob is listed"},
	{"Images/Create", `key:""`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Snapshots/Prepare", `key:""`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Snapshots/Commit", `name:""`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Snapshots/Commit", `key:"v"`, codes.FailedPrecondition, "containerd's native snapshotter fails on a missing file"},
	{"Snapshots/List", `"=="`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Snapshots/Cleanup", "", codes.OK, "containerd has none for these snapshotters"},
	{"Containers/Create", `key:""`, codes.InvalidArgument, "the label is looked at first"},
	{"Containers/Get", "", codes.OK, "a whole update replaces the extensions, containerd's only adds"},
	{"Tasks/Create", `runtime_path:"/nonexistent"`, codes.NotFound, "containerd answers Unknown"},
	{"Tasks/Create", `\x08`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Exec", `"bad id"`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Exec", `"no json"`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Exec", `"e3"`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Metrics", `"=="`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Update", `"c"`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/Checkpoint", `nonsense`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Tasks/DeleteProcess", `exec_id:""`, codes.InvalidArgument, "containerd takes it for a process without a name"},
	{"Diff/Apply", "nonsense", codes.Unimplemented, "containerd answers Unknown"},
	{"Store/Delete", "", codes.NotFound, "containerd answers Unknown"},
	{"Controller/Create", "", codes.Unimplemented, "runc's shims have no sandboxes; containerd says it as Unknown"},
	{"Controller/Start", "", codes.NotFound, "containerd answers Unknown"},
	{"Controller/Platform", "", codes.NotFound, "containerd does not have the method"},
	{"Controller/Platform", "", codes.InvalidArgument, "containerd does not have the method"},
	{"Controller/Update", "", codes.InvalidArgument, "containerd answers Unknown"},
	{"Mounts/Activate", `mount 3`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Events/Subscribe", `"=="`, codes.InvalidArgument, "containerd answers Unknown"},
	{"Introspection/Server", "", codes.OK, "what containerd deprecates is not deprecated here"},
	{"Introspection/PluginInfo", "nonsense", codes.Unimplemented, "containerd answers Unknown"},
	{"Streaming/Stream", "nonsense", codes.InvalidArgument, "containerd answers Unknown"},
	{"Transfer/Transfer", "", codes.Unimplemented, "containerd answers Unknown"},
}

// meant tells whether a difference is deliberate.
func meant(c call, ours answer) bool {
	request := strings.Join(c.requests, " | ")
	for _, d := range deliberate {
		if d.method == c.method && d.code == ours.Code && strings.Contains(request, d.request) {
			return true
		}
	}
	return false
}

// compareAll makes the calls of a script of both daemons, in order, and compares.
// It returns the methods whose answers were all as they should be, those that were not,
// and those that have ended containerd.
func (p pair) compareAll(t *testing.T, script []call) (same, different, fatal map[string]bool) {
	t.Helper()
	same, different, fatal = make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for i, c := range script {
		ours, theirs := p.ours.do(c), p.theirs.do(c)
		if p.theirs.died(theirs) && ours.Code != codes.OK && ours.Code != codes.Unknown && ours.Code != codes.Internal {
			t.Logf("%s %s: containerd dies of it, ours says %v", c.method, c.requests, ours)
			same[c.method], fatal[c.method] = true, true
			continue
		}
		if ours.Code == theirs.Code && reflect.DeepEqual(ours.Messages, theirs.Messages) {
			same[c.method] = true
			continue
		}
		name := fmt.Sprintf("%s [%s] %s", c.method, c.ns, strings.Join(c.requests, " | "))
		if meant(c, ours) {
			same[c.method] = true
			continue
		}
		different[c.method] = true
		t.Errorf("call %d: %s\n  theirs %.1500s\n    ours %.1500s", i, name, theirs, ours)
	}
	for m := range different {
		delete(same, m)
	}
	return same, different, fatal
}

// TestDifference compares all methods of the API, called well and badly.
func TestDifference(t *testing.T) {
	p := newPair(t, "")
	same, different, fatal := p.compareAll(t, script)
	checkTable(t, "API", "method", apiRows(t, same, different, fatal))
}

// TestIsolation compares what namespaces see of each other's content when they are
// told to share nothing, or only what is labelled so.
func TestIsolation(t *testing.T) {
	p := newPair(t, "[plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'isolated'\n")
	p.compareAll(t, []call{
		in("", "Namespaces/Create", `namespace:{name:"open" labels:{key:"containerd.io/namespace.shareable" value:"true"}}`),
		in("closed", "Leases/Create", `id:"l"`),
		in("open", "Leases/Create", `id:"l"`),
		in("third", "Leases/Create", `id:"l"`),
		leased("closed", "l", "Content/Write", `action:WRITE ref:"r" total:5 expected:"`+hello+`" data:"hello"`, `action:COMMIT ref:"r" offset:5 total:5 expected:"`+hello+`"`),
		leased("third", "l", "Content/Write", `action:WRITE ref:"r" total:5 expected:"`+hello+`" data:"he"`),
		in("third", "Content/Info", `digest:"`+hello+`"`),
		in("third", "Content/Status", `ref:"r"`),
		leased("third", "l", "Content/Write", `action:WRITE ref:"r" offset:2 data:"llo"`, `action:COMMIT ref:"r" offset:5 total:5 expected:"`+hello+`"`),
		in("third", "Content/Info", `digest:"`+hello+`"`),
		in("third", "Content/Delete", `digest:"`+hello+`"`),
		leased("open", "l", "Content/Write", `action:WRITE ref:"r" total:5 expected:"`+hello+`" data:"hello"`, `action:COMMIT ref:"r" offset:5 total:5 expected:"`+hello+`"`),
		in("open", "Content/Info", `digest:"`+hello+`"`),
		leased("third", "l", "Content/Write", `action:STAT ref:"again" total:5 expected:"`+hello+`"`),
		in("third", "Content/ListStatuses", `filters:"ref==again"`),
		in("third", "Content/Info", `digest:"`+hello+`"`),
		in("closed", "Content/List", ``),
	})
}

// elsewhere are methods that tests of their own compare: their answers do not end,
// or depend on what else happens.
var elsewhere = map[string]string{
	"Health/Watch": "by TestStreamsEnd",
}
