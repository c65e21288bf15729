package events

import (
	"testing"
	"time"

	"berth/internal/object"

	"github.com/containerd/errdefs"
)

func TestFilters(t *testing.T) {
	// The sequence that every subscription is offered, by publishing or by
	// forwarding (where the body is decoded for the filter).
	sent := []struct {
		namespace string
		event     Event
	}{
		{"one", TaskExit("c1", "", object.Exit{})},
		{"one", TaskExit("c2", "e", object.Exit{})},
		{"two", ContainerCreate(object.Container{ID: "c1", Image: "busybox"})},
		{"two", taskOOM("end")},
	}
	for _, tt := range []struct {
		filters []string
		want    []string
	}{
		{[]string{`topic=="/tasks/exit"`}, []string{"/tasks/exit", "/tasks/exit"}},
		{[]string{`topic~="/tasks/.*"`}, []string{"/tasks/exit", "/tasks/exit", "/tasks/oom"}},
		{[]string{`namespace==two`}, []string{"/containers/create", "/tasks/oom"}},
		{[]string{`event.container_id==c1`, `event.container_id==end`}, []string{"/tasks/exit", "/tasks/oom"}},
		{[]string{`event.id==c1`, `event.container_id==end`}, []string{"/tasks/exit", "/containers/create", "/tasks/oom"}},
		{[]string{`event.image==busybox,namespace==two`, `topic=="/tasks/oom"`}, []string{"/containers/create", "/tasks/oom"}},
		{[]string{`nothing==x`, `topic=="/tasks/oom"`}, []string{"/tasks/oom"}},
	} {
		for _, forward := range []bool{false, true} {
			x := New()
			ch, _ := x.Subscribe(t.Context(), tt.filters...)
			for _, s := range sent {
				if !forward {
					x.Publish(t.Context(), s.namespace, s.event)
					continue
				}
				env, err := s.event.Envelope(s.namespace, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if err := x.Forward(t.Context(), env); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range tt.want {
				if got := (<-ch).Topic; got != want {
					t.Errorf("%q, forward %v: event %d is %s, want %s", tt.filters, forward, i, got, want)
				}
			}
		}
	}
}

func TestMalformedFilter(t *testing.T) {
	ch, errs := New().Subscribe(t.Context(), "topic=")
	if err := <-errs; !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if _, open := <-ch; open {
		t.Error("event from a subscription that never began")
	}
}
