package wire

import (
	"berth/internal/object"

	"github.com/containerd/containerd/api/types/task"
)

// StatusToProto of a state that the protocol does not know is UNKNOWN.
func StatusToProto(s object.TaskStatus) task.Status {
	if s > object.TaskPausing {
		return task.Status_UNKNOWN
	}
	return task.Status(s)
}

// StatusFromProto of a number that is not known is TaskUnknown.
func StatusFromProto(s task.Status) object.TaskStatus {
	if s < 0 || s > task.Status_PAUSING {
		return object.TaskUnknown
	}
	return object.TaskStatus(s)
}

// ProcessToProto makes the message of the tasks service: the ID is that of the
// exec process, or of the container for its init.
func ProcessToProto(p object.Process) *task.Process {
	id := p.ExecID
	if id == "" {
		id = p.ContainerID
	}
	return &task.Process{
		ID:         id,
		Pid:        p.PID,
		Status:     StatusToProto(p.Status),
		Stdin:      p.IO.Stdin,
		Stdout:     p.IO.Stdout,
		Stderr:     p.IO.Stderr,
		Terminal:   p.IO.Terminal,
		ExitStatus: p.Exit.Status,
		ExitedAt:   TimeToProto(p.Exit.At),
	}
}

func ProcessInfosToProto(infos []object.ProcessInfo) []*task.ProcessInfo {
	out := make([]*task.ProcessInfo, len(infos))
	for i, p := range infos {
		out[i] = &task.ProcessInfo{Pid: p.PID, Info: AnyToProto(p.Info)}
	}
	return out
}

func ProcessInfosFromProto(infos []*task.ProcessInfo) []object.ProcessInfo {
	out := make([]object.ProcessInfo, len(infos))
	for i, p := range infos {
		out[i] = object.ProcessInfo{PID: p.GetPid(), Info: AnyFromProto(p.GetInfo())}
	}
	return out
}
