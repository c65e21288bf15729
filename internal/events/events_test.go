package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/object"

	api "github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

func TestSubscriberSeesEverythingInOrder(t *testing.T) {
	x := New()
	ctx, cancel := context.WithCancel(t.Context())
	ch, errs := x.Subscribe(ctx)
	const publishers, each = 8, 500
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				x.Publish(ctx, "ns", taskStart(fmt.Sprintf("p%d", p), uint32(i)))
			}
		})
	}
	next := map[string]uint32{}
	var last time.Time
	for range publishers * each {
		e := <-ch
		if e.Namespace != "ns" || e.Topic != "/tasks/start" || e.Body.TypeURL != "containerd.events.TaskStart" {
			t.Fatalf("unexpected event %+v", e)
		}
		if e.Timestamp.Before(last) {
			t.Fatal("timestamps go back")
		}
		last = e.Timestamp
		v, err := typeurl.UnmarshalByTypeURL(e.Body.TypeURL, e.Body.Value)
		if err != nil {
			t.Fatal(err)
		}
		start := v.(*api.TaskStart)
		if start.Pid != next[start.ContainerID] {
			t.Fatalf("publisher %s: got event %d, want %d", start.ContainerID, start.Pid, next[start.ContainerID])
		}
		next[start.ContainerID]++
	}
	wg.Wait()
	cancel()
	if _, open := <-ch; open {
		t.Error("event after the end")
	}
	if err, open := <-errs; open {
		t.Errorf("a cancelled subscription ends with %v", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.subs) != 0 {
		t.Errorf("%d subscriptions are left", len(x.subs))
	}
}

func TestSlowSubscriberIsEnded(t *testing.T) {
	x := New()
	ch, errs := x.Subscribe(t.Context())
	fast, fastErrs := x.Subscribe(t.Context())
	for range queueLimit + 2 {
		x.Publish(t.Context(), "ns", taskOOM("c"))
		<-fast
	}
	// One more than the limit may be under way, in the hands of the pump.
	var n int
	for range ch {
		n++
	}
	if err := <-errs; !errdefs.IsResourceExhausted(err) {
		t.Errorf("slow subscriber ends with %v after %d events", err, n)
	}
	select {
	case err := <-fastErrs:
		t.Errorf("the subscriber that keeps up ended: %v", err)
	default:
	}
}

// Large events of a client do not pile up for one that does not read.
func TestSlowSubscriberHoldsLittle(t *testing.T) {
	x := New()
	ch, errs := x.Subscribe(t.Context())
	large := object.Event{Timestamp: time.Unix(1, 0), Namespace: "ns", Topic: "/large", Body: object.Any{TypeURL: "t", Value: make([]byte, 1<<20)}}
	for range queueBytes>>20 + 2 {
		if err := x.Forward(t.Context(), large); err != nil {
			t.Fatal(err)
		}
	}
	for range ch {
	}
	if err := <-errs; !errdefs.IsResourceExhausted(err) {
		t.Errorf("slow subscriber ends with %v", err)
	}
	ch, _ = x.Subscribe(t.Context())
	for range 2 * queueBytes >> 20 { // one that keeps up sees any number of them
		if err := x.Forward(t.Context(), large); err != nil {
			t.Fatal(err)
		}
		<-ch
	}
}

