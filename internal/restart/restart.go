// Package restart keeps containers in the state that their labels ask for: one
// that should run and has no running task gets one, as far as its restart policy
// allows; one that should be stopped has its task ended.
//
// It waits for events and asks nobody at intervals. What it knows of a container
// (when it was started last, how it ended last) it keeps in memory only: a
// daemon that starts looks at all containers once, when the tasks of the one
// before are recovered.
//
// Differs from containerd: a task is started again settle after its end, not at
// the next of regular looks; restarts of one container are at least the interval
// apart, so that one that cannot live is started no more often than there. The
// exit status of a task that was deleted in the meantime is known here, so that
// on-failure is decided by it. A task that was created and not started is left
// alone for an interval: somebody is about to start it.
//
// One goroutine owns the table of containers; the work on a container runs in
// another, one at a time for each. No lock.
package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"berth/internal/events"
	"berth/internal/meta"
	"berth/internal/object"
	"berth/internal/task"

	"github.com/containerd/errdefs"
)

// Tasks is what the monitor needs of a task.Manager.
type Tasks interface {
	State(ctx context.Context, namespace, id, execID string) (object.Process, error)
	Create(ctx context.Context, namespace string, c object.Container, opts task.CreateOptions) (uint32, error)
	Start(ctx context.Context, namespace, id, execID string) (uint32, error)
	Kill(ctx context.Context, namespace, id, execID string, signal uint32, all bool) error
	Wait(ctx context.Context, namespace, id, execID string) (object.Exit, error)
	Delete(ctx context.Context, namespace, id, execID string) (object.Exit, error)
}

// DefaultInterval is containerd's.
const DefaultInterval = 10 * time.Second

// settle is how long a client that waited for the end of a task has to delete
// it, before it is started again.
const settle = time.Second

// attempt bounds how long one start or stop of a task may take.
const attempt = 2 * time.Minute

// Options of a Monitor; all are required.
type Options struct {
	DB     *meta.DB
	Tasks  Tasks
	Events *events.Exchange
	// Interval is the least time between two restarts of a container, and how
	// long a failed one waits to be tried again; DefaultInterval when zero.
	Interval time.Duration
	Log      *slog.Logger
}

// Monitor is the restart monitor. Run does its work.
type Monitor struct {
	Options
	settle time.Duration
	// table of the containers with a status label.
	table map[key]*entry
	// wake is when the next of them is due; zero: none is.
	wake time.Time
	done chan result
}

type key struct{ namespace, id string }

// entry is what is known of one container.
type entry struct {
	// due is when it is to be looked at, zero when there is no reason to.
	due time.Time
	// busy: it is being looked at. dirty: something happened meanwhile.
	busy, dirty bool
	started     time.Time // by the monitor, the last time
	waiting     time.Time // since when it is seen as created and not started
	exit        uint32    // status of the last end that was seen
}

// result of one look at a container.
type result struct {
	key
	// gone: it has no status label, or is no more.
	gone bool
	// again, unless zero, is how long to wait before the next look.
	again   time.Duration
	started time.Time
	waiting time.Time
}

// New makes a monitor that does nothing until Run.
func New(o Options) *Monitor {
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	return &Monitor{Options: o, settle: min(settle, o.Interval), table: make(map[key]*entry), done: make(chan result)}
}

// Run looks after the containers until ctx ends, and returns when all its work
// has ended. To be called when the tasks of an earlier daemon are recovered.
func (m *Monitor) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	first := true
	for ctx.Err() == nil {
		// Subscribed before the look around: nothing is missed between.
		sub, cancel := context.WithCancel(ctx)
		queue, failed := m.Events.Subscribe(sub, `topic~="^/(containers|tasks)/(create|update|delete|exit)$"`)
		m.lookAround(ctx, first)
		first = false
		m.loop(ctx, &work, queue)
		cancel()
		for range queue {
		}
		if err := <-failed; err != nil && ctx.Err() == nil {
			m.Log.Warn("the restart monitor missed events and looks at all containers", "error", err)
		}
	}
}

// loop handles events and timers until ctx ends or the subscription does.
func (m *Monitor) loop(ctx context.Context, work *sync.WaitGroup, queue <-chan object.Event) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case e, ok := <-queue:
			if !ok {
				return
			}
			m.happened(e)
		case r := <-m.done:
			m.looked(r)
		case <-timer.C:
		case <-ctx.Done():
			m.drain(work)
			return
		}
		timer.Reset(m.begin(ctx, work))
	}
}

