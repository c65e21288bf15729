package shim

import (
	"time"

	"berth/internal/object"

	"github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// event is what happened to a task, on its way to the daemon.
type event struct {
	topic string
	body  proto.Message
	at    time.Time
	// keep: it may not be dropped, however long the daemon is away.
	keep bool
}

func exitEvent(id, execID string, end object.Exit) event {
	process := execID
	if process == "" {
		process = id // Compat: the init process goes by the container's ID
	}
	return event{topic: "/tasks/exit", keep: true, body: &events.TaskExit{
		ContainerID: id, ID: process, Pid: end.PID, ExitStatus: end.Status, ExitedAt: timestamppb.New(end.At),
	}}
}

func oomEvent(id string) event {
	return event{topic: "/tasks/oom", keep: true, body: &events.TaskOOM{ContainerID: id}}
}
