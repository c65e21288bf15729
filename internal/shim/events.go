package shim

import (
	"time"

	"berth/internal/object/live"
	"berth/internal/shim/api"
)

// event is what happened to a task, on its way to the daemon.
type event struct {
	topic string
	body  api.Event
	at    time.Time
	// keep: it may not be dropped, however long the daemon is away.
	keep bool
}

func exitEvent(id, execID string, end live.Exit) event {
	process := execID
	if process == "" {
		process = id // Compat: the init process goes by the container's ID
	}
	return event{topic: "/tasks/exit", keep: true, body: &api.TaskExit{
		ContainerID: id, ID: process, Pid: end.PID, ExitStatus: end.Status, ExitedAt: api.Time(end.At),
	}}
}

func oomEvent(id string) event {
	return event{topic: "/tasks/oom", keep: true, body: &api.TaskOOM{ContainerID: id}}
}
