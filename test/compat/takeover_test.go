package compat

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestTakeover stops a real containerd, has our daemon take up all it left,
// hands that and more back to containerd, and finds everything working at each step.
func TestTakeover(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			n := newNode(t, "")
			w := newWorld(n, n.start(peerBin))
			w.populate("a")
			before := w.facts()
			n.stop(sig)
			w.end("a-ended")
			w.lose("a-restart")

			w.c = n.start(oursBin)
			w.revived("a-restart")
			w.compare(before, "a-ended", "a-restart")
			w.exited("a-ended", 5)
			w.use("a", true)
			w.populate("b")
			before = w.facts()
			n.stop(sig)
			w.lose("b-restart")

			w.c = n.start(peerBin)
			w.revived("b-restart")
			w.compare(before, "b-restart")
			w.use("a", false)
			w.use("b", true)
			before = w.facts()
			n.stop(sig)

			// There and back again: what both have made ends under ours.
			w.c = n.start(oursBin)
			w.compare(before)
			w.finish("a")
			w.finish("b")
			n.stop(syscall.SIGTERM)
		})
	}
}

// TestTakeoverOld has containers of containerd 1.7 taken over by ours, which
// adds its own, and all of them by containerd 2.4.
func TestTakeoverOld(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			n := newNode(t, "")
			w := newWorld(n, n.start(oldPeerBin))
			w.populate("a")
			before := w.facts()
			n.stop(sig)
			w.end("a-ended")

			w.c = n.start(oursBin)
			w.compare(before, "a-ended")
			w.exited("a-ended", 5)
			w.use("a", true)
			w.populate("b")
			before = w.facts()
			n.stop(sig)

			w.c = n.start(peerBin)
			w.compare(before)
			w.use("a", false)
			w.use("b", true)
			w.finish("a")
			w.finish("b")
			n.stop(syscall.SIGTERM)
		})
	}
}

// world is what a daemon holds for the test, with what must not change.
type world struct {
	*node
	c   *client.Client
	ctx context.Context
	img string
	// pids of the init processes by container.
	pids map[string]uint32
	// fifos of the containers, held open as by the client that made them.
	ios []cio.IO
}

func newWorld(n *node, c *client.Client) *world {
	w := &world{node: n, c: c, ctx: namespaces.WithNamespace(n.t.Context(), n.namespace()), pids: make(map[string]uint32)}
	n.t.Cleanup(func() {
		for _, io := range w.ios {
			io.Cancel()
			io.Close()
		}
	})
	image(n.t, c, w.ctx)
	w.try(c.NamespaceService().Create(w.ctx, "labelled", map[string]string{"a": "b"}))
	_, err := c.LeasesService().Create(w.ctx, leases.WithID("kept"), leases.WithLabels(map[string]string{"x": "y"}))
	w.try(err)
	w.try(c.LeasesService().AddResource(w.ctx, leases.Lease{ID: "kept"}, leases.Resource{ID: "some", Type: "snapshots/overlayfs"}))
	return w
}

