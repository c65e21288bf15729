package compat

import (
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
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
	revived := w.revived
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
		if id == "always" { // the monitor ends its task and removes it
			waitFor(t, func() bool {
				_, err := ctr.Task(w.ctx, nil)
				return errdefs.IsNotFound(err)
			}, id+" is stopped by its label")
		} else if _, err := w.task(id).Delete(w.ctx); err != nil {
			t.Error(err)
		}
		w.deleteContainer(id)
	}
}