// drain takes the results of the work under way, that it can end.
func (m *Monitor) drain(work *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() { work.Wait(); close(ended) }()
	for {
		select {
		case <-m.done:
		case <-ended:
			return
		}
	}
}

// grain is the least time between two walks through the table: what is due at
// moments that lie closer together is looked at together.
const grain = 50 * time.Millisecond

// begin starts what is due, and tells how long nothing will be.
func (m *Monitor) begin(ctx context.Context, work *sync.WaitGroup) time.Duration {
	const never = 24 * time.Hour
	now := time.Now()
	switch {
	case m.wake.IsZero():
		return never
	case now.Before(m.wake):
		return m.wake.Sub(now)
	}
	m.wake = time.Time{}
	for k, e := range m.table {
		switch {
		case e.due.IsZero() || e.busy:
		case !e.due.After(now):
			e.busy, e.due = true, time.Time{}
			seen := *e
			work.Go(func() { m.done <- m.look(ctx, k, seen) })
		default:
			m.wakeAt(e.due)
		}
	}
	if m.wake.IsZero() {
		return never
	}
	if soonest := now.Add(grain); m.wake.Before(soonest) {
		m.wake = soonest
	}
	return m.wake.Sub(now)
}

func (m *Monitor) wakeAt(t time.Time) {
	if m.wake.IsZero() || t.Before(m.wake) {
		m.wake = t
	}
}

// soon has a container looked at after a while, or earlier if that is planned.
func (m *Monitor) soon(e *entry, after time.Duration) {
	if due := time.Now().Add(after); e.due.IsZero() || due.Before(e.due) {
		e.due = due
	}
	e.dirty = e.busy
	m.wakeAt(e.due)
}

// looked takes in the result of a look.
func (m *Monitor) looked(r result) {
	e := m.table[r.key]
	if e == nil {
		return
	}
	if r.gone && !e.dirty {
		delete(m.table, r.key)
		return
	}
	e.busy, e.dirty = false, false
	if !r.started.IsZero() {
		e.started = r.started
	}
	e.waiting = r.waiting
	if r.again > 0 {
		m.soon(e, r.again)
	} else if !e.due.IsZero() {
		m.wakeAt(e.due) // it was passed over while it was busy
	}
}

// happened takes in an event.
func (m *Monitor) happened(ev object.Event) {
	about, ok := events.SubjectOf(ev)
	if !ok || about.Exec != "" {
		return
	}
	k := key{ev.Namespace, about.Container}
	switch ev.Topic {
	case "/containers/create":
		m.soon(m.entryOf(k), m.Interval) // whoever made it is about to start it
		return
	case "/containers/update":
		m.soon(m.entryOf(k), m.settle)
		return
	}
	e := m.table[k]
	if e == nil {
		return
	}
	if ev.Topic == "/tasks/exit" {
		e.exit = about.Exit
	}
	m.soon(e, m.settle)
}

func (m *Monitor) entryOf(k key) *entry {
	e := m.table[k]
	if e == nil {
		e = &entry{}
		m.table[k] = e
	}
	return e
}

// lookAround puts all containers with a status label into the table, and the
// first time forgets that those that always run were ever stopped.
func (m *Monitor) lookAround(ctx context.Context, first bool) {
	list, err := m.DB.Namespaces().List(ctx)
	if err != nil {
		m.Log.Error("the restart monitor cannot list namespaces", "error", err)
		return
	}
	for _, ns := range list {
		store := m.DB.Scope(ns.Name, "").Containers()
		found, err := store.List(ctx, fmt.Sprintf("labels.%q", StatusLabel))
		if err != nil {
			m.Log.Error("the restart monitor cannot list containers", "namespace", ns.Name, "error", err)
			continue
		}
		for _, c := range found {
			if p, err := parsePolicy(c.Labels[PolicyLabel]); first && err == nil && p.name == "always" {
				if stopped, _ := strconv.ParseBool(c.Labels[StoppedLabel]); stopped {
					if err := m.setLabel(ctx, ns.Name, c.ID, StoppedLabel, "false"); err != nil {
						m.Log.Warn("container stays stopped though it is to run always", "namespace", ns.Name, "id", c.ID, "error", err)
					}
				}
			}
			m.soon(m.entryOf(key{ns.Name, c.ID}), 0)
		}
	}
}

