package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// workload is a fixed sequence of steps in which everything that matters occurs:
// an import, a pull, containers that stay, that end and that are left behind, an
// exec, a daemon that is killed, a shim that is killed, and all kinds of removal.
// It keeps account of what was acknowledged, which a crash must not undo.
type workload struct {
	*machine
	failpoints string // of the daemons that it starts itself

	images map[string]bool // recorded, and not since asked to be removed
	kept   int             // PID of the container that stays, 0 when it need not run
	ended  bool            // the container that ends by itself was started, and not deleted
}

func newWorkload(m *machine, failpoints string) *workload {
	return &workload{machine: m, failpoints: failpoints, images: map[string]bool{}}
}

// run does the steps until one fails.
func (w *workload) run() error {
	for _, step := range []func() error{
		w.importImage, w.pullImage, w.keep, w.leave, w.runToEnd, w.execute,
		w.restart, w.deleteEnded, w.loseShim, w.deleteKept, w.removeImages,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// exits runs ctr, which is to end with a status.
func (w *workload) exits(want int, args ...string) error {
	status, out, err := w.ctr(args...)
	if status == want {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("ctr %s:\n%s", strings.Join(args, " "), out)
	}
	return fmt.Errorf("exit status %d, not %d: %w", status, want, err)
}

// deleted removes a task, of which ctr says how it ended.
func (w *workload) deleted(status int, id string) error {
	_, out, err := w.ctr("tasks", "rm", id)
	if err == nil && !strings.Contains(out, fmt.Sprintf("exited with status %d\n", status)) {
		err = fmt.Errorf("ctr tasks rm %s does not tell of status %d:\n%s", id, status, out)
	}
	return err
}

func (w *workload) importImage() error {
	err := w.exits(0, "images", "import", archive)
	w.images[imported] = err == nil
	return err
}

func (w *workload) pullImage() error {
	err := w.exits(0, "images", "pull", "--plain-http", pulled)
	w.images[pulled] = err == nil
	return err
}

// detached starts a container whose streams go nowhere.
func (w *workload) detached(image, id string, command ...string) error {
	return w.exits(0, append([]string{"run", "-d", "--null-io", image, id}, command...)...)
}

func (w *workload) keep() error {
	if err := w.detached(imported, "kept", "sleep", "1000"); err != nil {
		return err
	}
	tasks, err := w.tasks()
	if err == nil && tasks["kept"].status != "RUNNING" {
		err = fmt.Errorf("task kept is %q after its start", tasks["kept"].status)
	}
	w.kept = tasks["kept"].pid
	return err
}

func (w *workload) leave() error {
	if err := w.detached(pulled, "ended", "sh", "-c", "exit 9"); err != nil {
		return err
	}
	w.ended = true
	return nil
}

func (w *workload) runToEnd() error {
	return w.exits(7, "run", "--rm", "--fifo-dir", w.dir+"/fifo", pulled, "once", "sh", "-c", "exit 7")
}

func (w *workload) execute() error {
	return w.exits(5, "tasks", "exec", "--exec-id", "e", "--fifo-dir", w.dir+"/fifo", "kept", "sh", "-c", "exit 5")
}

func (w *workload) restart() error {
	w.kill()
	w.launch(w.failpoints)
	return w.await()
}

func (w *workload) deleteEnded() error {
	if err := w.awaitStatus("ended", "STOPPED"); err != nil {
		return err
	}
	w.ended = false
	if err := w.deleted(9, "ended"); err != nil {
		return err
	}
	return w.exits(0, "containers", "rm", "ended")
}

func (w *workload) loseShim() error {
	if err := w.detached(pulled, "victim", "sleep", "1000"); err != nil {
		return err
	}
	pid := w.shims()["victim"]
	if pid == 0 {
		return fmt.Errorf("the shim of victim is not to be found")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := w.awaitStatus("victim", ""); err != nil {
		return err
	}
	return w.exits(0, "containers", "rm", "victim")
}

func (w *workload) deleteKept() error {
	w.kept = 0
	if err := w.exits(0, "tasks", "kill", "-s", "SIGKILL", "kept"); err != nil {
		return err
	}
	if err := w.awaitStatus("kept", "STOPPED"); err != nil {
		return err
	}
	if err := w.deleted(137, "kept"); err != nil {
		return err
	}
	return w.exits(0, "containers", "rm", "kept")
}

func (w *workload) removeImages() error {
	w.images = map[string]bool{}
	return w.exits(0, "images", "rm", "--sync", imported, pulled)
}

// check is made on a new daemon: what was acknowledged is there. With lostShims
// the containers may have ended with their shims.
func (w *workload) check(lostShims bool) error {
	if err := w.rehash(); err != nil {
		return err
	}
	listed := w.lines("images", "ls", "-q")
	for image, recorded := range w.images {
		if recorded && !slices.Contains(listed, image) {
			return fmt.Errorf("image %s is lost; there are %v", image, listed)
		}
	}
	for _, image := range listed {
		// Even one that was not acknowledged is whole when it is listed.
		if err := w.checkImage(image); err != nil {
			return fmt.Errorf("image %s: %w", image, err)
		}
	}
	// What a transfer had in work is kept for the next attempt, but not for ever.
	for line := range strings.Lines(w.must("leases", "ls")) {
		if strings.HasPrefix(line, "transfer-") && !strings.Contains(line, "containerd.io/gc.expire=") {
			return fmt.Errorf("a lease of a transfer that died does not expire: %s", line)
		}
	}
	if lostShims {
		return nil
	}
	if w.ended {
		if err := w.awaitStatus("ended", "STOPPED"); err != nil {
			return err
		}
		if err := w.deleted(9, "ended"); err != nil {
			return err
		}
	}
	tasks, err := w.tasks()
	if err == nil && w.kept != 0 && tasks["kept"] != (task{w.kept, "RUNNING"}) {
		err = fmt.Errorf("container kept ran with PID %d and is now %+v", w.kept, tasks["kept"])
	}
	return err
}

// checkImage reads all the files of an image.
func (w *workload) checkImage(image string) error {
	if out := w.must("images", "check", "name=="+image); !strings.Contains(out, "complete") {
		return fmt.Errorf("it is not complete:\n%s", out)
	}
	dir := filepath.Join(w.dir, "mnt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	w.must("images", "mount", image, dir)
	err := walk(dir, expected[image])
	w.must("images", "unmount", "--rm", dir)
	return err
}

// clear removes all that there is, however it came to be, and looks for bytes that
// nothing names any more.
func (w *workload) clear() error {
	if err := w.clearContainers(); err != nil {
		return err
	}
	if images := w.lines("images", "ls", "-q"); len(images) > 0 {
		w.must(append([]string{"images", "rm"}, images...)...)
	}
	// A client that died may have left one: it would expire.
	w.must("leases", "create", "--id", "last")
	for _, id := range w.lines("leases", "ls", "-q") {
		if id != "last" {
			w.must("leases", "rm", id)
		}
	}
	w.must("leases", "rm", "--sync", "last") // collects garbage
	if left := w.stored(); len(left) > 0 {
		return fmt.Errorf("after a collection: left behind:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

// clearContainers removes tasks and containers and looks for their traces.
func (w *workload) clearContainers() error {
	tasks, err := w.tasks()
	if err != nil {
		return err
	}
	for id := range tasks {
		w.ctr("tasks", "rm", "-f", id) // ends with the status of the container
	}
	if tasks, err = w.tasks(); err != nil {
		return err
	}
	if len(tasks) > 0 {
		return fmt.Errorf("tasks that cannot be removed: %v", tasks)
	}
	for _, id := range w.lines("containers", "ls", "-q") {
		w.must("containers", "rm", id)
	}
	if err := settle(w.running); err != nil {
		return fmt.Errorf("without any task: %w", err)
	}
	return nil
}
