package compat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/dynamicpb"
)

// holds counts what the daemon holds: goroutines, by its debug socket, and open files.
func (n *node) holds() (goroutines, files int) {
	n.t.Helper()
	hc := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", n.dir+"/debug.sock") },
	}}
	resp, err := hc.Get("http://debug/debug/pprof/goroutine?debug=1")
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := fmt.Sscanf(line, "goroutine profile: total %d", &goroutines); err != nil {
		n.t.Fatalf("%q: %v", line, err)
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	return goroutines, len(entries)
}

// leaks checks that what happens in do leaves nothing in the daemon. A few of
// each may be there for other reasons (a timer, an idle worker).
func (n *node) leaks(what string, do func()) {
	n.t.Helper()
	const slack = 4
	g0, f0 := n.holds()
	do()
	var g, f int
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if g, f = n.holds(); g <= g0+slack && f <= f0+slack {
			return
		}
	}
	n.t.Errorf("%s: %d goroutines and %d files before, %d and %d after", what, g0, f0, g, f)
}

// TestStreamsEnd opens every streaming method many times and goes away in the
// middle, in each way in which a client can. Nothing is left in the daemon.
func TestStreamsEnd(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	var big digest.Digest
	w.try(w.c.ContentStore().Walk(w.ctx, func(i content.Info) error {
		if i.Size > 1<<18 {
			big = i.Digest
		}
		return nil
	}))
	for _, c := range []call{
		in(n.namespace(), "Containers/ListStream", ``),
		in(n.namespace(), "Content/List", ``),
		in(n.namespace(), "Content/Read", `digest:"`+big.String()+`"`),
		in(n.namespace(), "Content/Write", `action:WRITE ref:"torn" data:"some"`),
		in(n.namespace(), "Snapshots/List", `snapshotter:"overlayfs"`),
		in(n.namespace(), "Mounts/List", ``),
		in("", "Events/Subscribe", ``),
		in("", "Events/Subscribe", `filters:"topic==/x"`),
		in(n.namespace(), "Streaming/Stream", `type_url:"containerd.services.streaming.v1.StreamInit" value:"\n\001x"`),
		in("", "Health/Watch", ``),
	} {
		n.leaks(c.method, func() {
			for i := range 60 {
				c.abandon(t, n.addr, i)
			}
		})
	}
	// The ingest that was abandoned is taken up again.
	writer, err := w.c.ContentStore().Writer(w.ctx, content.WithRef("torn"))
	w.try(err)
	st, err := writer.Status()
	w.try(err)
	if st.Offset != 4 {
		t.Errorf("the abandoned ingest has %d bytes, want 4", st.Offset)
	}
	_, err = writer.Write([]byte(" bytes"))
	w.try(err)
	ctx, done, err := w.c.WithLease(w.ctx)
	w.try(err)
	defer done(ctx)
	w.try(writer.Commit(ctx, 10, digest.FromString("some bytes")))
}

// abandon opens a stream and leaves it: after the request, after the first answer
// (both by cancelling), or by closing the connection.
func (c call) abandon(t *testing.T, addr string, i int) {
	t.Helper()
	full, m := method(t, c.method)
	conn := dialNode(t, addr)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if c.ns != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.ns)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, full)
	if err != nil {
		t.Fatal(err)
	}
	req := dynamicpb.NewMessage(m.Input())
	if err := prototext.Unmarshal([]byte(c.requests[0]), req); err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(req); err != nil {
		t.Fatal(err)
	}
	if !m.IsStreamingClient() {
		stream.CloseSend()
	}
	endless := m.Name() == "Subscribe"
	if i%3 > 0 && !endless {
		if err := stream.RecvMsg(dynamicpb.NewMessage(m.Output())); err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "already exists") && !strings.Contains(err.Error(), "locked") && !strings.Contains(err.Error(), "unavailable") {
			t.Errorf("%s: %v", c.method, err)
		}
	}
	if i%2 == 0 {
		cancel()
	}
}

// TestWaitsEnd goes away from calls that wait for what does not happen.
func TestWaitsEnd(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	task := w.create("waits", forever, nullIO, false)
	n.leaks("Tasks/Wait", func() {
		for range 50 {
			ctx, cancel := context.WithCancel(w.ctx)
			_, err := task.Wait(ctx)
			w.try(err)
			cancel()
		}
	})
	w.kill("waits")
}