func (m *Monitor) setLabel(ctx context.Context, namespace, id, label, value string) error {
	_, err := m.DB.Scope(namespace, "").Containers().Update(ctx, object.Container{ID: id, Labels: map[string]string{label: value}}, "labels."+label)
	return err
}

// look compares a container with what it should be and mends the difference.
func (m *Monitor) look(ctx context.Context, k key, seen entry) result {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	r := result{key: k}
	c, err := m.DB.Scope(k.namespace, "").Containers().Get(ctx, k.id)
	switch {
	case errdefs.IsNotFound(err), err == nil && c.Labels[StatusLabel] == "":
		r.gone = true
		return r
	case err != nil:
		return m.failed(ctx, r, err)
	}
	var now *object.Process
	p, err := m.Tasks.State(ctx, k.namespace, k.id, "")
	switch {
	case err == nil:
		now = &p
	case !errdefs.IsNotFound(err):
		return m.failed(ctx, r, err)
	}
	what, err := aim(c.Labels, now, seen.exit)
	if err != nil {
		m.Log.Warn("container is not restarted", "namespace", k.namespace, "id", k.id, "error", err)
		return r
	}
	switch what {
	case stop:
		if err := m.end(ctx, k); err != nil {
			return m.failed(ctx, r, err)
		}
	case run:
		from := seen.started
		if now != nil && now.Status == object.TaskCreated {
			if seen.waiting.IsZero() {
				seen.waiting = time.Now()
			}
			r.waiting, from = seen.waiting, seen.waiting
		}
		if wait := time.Until(from.Add(m.Interval)); wait > 0 {
			r.again = wait
			return r
		}
		r.started = time.Now()
		if err := m.start(ctx, k, c, now != nil); err != nil {
			return m.failed(ctx, r, err)
		}
		m.Log.Info("container restarted", "namespace", k.namespace, "id", k.id)
	}
	return r
}

// failed has a look repeated after an interval.
func (m *Monitor) failed(ctx context.Context, r result, err error) result {
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		m.Log.Warn("container is not as its labels say, another attempt follows", "namespace", r.namespace, "id", r.id, "after", m.Interval, "error", err)
	}
	r.again = m.Interval
	return r
}

const sigKill = 9

// end kills and removes the task of a container. It is no error if there is none.
func (m *Monitor) end(ctx context.Context, k key) error {
	err := m.Tasks.Kill(ctx, k.namespace, k.id, "", sigKill, true)
	if err == nil {
		_, err = m.Tasks.Wait(ctx, k.namespace, k.id, "")
	}
	_, derr := m.Tasks.Delete(ctx, k.namespace, k.id, "")
	if derr == nil || errdefs.IsNotFound(derr) {
		return nil // whatever was wrong before, it has ended
	}
	return fmt.Errorf("end the task: %w", errors.Join(err, derr))
}

// start counts the restart and makes a new task. The count comes first: a crash
// in between has tried once too few, never once too often.
func (m *Monitor) start(ctx context.Context, k key, c object.Container, old bool) error {
	done, _ := restarts(c.Labels)
	if err := m.setLabel(ctx, k.namespace, k.id, CountLabel, strconv.Itoa(done+1)); err != nil {
		return fmt.Errorf("count the restart: %w", err)
	}
	if old {
		if err := m.end(ctx, k); err != nil {
			return err
		}
	}
	opts := task.CreateOptions{}
	if uri := c.Labels[LogLabel]; uri != "" {
		opts.IO.Stdout = uri
		if opts.IO.Terminal = hasTerminal(c); !opts.IO.Terminal {
			opts.IO.Stderr = uri
		}
	}
	if c.SnapshotKey != "" {
		store, err := m.DB.Scope(k.namespace, "").Snapshotter(c.Snapshotter)
		if err == nil {
			opts.Rootfs, err = store.Mounts(ctx, c.SnapshotKey)
		}
		if err != nil {
			return fmt.Errorf("root filesystem: %w", err)
		}
	}
	if _, err := m.Tasks.Create(ctx, k.namespace, c, opts); err != nil {
		return err
	}
	if _, err := m.Tasks.Start(ctx, k.namespace, k.id, ""); err != nil {
		return errors.Join(err, m.end(context.WithoutCancel(ctx), k))
	}
	return nil
}
