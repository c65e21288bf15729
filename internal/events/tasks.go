package events

import (
	"cmp"

	"berth/internal/object"

	api "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TaskCreate tells of a task whose init process exists and waits for its
// start: p.PID is its PID. The checkpoint, a path, is empty as a rule.
func TaskCreate(p object.Process, bundle string, rootfs []object.Mount, checkpoint string) Event {
	body := &api.TaskCreate{
		ContainerID: p.ContainerID,
		Bundle:      bundle,
		IO: &api.TaskIO{
			Stdin: p.IO.Stdin, Stdout: p.IO.Stdout, Stderr: p.IO.Stderr, Terminal: p.IO.Terminal,
		},
		Checkpoint: checkpoint,
		Pid:        p.PID,
	}
	for _, m := range rootfs {
		body.Rootfs = append(body.Rootfs, &types.Mount{
			Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options,
		})
	}
	return Event{"/tasks/create", body}
}

func TaskStart(containerID string, pid uint32) Event {
	return Event{"/tasks/start", &api.TaskStart{ContainerID: containerID, Pid: pid}}
}

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

// TaskOOM tells that the kernel killed for want of memory in the container's cgroup.
func TaskOOM(containerID string) Event {
	return Event{"/tasks/oom", &api.TaskOOM{ContainerID: containerID}}
}

func TaskExecAdded(containerID, execID string) Event {
	return Event{"/tasks/exec-added", &api.TaskExecAdded{ContainerID: containerID, ExecID: execID}}
}

func TaskExecStarted(containerID, execID string, pid uint32) Event {
	return Event{"/tasks/exec-started", &api.TaskExecStarted{ContainerID: containerID, ExecID: execID, Pid: pid}}
}

func TaskPaused(containerID string) Event {
	return Event{"/tasks/paused", &api.TaskPaused{ContainerID: containerID}}
}

func TaskResumed(containerID string) Event {
	return Event{"/tasks/resumed", &api.TaskResumed{ContainerID: containerID}}
}

// TaskCheckpointed tells where a checkpoint was written.
func TaskCheckpointed(containerID, checkpoint string) Event {
	return Event{"/tasks/checkpointed", &api.TaskCheckpointed{ContainerID: containerID, Checkpoint: checkpoint}}
}
