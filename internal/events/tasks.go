package events

import (
	"cmp"

	"berth/internal/object"

	api "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TaskDelete tells that a task is gone. The ID is empty when the whole task
// was deleted, otherwise that of the exec.
func TaskDelete(containerID, execID string, exit object.Exit) Event {
	return Event{"/tasks/delete", &api.TaskDelete{
		ContainerID: containerID, ID: execID, Pid: exit.PID, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	}}
}

// TaskExit tells of the end of a process: of the exec, or of the init process
// when execID is empty; subscribers find the container's ID there then.
func TaskExit(containerID, execID string, exit object.Exit) Event {
	return Event{"/tasks/exit", &api.TaskExit{
		ContainerID: containerID, ID: cmp.Or(execID, containerID),
		Pid: exit.PID, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	}}
}