func (w *world) try(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// output of a container is appended to this file.
func (w *world) output(id string) string { return filepath.Join(w.dir, id+".out") }

// create makes a container that runs a shell script.
func (w *world) create(id, script string, creator cio.Creator, tty bool, opts ...client.NewContainerOpts) client.Task {
	w.t.Helper()
	img, err := w.c.GetImage(w.ctx, imageName)
	w.try(err)
	specs := []oci.SpecOpts{oci.WithImageConfig(img), oci.WithProcessArgs("sh", "-c", script)}
	if tty {
		specs = append(specs, oci.WithTTY)
	}
	ctr, err := w.c.NewContainer(w.ctx, id, append([]client.NewContainerOpts{client.WithImage(img), client.WithNewSnapshot(id, img), client.WithNewSpec(specs...)}, opts...)...)
	w.try(err)
	task, err := ctr.NewTask(w.ctx, creator)
	w.try(err)
	w.try(task.Start(w.ctx))
	w.pids[id] = task.Pid()
	return task
}

// withSpec changes the spec that earlier options have made.
func withSpec(opts ...oci.SpecOpts) client.NewContainerOpts {
	return func(ctx context.Context, c *client.Client, ctr *containers.Container) error {
		var s oci.Spec
		if err := typeurl.UnmarshalTo(ctr.Spec, &s); err != nil {
			return err
		}
		return client.WithSpec(&s, opts...)(ctx, c, ctr)
	}
}

func (w *world) fifos(tty bool) cio.Creator {
	return func(id string) (cio.IO, error) {
		opts := []cio.Opt{cio.WithFIFODir(w.dir), cio.WithStreams(strings.NewReader(""), discard{}, discard{})}
		if tty {
			opts = append(opts, cio.WithTerminal)
		}
		io, err := cio.NewCreator(opts...)(id)
		if err == nil {
			w.ios = append(w.ios, io)
		}
		return io, err
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

var nullIO = cio.NullIO

// kill ends and removes a container.
func (w *world) kill(id string) {
	w.t.Helper()
	task := w.task(id)
	ch, err := task.Wait(w.ctx)
	w.try(err)
	w.try(task.Kill(w.ctx, syscall.SIGKILL, client.WithKillAll))
	<-ch
	_, err = task.Delete(w.ctx)
	w.try(err)
	w.deleteContainer(id)
}

const forever = `trap "exit 7" TERM; echo up; while :; do sleep 0.1; done`

// populate makes containers of each kind, their names beginning with a prefix.
func (w *world) populate(p string) {
	w.t.Helper()
	w.create(p+"-plain", forever, cio.LogFile(w.output(p+"-plain")), false)
	w.create(p+"-left", forever, cio.NullIO, false)
	w.create(p+"-tty", `while read l; do echo "tty got $l"; done`, w.fifos(true), true)
	w.create(p+"-restart", forever, cio.NullIO, false)
	// Only now: containerd's monitor would start it anew if it came by before its start.
	ctr, err := w.c.LoadContainer(w.ctx, p+"-restart")
	w.try(err)
	w.try(ctr.Update(w.ctx, func(ctx context.Context, c *client.Client, r *containers.Container) error {
		return restart.WithStatus(client.Running)(ctx, c, r)
	}))
	// Two containers of a pod, which share a shim.
	pod := oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": p + "-pod"})
	w.create(p+"-pod", forever, cio.NullIO, false, withSpec(pod))
	w.create(p+"-member", forever, cio.NullIO, false, withSpec(pod))
	if p == "a" {
		w.create(p+"-ended", `while ! test -e /go; do sleep 0.1; done; exit 5`, cio.NullIO, false)
	}
	// A process that outlives the daemon that started it.
	task := w.task(p + "-plain")
	spec := w.spec(task)
	spec.Args = []string{"sh", "-c", `trap "exit 9" TERM; while :; do sleep 0.1; done`}
	process, err := task.Exec(w.ctx, p+"-probe", spec, cio.NullIO)
	w.try(err)
	w.try(process.Start(w.ctx))
	waitFor(w.t, func() bool {
		b, _ := os.ReadFile(w.output(p + "-plain"))
		return strings.Contains(string(b), "up")
	}, "the container says that it is up")
}

func (w *world) spec(task client.Task) *specs.Process {
	w.t.Helper()
	s, err := task.Spec(w.ctx)
	w.try(err)
	p := *s.Process
	p.Terminal = false
	return &p
}

func (w *world) task(id string) client.Task {
	w.t.Helper()
	ctr, err := w.c.LoadContainer(w.ctx, id)
	w.try(err)
	task, err := ctr.Task(w.ctx, nil)
	w.try(err)
	return task
}

// end lets a container end by itself while no daemon runs.
func (w *world) end(id string) {
	w.t.Helper()
	pid := w.pids[id]
	w.try(os.WriteFile(fmt.Sprintf("/proc/%d/root/go", pid), nil, 0o600))
	waitFor(w.t, func() bool { return !running(pid) }, "the container ends")
}

// lose kills a container while no daemon runs.
func (w *world) lose(id string) {
	w.t.Helper()
	w.try(syscall.Kill(int(w.pids[id]), syscall.SIGKILL))
	waitFor(w.t, func() bool { return !running(w.pids[id]) }, id+" ends")
}

// revived waits until a container runs again, as its labels ask.
func (w *world) revived(id string) {
	w.t.Helper()
	old := w.pids[id]
	waitFor(w.t, func() bool {
		ctr, err := w.c.LoadContainer(w.ctx, id)
		w.try(err)
		task, err := ctr.Task(w.ctx, nil)
		if err != nil || task.Pid() == old {
			return false
		}
		s, err := task.Status(w.ctx)
		w.pids[id] = task.Pid()
		return err == nil && s.Status == client.Running
	}, id+" runs again")
}

func running(pid uint32) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	return !strings.HasPrefix(rest, "Z")
}

// exited finds the status of a container that ended while no daemon ran.
func (w *world) exited(id string, status uint32) {
	w.t.Helper()
	task := w.task(id)
	ch, err := task.Wait(w.ctx)
	w.try(err)
	if code, _, err := (<-ch).Result(); err != nil || code != status {
		w.t.Errorf("%s ended with %d, %v, want %d", id, code, err, status)
	}
	if _, err := task.Delete(w.ctx); err != nil {
		w.t.Error(err)
	}
	w.deleteContainer(id)
}

func (w *world) deleteContainer(id string) {
	w.t.Helper()
	ctr, err := w.c.LoadContainer(w.ctx, id)
	w.try(err)
	w.try(ctr.Delete(w.ctx, client.WithSnapshotCleanup))
	delete(w.pids, id)
}

// use does to the containers of a prefix all that can be done to them.
func (w *world) use(p string, first bool) {
	w.t.Helper()
	task := w.task(p + "-plain")
	if task.Pid() != w.pids[p+"-plain"] {
		w.t.Errorf("%s has PID %d, it had %d", p, task.Pid(), w.pids[p+"-plain"])
	}
	// A new process in it.
	spec := w.spec(task)
	// It ends when what it said has been heard: containerd 1.7's shim may drop the
	// words of one that is quicker than its client.
	spec.Args = []string{"sh", "-c", `trap "exit 4" TERM; echo hello; while :; do sleep 0.1; done`}
	var out lockedBuffer
	process, err := task.Exec(w.ctx, "fresh", spec, cio.NewCreator(cio.WithStreams(nil, &out, &out), cio.WithFIFODir(w.dir)))
	w.try(err)
	ch, err := process.Wait(w.ctx)
	w.try(err)
	w.try(process.Start(w.ctx))
	waitFor(w.t, func() bool { return out.String() == "hello\n" }, "what an exec in "+p+" says")
	w.try(process.Kill(w.ctx, syscall.SIGTERM))
	status := <-ch
	if code, _, err := status.Result(); err != nil || code != 4 {
		w.t.Errorf("exec in %s: %d, %v", p, code, err)
	}
	if _, err := process.Delete(w.ctx); err != nil {
		w.t.Error(err)
	}
	if m, err := task.Metrics(w.ctx); err != nil || m.Data == nil {
		w.t.Errorf("metrics of %s: %v, %v", p, m, err)
	}
	if pids, err := task.Pids(w.ctx); err != nil || !slices.ContainsFunc(pids, func(p client.ProcessInfo) bool { return p.Pid == task.Pid() }) {
		w.t.Errorf("processes of %s: %v, %v", p, pids, err)
	}
	w.try(task.Pause(w.ctx))
	if s, err := task.Status(w.ctx); err != nil || s.Status != client.Paused {
		w.t.Errorf("paused %s: %v, %v", p, s, err)
	}
	w.try(task.Resume(w.ctx))
	w.attach(p + "-tty")
	if first {
		w.killExec(task, p+"-probe")
	}
}

// killExec ends a process that an earlier daemon started.
func (w *world) killExec(task client.Task, id string) {
	w.t.Helper()
	process, err := task.LoadProcess(w.ctx, id, nil)
	w.try(err)
	ch, err := process.Wait(w.ctx)
	w.try(err)
	w.try(process.Kill(w.ctx, syscall.SIGTERM))
	if code, _, err := (<-ch).Result(); err != nil || code != 9 {
		w.t.Errorf("process %s ended with %d, %v", id, code, err)
	}
	if s, err := process.Delete(w.ctx); err != nil || s.ExitCode() != 9 {
		w.t.Errorf("process %s, deleted: %v, %v", id, s, err)
	}
}

// attach talks with a container on its terminal.
func (w *world) attach(id string) {
	w.t.Helper()
	ctr, err := w.c.LoadContainer(w.ctx, id)
	w.try(err)
	var out lockedBuffer
	in, feed, err := os.Pipe()
	w.try(err)
	defer in.Close()
	defer feed.Close()
	task, err := ctr.Task(w.ctx, cio.NewAttach(cio.WithStreams(in, &out, nil), cio.WithTerminal))
	w.try(err)
	w.try(task.Resize(w.ctx, 120, 40))
	// The first client of the terminal reads as well: one of the two gets it.
	waitFor(w.t, func() bool {
		fmt.Fprintln(feed, "line")
		return strings.Contains(out.String(), "tty got line")
	}, "the terminal of "+id+" answers")
	if io := task.IO(); io != nil {
		io.Cancel()
	}
}

// finish ends and removes all of a prefix.
func (w *world) finish(p string) {
	w.t.Helper()
	// First what would be restarted.
	ctr, err := w.c.LoadContainer(w.ctx, p+"-restart")
	w.try(err)
	w.try(ctr.Update(w.ctx, restart.WithNoRestarts))
	events, errs := w.c.Subscribe(w.ctx, `topic=="/tasks/exit"`)
	for _, id := range []string{p + "-restart", p + "-member", p + "-pod", p + "-plain", p + "-left", p + "-tty"} {
		task := w.task(id)
		ch, err := task.Wait(w.ctx)
		w.try(err)
		want, sig := uint32(7), syscall.SIGTERM
		if id == p+"-tty" {
			want, sig = 137, syscall.SIGKILL
		}
		w.try(task.Kill(w.ctx, sig, client.WithKillAll))
		if code, _, err := (<-ch).Result(); err != nil || code != want {
			w.t.Errorf("%s ended with %d, %v, want %d", id, code, err, want)
		}
		timeout := time.After(10 * time.Second)
		for seen := false; !seen; {
			select {
			case e := <-events:
				seen = strings.Contains(string(e.Event.GetValue()), id)
			case err := <-errs:
				w.t.Fatal(err)
			case <-timeout:
				w.t.Fatalf("no event of the end of %s", id)
			}
		}
		if _, err := task.Delete(w.ctx); err != nil {
			w.t.Errorf("%s: %v", id, err)
		}
		w.deleteContainer(id)
	}
}

// facts is everything that must be the same under the next daemon.
func (w *world) facts() []string {
	w.t.Helper()
	var facts []string
	add := func(format string, args ...any) { facts = append(facts, fmt.Sprintf(format, args...)) }
	names, err := w.c.NamespaceService().List(w.ctx)
	w.try(err)
	for _, name := range names {
		labels, err := w.c.NamespaceService().Labels(w.ctx, name)
		w.try(err)
		add("namespace %s %v", name, labels)
	}
	images, err := w.c.ImageService().List(w.ctx)
	w.try(err)
	for _, i := range images {
		add("image %s %s %v %v", i.Name, i.Target.Digest, i.Labels, i.CreatedAt)
	}
	w.try(w.c.ContentStore().Walk(w.ctx, func(i content.Info) error {
		add("content %s %d %v", i.Digest, i.Size, i.Labels)
		return nil
	}))
	w.try(w.c.SnapshotService("overlayfs").Walk(w.ctx, func(_ context.Context, i snapshots.Info) error {
		add("snapshot %s %s %v %v", i.Name, i.Parent, i.Kind, i.Labels)
		return nil
	}))
	held, err := w.c.LeasesService().List(w.ctx)
	w.try(err)
	for _, l := range held {
		resources, err := w.c.LeasesService().ListResources(w.ctx, l)
		w.try(err)
		add("lease %s %v %v %v", l.ID, l.Labels, l.CreatedAt, resources)
	}
	ctrs, err := w.c.ContainerService().List(w.ctx)
	w.try(err)
	for _, c := range ctrs {
		add("container %s", describe(c))
	}
	for _, c := range ctrs {
		task := w.task(c.ID)
		s, err := task.Status(w.ctx)
		w.try(err)
		add("task %s %d %v", c.ID, task.Pid(), s.Status)
	}
	slices.Sort(facts)
	return facts
}

func describe(c containers.Container) string {
	labels := make([]string, 0, len(c.Labels))
	for k, v := range c.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	return fmt.Sprintf("%s %s %s %s %s %v %v %x", c.ID, c.Image, c.Runtime.Name, c.SnapshotKey, c.Snapshotter, labels, c.CreatedAt, c.Spec.GetValue())
}

// compare checks that a daemon holds what the one before held. Tasks that were
// named have changed meanwhile.
func (w *world) compare(before []string, but ...string) {
	w.t.Helper()
	now := w.facts()
	changed := func(fact string) bool {
		return slices.ContainsFunc(but, func(id string) bool {
			// A restart is counted in the labels.
			return strings.HasPrefix(fact, "task "+id+" ") || strings.HasPrefix(fact, "container "+id+" ")
		})
	}
	for _, f := range before {
		if !changed(f) && !slices.Contains(now, f) {
			w.t.Errorf("lost: %.300s", f)
		}
	}
	for _, f := range now {
		if !changed(f) && !slices.Contains(before, f) {
			w.t.Errorf("new: %.300s", f)
		}
	}
	for id, pid := range w.pids {
		if !slices.Contains(but, id) && !running(pid) {
			w.t.Errorf("%s with PID %d does not run any longer", id, pid)
		}
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// waitFor waits for what no event tells of.
func waitFor(t *testing.T, done func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
