package restart

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/content"
	"berth/internal/events"
	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/task"

	"github.com/containerd/errdefs"
)

func TestPolicies(t *testing.T) {
	for in, want := range map[string]policy{
		"":                 {name: "always"},
		"always":           {name: "always"},
		"no":               {name: "no"},
		"unless-stopped":   {name: "unless-stopped"},
		"on-failure":       {name: "on-failure"},
		"on-failure:3":     {"on-failure", 3},
		"on-failure:x":     {},
		"on-failure:":      {},
		"always:1":         {},
		"no:":              {},
		"sometimes":        {},
		"unless-stopped:0": {},
	} {
		got, err := parsePolicy(in)
		if got != want || (err == nil) != (want.name != "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

func TestAim(t *testing.T) {
	stopped := func(status uint32) *object.Process {
		return &object.Process{Status: object.TaskStopped, Exit: object.Exit{Status: status}}
	}
	for _, c := range []struct {
		name   string
		labels map[string]string
		task   *object.Process
		exit   uint32
		want   goal
	}{
		{"no labels", nil, nil, 0, leave},
		{"no task", map[string]string{StatusLabel: "running"}, nil, 0, run},
		{"running", map[string]string{StatusLabel: "running"}, &object.Process{Status: object.TaskRunning}, 0, leave},
		{"paused", map[string]string{StatusLabel: "running"}, &object.Process{Status: object.TaskPaused}, 0, leave},
		{"ended", map[string]string{StatusLabel: "running"}, stopped(0), 0, run},
		{"created", map[string]string{StatusLabel: "running"}, &object.Process{Status: object.TaskCreated}, 0, run},
		{"never", map[string]string{StatusLabel: "running", PolicyLabel: "no"}, stopped(1), 0, leave},
		{"stopped by hand", map[string]string{StatusLabel: "running", PolicyLabel: "unless-stopped", StoppedLabel: "true"}, stopped(1), 0, leave},
		{"stopped by hand, always", map[string]string{StatusLabel: "running", PolicyLabel: "always", StoppedLabel: "true"}, stopped(1), 0, leave},
		{"no failure", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure"}, stopped(0), 0, leave},
		{"failure", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure"}, stopped(3), 0, run},
		{"failure, deleted", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure"}, nil, 3, run},
		{"a failure too many", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure:2", CountLabel: "2"}, stopped(3), 0, leave},
		{"the last failure", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure:2", CountLabel: "1"}, stopped(3), 0, run},
		{"to be stopped", map[string]string{StatusLabel: "stopped"}, &object.Process{Status: object.TaskRunning}, 0, stop},
		{"is stopped", map[string]string{StatusLabel: "stopped"}, stopped(0), 0, leave},
		{"unknown status", map[string]string{StatusLabel: "sleeping"}, stopped(0), 0, leave},
	} {
		if got, err := aim(c.labels, c.task, c.exit); err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	for _, labels := range []map[string]string{
		{StatusLabel: "running", PolicyLabel: "sometimes"},
		{StatusLabel: "running", PolicyLabel: "on-failure", CountLabel: "many"},
	} {
		if got, err := aim(labels, nil, 1); got != leave || err == nil {
			t.Errorf("%v: %v, %v", labels, got, err)
		}
	}
}

// tasks is a task manager whose tasks are words.
type tasks struct {
	exchange *events.Exchange
	mu       sync.Mutex
	all      map[string]object.Process
	starts   []time.Time
	io       object.TaskIO
	refuse   error
}

func (f *tasks) State(_ context.Context, _, id, _ string) (object.Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.all[id]
	if !ok {
		return p, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
	}
	return p, nil
}

func (f *tasks) Create(_ context.Context, _ string, c object.Container, o task.CreateOptions) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		f.starts = append(f.starts, time.Now())
		return 0, f.refuse
	}
	if _, ok := f.all[c.ID]; ok {
		return 0, fmt.Errorf("task %s: %w", c.ID, errdefs.ErrAlreadyExists)
	}
	f.all[c.ID] = object.Process{ContainerID: c.ID, Status: object.TaskCreated}
	f.io = o.IO
	return 1, nil
}

func (f *tasks) Start(_ context.Context, _, id, _ string) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[id] = object.Process{ContainerID: id, Status: object.TaskRunning}
	f.starts = append(f.starts, time.Now())
	return 1, nil
}

func (f *tasks) Kill(ctx context.Context, ns, id, _ string, _ uint32, _ bool) error {
	if p, err := f.State(ctx, ns, id, ""); err != nil {
		return err
	} else if p.Status == object.TaskStopped {
		return errdefs.ErrNotFound
	}
	f.exit(id, 137)
	return nil
}

func (f *tasks) Wait(context.Context, string, string, string) (object.Exit, error) {
	return object.Exit{}, nil
}

func (f *tasks) Delete(_ context.Context, _, id, _ string) (object.Exit, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, id)
	return object.Exit{}, nil
}

// exit ends a task, as its shim would tell.
func (f *tasks) exit(id string, status uint32) {
	f.mu.Lock()
	exit := object.Exit{Status: status, At: time.Now()}
	f.all[id] = object.Process{ContainerID: id, Status: object.TaskStopped, Exit: exit}
	f.mu.Unlock()
	f.exchange.Publish(context.Background(), "ns", events.TaskExit(id, "", exit))
}

func (f *tasks) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

// world is a monitor over a real database.
type world struct {
	*testing.T
	db    *meta.DB
	tasks *tasks
}

func (w world) container(id string, labels map[string]string) {
	w.Helper()
	_, err := w.db.Scope("ns", "").Containers().Create(w.Context(), object.Container{
		ID: id, Labels: labels, Runtime: object.Runtime{Name: "io.containerd.runc.v2"},
		Spec: &object.Any{TypeURL: "x", Value: []byte(`{"process":{"terminal":true}}`)},
	})
	if err != nil {
		w.Fatal(err)
	}
}

func (w world) label(id, name string) string {
	w.Helper()
	c, err := w.db.Scope("ns", "").Containers().Get(w.Context(), id)
	if err != nil {
		w.Fatal(err)
	}
	return c.Labels[name]
}

func (w world) set(id string, labels map[string]string) {
	w.Helper()
	if _, err := w.db.Scope("ns", "").Containers().Update(w.Context(), object.Container{ID: id, Labels: labels}, "labels"); err != nil {
		w.Fatal(err)
	}
}

// later lets time pass, and everything that is due then happen.
func (w world) later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// with runs a test in a bubble of its own time. Containers made by before are
// there when the monitor starts.
func with(t *testing.T, before, test func(world)) {
	synctest.Test(t, func(t *testing.T) {
		dir, exchange := t.TempDir(), events.New()
		blobs, err := content.OpenLocal(content.LocalOptions{Root: filepath.Join(dir, "content")})
		if err != nil {
			t.Fatal(err)
		}
		db, err := meta.Open(t.Context(), meta.Options{Path: filepath.Join(dir, "meta.db"), Content: blobs, Events: exchange, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		w := world{t, db, &tasks{exchange: exchange, all: make(map[string]object.Process)}}
		if err := db.Namespaces().Create(t.Context(), object.Namespace{Name: "ns"}); err != nil {
			t.Fatal(err)
		}
		before(w)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		m := New(Options{DB: db, Tasks: w.tasks, Events: exchange, Log: slog.New(slog.DiscardHandler)})
		run.Go(func() { m.Run(ctx) })
		synctest.Wait()
		test(w)
		cancel()
		run.Wait()
		if exchange.Publish(t.Context(), "ns", events.TaskExit("x", "", object.Exit{})); len(m.table) > 10 {
			t.Errorf("the table grows: %d", len(m.table))
		}
	})
}

func TestRestart(t *testing.T) {
	running := map[string]string{StatusLabel: "running", LogLabel: "file:///x"}
	with(t, func(w world) { w.container("old", maps.Clone(running)) }, func(w world) {
		// At the start of the daemon, without a task.
		w.later(10 * time.Millisecond)
		if w.tasks.count() != 1 || w.label("old", CountLabel) != "1" {
			t.Fatalf("%d starts, count %q", w.tasks.count(), w.label("old", CountLabel))
		}
		if io := w.tasks.io; io != (object.TaskIO{Stdout: "file:///x", Terminal: true}) {
			t.Errorf("output to %+v", io)
		}
		// An end soon after is not followed by a start at once.
		w.tasks.exit("old", 1)
		w.later(5 * time.Second)
		if w.tasks.count() != 1 {
			t.Error("started again before the interval was over")
		}
		w.later(5 * time.Second)
		if w.tasks.count() != 2 || w.label("old", CountLabel) != "2" {
			t.Errorf("%d starts after the interval, count %q", w.tasks.count(), w.label("old", CountLabel))
		}
		// One after a long life is.
		w.later(time.Hour)
		w.tasks.exit("old", 0)
		w.later(settle + time.Millisecond)
		if w.tasks.count() != 3 {
			t.Errorf("%d starts after a long life", w.tasks.count())
		}
		// The labels change: it is to be stopped.
		w.set("old", map[string]string{StatusLabel: "stopped"})
		w.later(settle + time.Millisecond)
		if _, err := w.tasks.State(t.Context(), "ns", "old", ""); !errdefs.IsNotFound(err) {
			t.Errorf("still there: %v", err)
		}
		w.later(time.Hour)
		if w.tasks.count() != 3 {
			t.Error("started again though it is to be stopped")
		}
		if err := w.db.Scope("ns", "").Containers().Delete(t.Context(), "old"); err != nil {
			t.Fatal(err)
		}
		w.later(time.Second)
	})
}

// A container whose client is about to start it is left to it.
func TestRestartNew(t *testing.T) {
	with(t, func(world) {}, func(w world) {
		w.container("new", map[string]string{StatusLabel: "running"})
		w.container("other", nil)
		w.later(9 * time.Second)
		if w.tasks.count() != 0 {
			t.Fatal("started at once")
		}
		if _, err := w.tasks.Create(t.Context(), "ns", object.Container{ID: "new"}, task.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.later(5 * time.Second) // it is seen while it is created
		if w.tasks.count() != 0 {
			t.Fatal("a created task was started")
		}
		w.later(10 * time.Second) // nobody has started it since
		if w.tasks.count() != 1 {
			t.Errorf("%d starts of one that nobody starts", w.tasks.count())
		}
		if _, err := w.tasks.State(t.Context(), "ns", "other", ""); err == nil {
			t.Error("one without labels was started")
		}
	})
}

func TestOnFailure(t *testing.T) {
	with(t, func(w world) {
		w.container("c", map[string]string{StatusLabel: "running", PolicyLabel: "on-failure:2"})
		w.tasks.all["c"] = object.Process{Status: object.TaskRunning}
	}, func(w world) {
		for i, want := range []int{1, 2, 2} {
			w.tasks.exit("c", 3)
			// Its client deletes the task; how it ended is known nevertheless.
			w.tasks.Delete(t.Context(), "ns", "c", "")
			w.later(time.Minute)
			if got := w.tasks.count(); got != want {
				t.Errorf("%d starts after failure %d, want %d", got, i+1, want)
			}
		}
	})
}

func TestStoppedByHand(t *testing.T) {
	with(t, func(w world) {
		w.container("always", map[string]string{StatusLabel: "running", PolicyLabel: "always", StoppedLabel: "true"})
		w.container("unless", map[string]string{StatusLabel: "running", PolicyLabel: "unless-stopped", StoppedLabel: "true"})
	}, func(w world) {
		w.later(time.Minute)
		if _, err := w.tasks.State(t.Context(), "ns", "always", ""); err != nil || w.label("always", StoppedLabel) != "false" {
			t.Errorf("always: %v, label %q", err, w.label("always", StoppedLabel))
		}
		if _, err := w.tasks.State(t.Context(), "ns", "unless", ""); !errdefs.IsNotFound(err) {
			t.Errorf("unless-stopped: %v", err)
		}
	})
}

// A start that fails is tried again once in an interval.
func TestFailedStart(t *testing.T) {
	with(t, func(w world) {
		w.container("c", map[string]string{StatusLabel: "running"})
		w.tasks.refuse = errdefs.ErrUnavailable
	}, func(w world) {
		w.later(35 * time.Second)
		if got := w.tasks.count(); got != 4 {
			t.Errorf("%d attempts in 35 s, want 4", got)
		}
	})
}