func TestSubscribeEndsAtDeadline(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, errs := New().Subscribe(ctx)
	if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestForwardValidates(t *testing.T) {
	good := object.Event{Timestamp: time.Unix(1, 0), Namespace: "ns", Topic: "/tasks/exit"}
	x := New()
	ch, _ := x.Subscribe(t.Context())
	if err := x.Forward(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if e := <-ch; !e.Timestamp.Equal(good.Timestamp) {
		t.Errorf("forwarded event became %+v", e)
	}
	for name, change := range map[string]func(*object.Event){
		"no namespace":      func(e *object.Event) { e.Namespace = "" },
		"bad namespace":     func(e *object.Event) { e.Namespace = "a/b" },
		"long namespace":    func(e *object.Event) { e.Namespace = strings.Repeat("a", 77) },
		"no topic":          func(e *object.Event) { e.Topic = "" },
		"relative topic":    func(e *object.Event) { e.Topic = "tasks/exit" },
		"empty topic":       func(e *object.Event) { e.Topic = "/" },
		"empty part":        func(e *object.Event) { e.Topic = "/tasks//exit" },
		"separator at end":  func(e *object.Event) { e.Topic = "/tasks-" },
		"double separator":  func(e *object.Event) { e.Topic = "/a..b" },
		"separator first":   func(e *object.Event) { e.Topic = "/_a" },
		"no time":           func(e *object.Event) { e.Timestamp = time.Time{} },
		"control character": func(e *object.Event) { e.Topic = "/a\n" },
	} {
		e := good
		change(&e)
		if err := x.Forward(t.Context(), e); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnvelopesDecode(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	exit := object.Exit{PID: 7, Status: 137, At: at}
	for topic, e := range map[string]Event{
		"/namespaces/create": NamespaceCreate(object.Namespace{Name: "a"}),
		"/namespaces/update": NamespaceUpdate(object.Namespace{Name: "a"}),
		"/namespaces/delete": NamespaceDelete("a"),
		"/containers/create": ContainerCreate(object.Container{ID: "c", Runtime: object.Runtime{Name: "r", Options: &object.Any{TypeURL: "u"}}}),
		"/containers/update": ContainerUpdate(object.Container{ID: "c"}),
		"/containers/delete": ContainerDelete("c"),
		"/images/create":     ImageCreate(object.Image{Name: "i"}),
		"/images/update":     ImageUpdate(object.Image{Name: "i"}),
		"/images/delete":     ImageDelete("i"),
		"/content/create":    ContentCreate("sha256:0", 1, "m"),
		"/content/delete":    ContentDelete("sha256:0"),
		"/snapshot/prepare":  SnapshotPrepare("overlayfs", "k", "p"),
		"/snapshot/commit":   SnapshotCommit("overlayfs", "k", "n"),
		"/snapshot/remove":   SnapshotRemove("overlayfs", "k"),
		"/sandboxes/create":  SandboxCreate("s"),
		"/sandboxes/start":   SandboxStart("s"),
		"/sandboxes/exit":    SandboxExit("s", exit),
		"/tasks/delete":      TaskDelete("c", "", exit),
		"/tasks/exit":        TaskExit("c", "", exit),
	} {
		env, err := e.Envelope("ns", at)
		if err != nil {
			t.Errorf("%s: %v", topic, err)
			continue
		}
		if env.Topic != topic || !env.Timestamp.Equal(at) {
			t.Errorf("%s became %+v", topic, env)
		}
		v, err := typeurl.UnmarshalByTypeURL(env.Body.TypeURL, env.Body.Value)
		if err != nil {
			t.Errorf("%s does not decode: %v", topic, err)
		}
		if exited, ok := v.(*api.TaskExit); ok && (exited.ID != "c" || exited.ExitStatus != 137 || !exited.ExitedAt.AsTime().Equal(at)) {
			t.Errorf("task exit became %v", exited)
		}
	}
}

func TestPublishOfWhatCannotBeSent(t *testing.T) {
	x := New()
	ch, _ := x.Subscribe(t.Context())
	x.Publish(t.Context(), "", taskOOM("c"))
	x.Publish(t.Context(), "ns", Event{Topic: "/a"})
	x.Publish(t.Context(), "ns", taskOOM("\xff"))
	x.Publish(t.Context(), "ns", taskOOM("last"))
	if e := <-ch; !strings.Contains(string(e.Body.Value), "last") {
		t.Errorf("got %+v", e)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, subs := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("subscribers=%d", subs), func(b *testing.B) {
			x := New()
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			for range subs {
				ch, _ := x.Subscribe(ctx)
				wg.Go(func() {
					for range ch {
					}
				})
			}
			for b.Loop() {
				x.Publish(ctx, "ns", taskStart("c", 1))
			}
			cancel()
			wg.Wait()
		})
	}
}

// Events that shims publish, not the daemon.

func taskStart(id string, pid uint32) Event {
	return Event{"/tasks/start", &api.TaskStart{ContainerID: id, Pid: pid}}
}

func taskOOM(id string) Event {
	return Event{"/tasks/oom", &api.TaskOOM{ContainerID: id}}
}
