package compat

import (
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/cio"
)

// TestRestartLabels starts containers with the labels that nerdctl sets, whose
// tasks then end under the daemon, without one, and on request.
func TestRestartLabels(t *testing.T) {
	n := newNode(t, "")
	w := newWorld(n, n.start(oursBin))
	policy := func(s string) client.NewContainerOpts {
		p, err := restart.NewPolicy(s)
		w.try(err)
		return restart.WithPolicy(p)
	}
	for id, p := range map[string]string{"always": "always", "fails": "on-failure:1", "no": "no"} {
		w.create(id, forever, cio.NullIO, false, restart.WithStatus(client.Running), policy(p), restart.WithLogURIString("file://"+w.output(id)))
	}
	revived := func(id string) {
		t.Helper()
		old := w.pids[id]
		waitFor(t, func() bool {
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
	end := func(id string) {
		t.Helper()
		w.try(syscall.Kill(int(w.pids[id]), syscall.SIGKILL))
	}
	stopped := func(id string) {
		t.Helper()
		waitFor(t, func() bool {
			s, err := w.task(id).Status(w.ctx)
			return err == nil && s.Status == client.Stopped
		}, id+" is stopped")
	}
	for id := range w.pids {
		end(id)
	}
	revived("always")
	revived("fails")
	stopped("no")
	n.stop(syscall.SIGKILL)
	end("always")
	end("fails")
	w.c = n.start(oursBin)
	revived("always")
	stopped("fails")
	for id := range w.pids {
		ctr, err := w.c.LoadContainer(w.ctx, id)
		w.try(err)
		w.try(ctr.Update(w.ctx, restart.WithStatus(client.Stopped)))
		stoppedOrGone := func() bool {
			task, err := ctr.Task(w.ctx, nil)
			if err != nil {
				return true
			}
			s, err := task.Status(w.ctx)
			return err == nil && s.Status == client.Stopped
		}
		waitFor(t, stoppedOrGone, id+" is stopped by its label")
		if task, err := ctr.Task(w.ctx, nil); err == nil {
			task.Delete(w.ctx)
		}
		w.deleteContainer(id)
	}
}