// TestSubscriptions compares what subscribers see: filters, namespaces, all of them.
func TestSubscriptions(t *testing.T) {
	seen := map[string][]string{}
	for _, bin := range []string{oursBin, peerBin} {
		n := newNode(t, "")
		c := n.start(bin)
		for _, filters := range [][]string{
			nil,
			{`topic=="/test/b"`},
			{`namespace==one`, `topic~="^/test/c"`},
			{`event.container_id==x`},
			{`event.container_id!=x,namespace==two`},
			{`topic~="^/namespaces"`},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			ch, errs := c.EventService().Subscribe(ctx, filters...)
			// containerd gives no sign that a subscription has begun, but events.
			one, two := namespaces.WithNamespace(ctx, "one"), namespaces.WithNamespace(ctx, "two")
			time.Sleep(100 * time.Millisecond)
			for _, e := range []struct {
				ctx   context.Context
				topic string
				id    string
			}{{one, "/test/a", "x"}, {two, "/test/b", "x"}, {one, "/test/b", "y"}, {two, "/test/c/d", "y"}, {one, "/test/c", "z"}} {
				if err := c.EventService().Publish(e.ctx, e.topic, &eventsapi.TaskOOM{ContainerID: e.id}); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.NamespaceService().Create(ctx, fmt.Sprintf("ns%d", len(filters)), nil); err != nil && !errdefs.IsAlreadyExists(err) {
				t.Fatal(err)
			}
			key := fmt.Sprint(filters)
			var got []string
			quiet := time.NewTimer(700 * time.Millisecond)
			for more := true; more; {
				select {
				case e := <-ch:
					got = append(got, describeEvent(e))
				case err := <-errs:
					t.Fatal(err)
				case <-quiet.C:
					more = false
				}
			}
			cancel()
			if bin == oursBin {
				seen[key] = got
			} else if fmt.Sprint(seen[key]) != fmt.Sprint(got) {
				t.Errorf("filters %s:\n  theirs %v\n    ours %v", key, got, seen[key])
			}
		}
	}
}

func describeEvent(e *events.Envelope) string {
	return fmt.Sprintf("%s %s %s %q", e.Namespace, e.Topic, e.Event.GetTypeUrl(), e.Event.GetValue())
}

// TestTransfersEnd cuts transfers off whose client is a part of them.
func TestTransfersEnd(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	n.leaks("an import whose bytes stop", func() {
		for range 10 {
			ctx, cancel := context.WithCancel(w.ctx)
			r, feed := io.Pipe()
			go func() {
				file := archiveOf(t)
				io.CopyN(feed, file, 100<<10)
				cancel()
				feed.CloseWithError(io.ErrUnexpectedEOF)
			}()
			if err := w.c.Transfer(ctx, archive.NewImageImportStream(r, ""), transferimage.NewStore("torn:1")); err == nil {
				t.Error("half an archive was imported")
			}
			r.Close()
		}
	})
	// A registry that wants a password, and a client that is asked for it.
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if user, secret, ok := r.BasicAuth(); ok && user == "me" && secret == "right" {
			http.NotFound(rw, r)
			return
		}
		rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		rw.WriteHeader(http.StatusUnauthorized)
	}))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/image:1"
	pull := func(ctx context.Context, c *client.Client, h registry.CredentialHelper) error {
		reg, err := registry.NewOCIRegistry(ctx, ref, registry.WithCredentials(h), registry.WithDefaultScheme("http"))
		w.try(err)
		return c.Transfer(ctx, reg, transferimage.NewStore(ref), transfer.WithProgress(func(transfer.Progress) {}))
	}
	if err := pull(w.ctx, w.c, answers{&asked, registry.Credentials{Username: "me", Secret: "right"}}); !errdefs.IsNotFound(err) || asked.Load() == 0 {
		t.Errorf("with the right password: %v, asked %d times; want not found", err, asked.Load())
	}
	if err := pull(w.ctx, w.c, answers{&asked, registry.Credentials{Username: "me", Secret: "wrong"}}); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("with the wrong password: %v", err)
	}
	n.leaks("a client that leaves when it is asked for a password", func() {
		for i := range 10 {
			c, err := client.New(n.addr)
			w.try(err)
			ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
			leave := leaves{func() {
				if i%2 == 0 {
					c.Close()
				} else {
					cancel()
				}
			}}
			if err := pull(ctx, c, leave); err == nil {
				t.Error("pulled without a password")
			}
			cancel()
			c.Close()
		}
	})
	// The daemon is as it was.
	if err := pull(w.ctx, w.c, answers{&asked, registry.Credentials{Username: "me", Secret: "right"}}); !errdefs.IsNotFound(err) {
		t.Errorf("afterwards: %v", err)
	}
	// Clients make leases that expire for their transfers, and those that left could
	// not delete them.
	list, err := w.c.LeasesService().List(w.ctx)
	w.try(err)
	for _, l := range list {
		if l.ID != "kept" && l.Labels["containerd.io/gc.expire"] == "" {
			t.Errorf("lease %v is left", l)
		}
	}
}

type answers struct {
	asked *atomic.Int32
	creds registry.Credentials
}

func (a answers) GetCredentials(context.Context, string, string) (registry.Credentials, error) {
	a.asked.Add(1)
	return a.creds, nil
}

type leaves struct{ leave func() }

func (l leaves) GetCredentials(ctx context.Context, _, _ string) (registry.Credentials, error) {
	l.leave()
	return registry.Credentials{}, context.Canceled
}

// TestIngestsTakenUp leaves ingests in the middle and goes on with them, by
// another client and after a restart.
func TestIngestsTakenUp(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	data := strings.Repeat("0123456789abcdef", 64<<10)
	desc := ispec.Descriptor{Digest: digest.FromString(data), Size: int64(len(data))}
	ctx := leases.WithLease(w.ctx, "kept")
	write := func(c *client.Client, upTo int) {
		t.Helper()
		writer, err := content.OpenWriter(ctx, c.ContentStore(), content.WithRef("half"), content.WithDescriptor(desc))
		w.try(err)
		st, err := writer.Status()
		w.try(err)
		if _, err := writer.Write([]byte(data[st.Offset:upTo])); err != nil {
			t.Fatal(err)
		}
		if upTo == len(data) {
			w.try(writer.Commit(ctx, desc.Size, desc.Digest))
		}
		if upTo%2 == 0 {
			w.try(writer.Close())
		}
	}
	write(w.c, 100_001) // not closed: the connection is
	w.c.Close()
	c, err := client.New(n.addr)
	w.try(err)
	write(c, 300_000)
	c.Close()
	n.stop(9)
	w.c = n.start(oursBin)
	st, err := w.c.ContentStore().Status(ctx, "half")
	w.try(err)
	if st.Offset != 300_000 {
		t.Errorf("after SIGKILL the ingest has %d bytes, want 300000", st.Offset)
	}
	write(w.c, len(data))
	got, err := content.ReadBlob(ctx, w.c.ContentStore(), desc)
	w.try(err)
	if string(got) != data {
		t.Error("the blob has other bytes")
	}
}
